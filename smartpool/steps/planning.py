"""Planning a step: once, while requests go on.

The plan of a step of many requests takes seconds: it is made on a thread of its own, and comes when it
comes. That of a step of a few takes no longer than a handful of such steps, which would all be over
before a thread got its turn: whoever ended the step makes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from smartpool.errors import StepError
from smartpool.forks import renewed
from smartpool.steps.plans import StepPlan

__all__ = ["Planning"]

Plans = dict[int, StepPlan]
"""The plan of each stream."""


class Planning:
    """Work that makes plans, and what came of it.

    Parameters
    ----------
    work
        Called once. No plans, where it takes another repetition to make them.
    """

    def __init__(self, work: Callable[[], Plans]) -> None:
        self._work = work
        self._plans: Plans = {}
        self._error: Exception | None = None
        self._done = renewed(self, "_done", threading.Event)

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self._done.is_set()

    def run(self) -> None:
        """Do the work, here. What it raises comes out, and leaves no plans: the step is recorded again."""
        try:
            self._plans = self._work()
        finally:
            self._done.set()

    def start(self) -> None:
        """Do the work, on a thread of its own."""
        threading.Thread(target=self._run_there, name="smartpool-planner", daemon=True).start()

    def wait(self) -> None:
        """Wait until there is a result."""
        self._done.wait()

    def result(self) -> Plans:
        """Return the plans, once it is done; raises `StepError` from what the work raised."""
        if self._error is not None:
            raise StepError("planning a step failed; see the cause") from self._error
        return self._plans

    def _run_there(self) -> None:
        try:
            self._plans = self._work()
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error
        finally:
            self._done.set()
