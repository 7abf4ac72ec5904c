"""Giving things back to a driver once, though an attempt may be interrupted.

Problem: an interrupt (Ctrl-C, a signal handler that raises, no memory for an object) in the middle of
a call that gives something back may have come before the deed or behind it. Who takes the thing off
the books first leaks it in the one case; who takes it off last gives it back twice in the other.
Method: it goes off the books last. What was attempted is remembered until it is off, and when the
driver, which has books of its own, refuses a second attempt, the first one did it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from smartpool.errors import DriverError

__all__ = ["Returning"]

_UNKNOWN: Final = "INVALID_VALUE"


class Returning:
    """Calls of one owner that give something back; then it takes the thing off its books, and says `done`."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun: set[tuple[int, ...]] = set()

    def __call__(self, call: Callable[..., None], *thing: int) -> None:
        """Give `thing` back by ``call(*thing)``; raises what the driver raises, unless it is gone already."""
        again = thing in self._begun
        self._begun.add(thing)
        try:
            call(*thing)
        except DriverError as error:
            if not again or error.code != _UNKNOWN:
                self._begun.discard(thing)
                raise

    def done(self, *thing: int) -> None:
        """Forget about `thing`, which is off the books."""
        self._begun.discard(thing)
