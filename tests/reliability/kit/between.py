"""Two calls, of which one is stopped before a chosen line while the other runs on another thread.

Any interleaving that a lock allows can come about; here each comes about on purpose, one after the other.
The second call runs to its end, or until it waits for the pool's lock, which the first one holds; then the
first goes on.
"""

import sys
import threading
import time

from rooms import POOL
from waiting import PATIENCE_S

TRACED = tuple(f"/smartpool/{part}" for part in (*POOL, "buffer.py"))


class WatchedLock:
    """A re-entrant lock that knows who waits for it."""

    def __init__(self):
        self._lock = threading.RLock()
        self.waiting = set()

    def acquire(self, blocking=True, timeout=-1):  # noqa: FBT002 - as locks have it
        if self._lock.acquire(blocking=False):
            self.waiting.discard(threading.get_ident())
            return True
        if not blocking:
            return False
        here = threading.get_ident()
        self.waiting.add(here)
        try:
            return self._lock.acquire(timeout=timeout)
        finally:
            self.waiting.discard(here)

    def release(self):
        self._lock.release()

    def _is_owned(self):
        owned = self._lock._is_owned()
        if not owned:  # who asks sleeps until the owner's call is over: `CriticalSection.wait_for_turn`
            self.waiting.add(threading.get_ident())
        return owned

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self._lock.release()


class Call:
    """A call on a thread of its own, and what came of it."""

    def __init__(self, function):
        self.function = function
        self.raised = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            self.function()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.raised = error


class StoppedCall(Call):
    """A call that is stopped before its first line that was not seen, until `go_on`."""

    def __init__(self, function, seen):
        super().__init__(function)
        self.seen = seen
        self.place = None
        self.here, self.go = threading.Event(), threading.Event()

    def run(self):
        sys.settrace(self._trace)
        try:
            super().run()
        finally:
            sys.settrace(None)
            self.here.set()

    def _trace(self, frame, event, _):
        if not any(part in frame.f_code.co_filename.replace("\\", "/") for part in TRACED):
            return None
        place = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and self.place is None and place not in self.seen:
            self.place = place
            self.here.set()
            assert self.go.wait(PATIENCE_S)
        return self._trace

    def go_on(self):
        self.go.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the first call hangs"


def interleaved(first, second, *, seen, lock):
    """Run `first`, stopped before a line that is not in `seen` yet, with `second` meanwhile.

    Returns both calls; None for the second where the first came to its end, as every line was seen.
    """
    one = StoppedCall(first, seen)
    one.thread.start()
    assert one.here.wait(PATIENCE_S), "the first call hangs"
    if one.place is None:
        one.go_on()
        return one, None
    seen.add(one.place)
    two = Call(second)
    two.thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while two.thread.is_alive() and two.thread.ident not in lock.waiting:
        assert time.monotonic() < deadline, f"the second call hangs while the first stands at {one.place}"
        time.sleep(0.0001)
    one.go_on()
    two.thread.join(PATIENCE_S)
    assert not two.thread.is_alive(), "the second call hangs"
    return one, two
