"""Traffic to look at: a recorded trace, played over and over against a pool at a speed that eyes follow."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from smartpool.errors import OutOfMemoryError
from smartpool.forks import renewed
from smartpool.trace.trace import ALLOCATE

if TYPE_CHECKING:
    from smartpool.trace.trace import Trace

__all__ = ["Traffic"]

_TICK_S: Final = 0.02
_PATIENCE_S: Final = 10.0


class Memory(Protocol):
    """Where traffic goes: a `SmartPool`, or the pool of one device."""

    def malloc(self, nbytes: int) -> int:
        """Return the address of a block."""

    def free(self, pointer: int) -> None:
        """Take a block back."""


class Traffic:
    """A thread that plays `trace` against `pool` until it is stopped.

    Parameters
    ----------
    pool, trace
        What is played where, on the pool's first device and its default stream.
    events_per_second
        How fast.
    """

    def __init__(self, pool: Memory, trace: Trace, events_per_second: float) -> None:
        self._pool = pool
        self._trace = trace
        self._rate = events_per_second
        self._stop = renewed(self, "_stop", threading.Event)
        self._begun = renewed(self, "_begun", threading.Event)
        self.error: BaseException | None = None
        self.failed_requests = 0
        self._thread = threading.Thread(target=self._run, name="smartpool-traffic", daemon=True)

    def start(self) -> None:
        """Begin to play."""
        self._thread.start()

    def wait_begun(self) -> None:
        """Wait until something was played, or cannot be; some seconds at most."""
        self._begun.wait(_PATIENCE_S)

    def stop(self) -> None:
        """Stop, and free what is live. What went wrong on the thread is raised here."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(_TICK_S):
                self._play_once()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self.error = error
        finally:
            self._begun.set()

    def _play_once(self) -> None:
        """Play the trace to its end, or until `stop`; free what is live then."""
        numbers = self._trace.allocation_numbers().tolist()
        kinds = (self._trace.op == ALLOCATE).tolist()
        sizes = self._trace.size.tolist()
        live: dict[int, int] = {}
        begun = time.monotonic()
        done = 0
        try:
            while done < len(sizes) and not self._stop.wait(_TICK_S):
                due = min(len(sizes), int((time.monotonic() - begun) * self._rate))
                for event in range(done, due):
                    self._play(kinds[event], numbers[event], sizes[event], live)
                if due:
                    self._begun.set()
                done = due
            self._begun.set()
        finally:
            for pointer in live.values():
                self._pool.free(pointer)

    def _play(self, allocates: bool, number: int, nbytes: int, live: dict[int, int]) -> None:  # noqa: FBT001
        if not allocates:
            pointer = live.pop(number, None)  # None: the request failed
            if pointer is not None:
                self._pool.free(pointer)
            return
        try:
            live[number] = self._pool.malloc(nbytes)
        except OutOfMemoryError:
            self.failed_requests += 1
