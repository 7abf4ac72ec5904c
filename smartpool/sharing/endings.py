"""What ends when nobody needs it any more: blocks that were exported, and memory that was opened.

Problem: both hold what another process waits for, so an end that is lost, by an interrupt or a failure in
its middle, would hold it for the life of this process; and an end that is done twice would act on what is
somebody else's by then.
Method: nobody says that something ended. What is kept stands in one table, and whether it is over is asked
of the facts: the object that the user holds is closed or gone. Whenever there is an occasion (`sweep`), what
is over is ended, by steps that may be repeated, and taken out of the table last. Who ends something takes it
out meanwhile, in one step of C, and puts it back unless it was done: no lock is held, and no two threads, nor
a destructor in the middle of another sweep, are at the same thing.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Protocol

from smartpool.errors import SmartPoolError

__all__ = ["Ending", "end", "keep", "sweep"]


class Ending(Protocol):
    """Something that ends by itself."""

    @property
    def over(self) -> bool:
        """Whether nobody needs it any more."""

    def end(self) -> bool:
        """Give it back; False when that cannot be yet. An attempt may be repeated, whatever became of it."""


_kept: Final[dict[int, Ending]] = {}


def keep(thing: Ending) -> None:
    """Keep `thing` until it was ended."""
    _kept[id(thing)] = thing


def end(thing: Ending) -> bool:
    """End `thing` if it is kept, and nobody is at it already; return whether that was done. May raise."""
    number = id(thing)
    taken: dict[int, Ending] = {}
    try:
        with suppress(KeyError):  # somebody is at it
            taken.update(zip((number,), map(_kept.pop, (number,)), strict=True))  # one step
        if taken and thing.end():
            taken.clear()
            return True
        return False
    finally:
        _kept.update(taken)  # one step


def sweep() -> list[Ending]:
    """End what is over, as far as that can be now, and return it."""
    ended: list[Ending] = []
    before = -1
    while before < len(ended):  # what ended may have been in the way of others
        before = len(ended)
        for thing in list(_kept.values()):
            if thing.over:
                with suppress(SmartPoolError, OSError):  # it is tried again at the next occasion
                    if end(thing):
                        ended.append(thing)
    return ended
