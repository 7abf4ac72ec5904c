"""When a search must end: a deadline, a caller's wish, or a proof.

The searches are anytime and single-threaded. They ask `Limits.expired` every few dozen nodes, so that
a deadline is overrun by about a millisecond and the question costs nothing that shows in a profile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from smartpool.errors import SmartPoolError


class ProvedInfeasible(SmartPoolError):  # noqa: N818 - a verdict, not a mistake
    """No offsets fit the capacity: the load exceeds it, or a complete search was exhausted.

    Not raised when a search merely ended without an answer; then the answer is None.
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a search early.

    Parameters
    ----------
    deadline
        A value of `time.monotonic`, or None for no deadline.
    stop
        Called now and then; the search ends soon after it first returns True.
    """

    deadline: float | None = None
    stop: Callable[[], bool] | None = None

    def expired(self) -> bool:
        """Say whether the search has to end now.

        Examples
        --------
        >>> Limits().expired(), Limits(deadline=0.0).expired(), Limits(stop=lambda: True).expired()
        (False, True, True)
        """
        if self.stop is not None and self.stop():
            return True
        return self.deadline is not None and time.monotonic() >= self.deadline
