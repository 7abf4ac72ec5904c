"""The critical section of a pool: one call at a time writes its state, and none in the middle of another.

Problem: the lock is to be reentrant, since a destructor or a signal handler may run in the middle of a call
on the same thread and free there; but it must not write what that call is writing. And an exception that
comes out of the middle, an interrupt or a bug, leaves the state half written.
Method: beside the lock a mark says that a call is under way; who would begin another on the same thread is
refused. Another mark says that a call was broken off, and the next one recovers first. Who comes while a
call of another thread is under way sleeps and looks again, and does not queue in the lock: who holds that
would wait for the interpreter behind all of them after each driver call (a convoy: 1 to 3 ms a request with
eight threads).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from smartpool.errors import DriverError, InvariantError, ReentrantCallError, SmartPoolError
from smartpool.forks import renewed

__all__ = ["CriticalSection", "is_whole", "reentered"]

_SHORTEST_S: Final = 20e-6
_LONGEST_S: Final = 1e-3


class CriticalSection:
    """The lock of one pool, and what is known of who holds it.

    Attributes
    ----------
    lock
        Held for every write, and where something is only to be looked at.
    entered
        Whether a call is writing: never true twice on one thread.
    torn
        Whether a call was broken off in the middle.
    recovering
        Whether the state is being made whole.
    """

    def __init__(self) -> None:
        self.lock = renewed(self, "lock", threading.RLock)
        self.entered = renewed(self, "entered", bool)
        self.torn = False
        self.recovering = False

    def wait_for_turn(self) -> None:
        """Sleep while another thread writes; return at once in the middle of this thread's own writing."""
        pause = _SHORTEST_S
        owned = self.lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 - of CPython's own lock
        while self.entered and not owned():
            time.sleep(pause)
            pause = min(1.1 * pause, _LONGEST_S)

    @contextmanager
    def writing(self, recover: Callable[[], None]) -> Iterator[None]:
        """Hold the lock and write; `ReentrantCallError` in the middle of this thread's own writing.

        `recover` makes the state whole first, if a call was broken off.
        """
        if self.entered:
            self.wait_for_turn()
        with self.lock:
            if self.entered:
                raise reentered()
            try:
                self.entered = True
                if self.torn:
                    self.recover(recover)
                yield
            except BaseException as error:
                self.torn = True  # first, since the question may be interrupted, too
                self.torn = self.recovering or not is_whole(error)
                raise
            finally:
                self.entered = False

    def recover(self, recover: Callable[[], None]) -> None:
        """Make the state whole after a call that was broken off."""
        self.recovering = True  # until it is done: what fails here is to be done again
        recover()
        self.torn = self.recovering = False


def reentered() -> ReentrantCallError:
    """Return the error of a request in the middle of the same thread's own."""
    return ReentrantCallError(
        "expected no request in the middle of this thread's own request: a destructor, a weak reference's "
        "callback or a signal handler made one while the pool was searching; do it from outside of those"
    )


def is_whole(error: BaseException) -> bool:
    """Return whether a call that ended with `error` left the state whole: it refused, or undid its steps.

    What else comes out of the middle of a call is an interrupt, a failure of the host, or a bug; and
    when a driver call failed in undoing the steps of a call that was broken off, that hides behind it.
    """
    behind: BaseException | None = error
    while isinstance(behind, DriverError):
        behind = behind.__cause__ or behind.__context__
    return behind is None or (isinstance(behind, SmartPoolError) and not isinstance(behind, InvariantError))
