"""When to stop: a deadline, and whoever else may ask for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["FOREVER", "Clock", "OutOfTime"]


class OutOfTime(Exception):  # noqa: N818  not an error: a solver gives up what it has not finished
    """A solver ran into its deadline, or was stopped. Never leaves the planner."""


@dataclass(frozen=True, slots=True)
class Clock:
    """A deadline by `time.monotonic`, and a callable that says to stop earlier.

    The planner reads time only here, and only to decide when to stop: what a solver does with the time
    that it has depends on its input and its seed alone.
    """

    deadline: float | None = None
    stop: Callable[[], bool] | None = None

    @classmethod
    def for_seconds(cls, seconds: float | None, stop: Callable[[], bool] | None = None) -> Clock:
        """Return a clock that runs out in `seconds` from now; never for None."""
        return cls(None if seconds is None else time.monotonic() + seconds, stop)

    def slice(self, seconds: float) -> Clock:
        """Return a clock that runs out in `seconds` from now, or with this one if that is earlier."""
        until = time.monotonic() + seconds
        return Clock(until if self.deadline is None else min(until, self.deadline), self.stop)

    def part(self, share: float, *, most: float) -> Clock:
        """Return a clock that runs out after a share of the time that is left, `most` seconds from now."""
        if self.deadline is None:
            return self.slice(most)
        return self.slice(min(most, share * (self.deadline - time.monotonic())))

    @property
    def expired(self) -> bool:
        """Whether to stop."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return True
        return self.stop is not None and self.stop()

    def check(self) -> None:
        """Raise `OutOfTime` when it is time to stop."""
        if self.expired:
            raise OutOfTime


FOREVER: Final = Clock()
"""It never runs out."""
