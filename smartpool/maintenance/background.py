"""The background optimizer: one daemon thread that calls a function every so often, or when woken."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Final

from smartpool.forks import renewed

__all__ = ["NEVER", "Background"]

NEVER: Final = threading.TIMEOUT_MAX

_LOGGER = logging.getLogger("smartpool")


class Background:
    """Calls a method every `interval` seconds, and soon after `wake`.

    The thread is a daemon and holds the method's object weakly: it keeps neither the process nor the pool
    alive. It starts with the first `start`, and `stop` ends it.

    Parameters
    ----------
    work
        A bound method that does one pass. What it raises is kept, logged, and told by `error`.
    interval
        Seconds between two passes; `NEVER` for one that only wakes.
    name
        The thread's name.
    """

    def __init__(
        self, work: Callable[[], None], interval: float, *, name: str = "smartpool-optimizer"
    ) -> None:
        self._name = name
        self._work = weakref.WeakMethod(work, self._object_died)
        self._interval = min(interval, NEVER)
        self._wake = renewed(self, "_wake", _taken)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.passes = 0
        self.error: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread unless it runs."""
        if not self.running:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Ask for a pass now. Cheap, never blocks, may be called under any lock, and by destructors.

        An event of `threading` has a lock inside, for which a destructor in the middle of `set` would wait.
        """
        try:  # noqa: SIM105 - at the end of the interpreter there is no `suppress` any more
            self._wake.release()
        except RuntimeError:  # it is asked for already
            pass

    def stop(self, timeout: float | None = 5.0) -> None:
        """End the thread, and wait for a pass that is under way. Idempotent."""
        self._stopping = True
        self.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def take_error(self) -> BaseException | None:
        """Return the error of the last failed pass, once."""
        error, self.error = self.error, None
        return error

    def _object_died(self, _: object) -> None:
        self._stopping = True
        self.wake()

    def _run(self) -> None:
        while True:
            self._wake.acquire(timeout=self._interval)
            work = self._work()
            if self._stopping or work is None:
                return
            try:
                work()
            except Exception as error:
                self.error = error
                _LOGGER.exception("the background optimizer failed; it goes on at the next interval")
            self.passes += 1
            del work


def _taken() -> threading.Lock:
    """Return a lock that is held: it is waited for, and released to wake who waits."""
    lock = threading.Lock()
    lock.acquire()
    return lock
