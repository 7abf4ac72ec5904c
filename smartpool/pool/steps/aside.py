"""Something that is worked out aside: on a thread of its own, while requests go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from smartpool.errors import StepError

__all__ = ["Aside"]

T = TypeVar("T")


class Aside(Generic[T]):
    """Work on a thread of its own, and what came of it.

    Parameters
    ----------
    work
        Called once, on the thread.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="smartpool-planner", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def result(self) -> T:
        """Return the result of a thread that is done; raises `StepError` from what it raised."""
        if not self._results:
            raise StepError("planning a step failed; see the cause") from self._error
        return self._results[0]

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._results.append(work())
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            self._error = error
