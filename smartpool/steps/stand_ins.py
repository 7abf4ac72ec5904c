"""Proxies: what stands in a table of bins while a step is served, and the seat of who may take slots.

A request looks its size up in a table of bins and pops (`smartpool.pool.bins`). Putting another object
under that size is one atomic store, and reaches callers that hold the table; so a proxy has the
methods of a bin, and finds its block elsewhere. What the methods do, and why it is safe, is said in
`smartpool.steps.planned`.
"""

from __future__ import annotations

from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING, Final

from smartpool.pool.bins import Bin

if TYPE_CHECKING:
    from smartpool.steps.planned import PlannedStep

__all__ = ["NOBODY", "TAKING", "CountingBin", "PlannedBin", "ProxyBin", "Seat"]

TAKING: Final = 1
_claim = dict.__setitem__  # not a request: observers are told once, by the one who asked
_throw_away = deque[int](maxlen=0).append  # takes one argument and does nothing, in C


class ProxyBin(Bin):
    """Stands in a table of bins for another while a step is served. Holds no block, and is never emptied.

    Attributes
    ----------
    home
        The bin that it stands for.
    """

    __slots__ = ("home",)
    home: Bin  # where another bin says that it is its own

    def __init__(self, home: Bin) -> None:
        super().__init__(home.nbytes, home.size, home.stream, home.tier, set())
        self.quiet = False
        self.home = home

    def own(self) -> Bin:
        """Return a bin for one block of the one that it stands for."""
        return self.home.own()


class PlannedBin(ProxyBin):
    """All planned requests of one size: its `pop` is the next slot of the plan."""

    __slots__ = ("step",)

    in_heap = False
    append = staticmethod(_throw_away)  # what is not live is free

    def __init__(self, home: Bin, step: PlannedStep) -> None:
        super().__init__(home)
        self.step = step
        list.append(self, -1)  # a bin that is true is asked (see `Bin`); `__bool__` would be a call more

    def own(self) -> Bin:
        """Return another of the kind: slots go nowhere, and the step itself learns of further streams."""
        return PlannedBin(self.home, self.step)

    def used_elsewhere(self, pointer: int, stream: int) -> bool:
        """Let the step know."""
        self.step.use_elsewhere(pointer, stream)
        return True

    def pop(self, index: object = -1) -> int:  # noqa: ARG002 - a bin's method
        """Return the next slot if it is of this size, free, and ours to take; else `IndexError`."""
        step = self.step
        seat = step.seat
        if seat.owner != get_ident() or seat.busy:
            raise IndexError
        seat.busy = TAKING
        try:
            position = step.position
            proxy, address, due = step.entries[position]  # an IndexError at the end of the repetition
            live = step.live
            if proxy is self and address not in live:
                for other in due:
                    if other in live:
                        break
                else:
                    seat.busy = address  # what a look from now on has to reckon with
                    if step.seat is seat:  # last: see the module
                        step.position = position + 1
                        _claim(live, address, self)  # before we return: a destructor may ask meanwhile
                        return address
        finally:
            seat.busy = 0
        raise IndexError


class CountingBin(ProxyBin):
    """A size that the plan of a step does not know: counts, and passes on to the bin."""

    __slots__ = ("step",)

    def __init__(self, home: Bin, step: PlannedStep) -> None:
        super().__init__(home)
        self.step = step

    def __bool__(self) -> bool:
        return bool(self.home)

    def pop(self, index: object = -1) -> int:  # noqa: ARG002 - a bin's method
        """Return a block of the bin, and count it as a miss of the step."""
        pointer = self.home.pop()
        if self.step.seat.owner == get_ident():
            self.step.misses += 1
        return pointer

    def append(self, pointer: int) -> None:
        """Put the block into the bin."""
        self.home.put(pointer)


class Seat:
    """Who takes slots without the lock: a thread, and whether it is about to.

    Attributes
    ----------
    owner
        The thread.
    busy
        0; `TAKING` while a request is under way; then the address of the slot that it may take.
    """

    __slots__ = ("busy", "owner")

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.busy = 0


NOBODY: Final = Seat(-1)
