"""The streams and events of a host driver, with the counting and the faults of every call.

See `queues` for how a test plays an asynchronous device with `pause` and `resume`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

from smartpool.driver.faults import Faults
from smartpool.driver.played_captures import PlayedCaptures, PlayedGraph
from smartpool.driver.protocol import handle_of
from smartpool.driver.queues import Queues
from smartpool.errors import DriverError, StreamError
from smartpool.forks import call_in_children
from smartpool.values import shown

__all__ = ["HostStreams"]


class HostStreams(ABC):
    """The half of a host driver that knows streams and events, and no memory.

    Attributes
    ----------
    calls
        How often each call of the protocol was made, failed calls included.
    seconds
        What the calls cost: modeled (`model`) or measured (`cpu`).
    faults
        Scripted failures.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.default_stream = 0
        self.calls: Counter[str] = Counter()
        self.seconds = 0.0
        self.faults = Faults()
        self._queues = Queues()
        self._renew_lock()
        call_in_children(self, HostStreams._renew_lock)
        self._captures = PlayedCaptures(self._queues)
        self.beside_capture: Callable[[], AbstractContextManager[None]] = self._captures.beside
        self._closed = False

    # --- streams ---

    def stream(self, obj: object) -> int:
        """Return the stream handle that `obj` stands for: None, or a handle of this driver."""
        if obj is None:
            return self.default_stream
        handle = handle_of(obj)  # that of a CUDA stream is not known below
        if self._queues.knows_stream(handle):
            return handle
        raise StreamError(
            f"expected None, 0 or a stream from this driver's create_stream, got {shown(obj)}: "
            f"it is destroyed, or not a stream of {self.name}"
        )

    def native_stream(self, stream: int) -> int | None:
        """Return the handle: streams here are nobody else's, and are given once."""
        return stream

    def create_stream(self) -> int:
        """Return a new stream."""
        with self._lock:
            self._begin("create_stream")
            self._refuse_when_closed("create_stream")
            return self._queues.create_stream()

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream; its pending work still completes."""
        with self._lock:
            self._begin("destroy_stream", stream=stream)
            self._queues.destroy_stream(stream)

    def synchronize(self, stream: int | None = None) -> None:
        """Block until all work of `stream` (None: of the device) is done."""
        with self._lock:
            self._begin("synchronize", stream=stream)
            self._queues.wait_idle(stream)
            if self.faults.lost is not None:
                self.faults.check("synchronize", stream=stream)

    def pause(self, stream: int | None = None) -> None:
        """Hold `stream` (None: the default one): what is queued from now on stays pending."""
        with self._lock:
            self._queues.pause(stream or 0)

    def resume(self, stream: int | None = None) -> None:
        """Do the pending work of `stream`, destroyed or not (None: the default one), and hold it no more."""
        with self._lock:
            self._queues.resume(stream or 0)

    def pending(self, stream: int | None = None) -> int:
        """Return how many pieces of work are pending on `stream` (None: the default one)."""
        with self._lock:
            return self._queues.pending(stream or 0)

    # --- captures of graphs, played ---

    def begin_capture(self, stream: int) -> None:
        """Keep what is queued on `stream` from now on, instead of doing it; see `played_captures`."""
        with self._lock:
            self._captures.begin(stream)
            self._queues.captured = stream
            self.faults.watch(self._captures.guard)

    def end_capture(self, stream: int) -> PlayedGraph:
        """Return what was queued on `stream` meanwhile; `DriverError` when the capture was ruined."""
        with self._lock:
            try:
                work = self._captures.end(stream)
            finally:
                if self._captures.stream is None:
                    self._queues.captured = None
                    self.faults.watch(None)
            return PlayedGraph(work, self._submit_all)

    def is_capturing(self, stream: int) -> int:
        """Return the id of the capture into a graph that `stream` is in, 0 for none."""
        return self._captures.number if stream == self._captures.stream else 0

    def _submit_all(self, stream: int, work: list[Callable[[], None]]) -> None:
        with self._lock:
            for piece in work:
                self._queues.submit(stream, piece)

    # --- events ---

    def create_event(self) -> int:
        """Return a new event, which counts as done until it is recorded."""
        with self._lock:
            self._begin("create_event")
            self._refuse_when_closed("create_event")
            return self._queues.create_event()

    def destroy_event(self, event: int) -> None:
        """Destroy an event; waits queued on it are unaffected."""
        with self._lock:
            self._begin("destroy_event", event=event)
            self._queues.destroy_event(event)

    def record_event(self, event: int, stream: int) -> None:
        """Make `event` stand for all work queued on `stream` up to now."""
        with self._lock:
            self._begin("record_event", event=event, stream=stream)
            self._queues.record(event, stream)

    def event_done(self, event: int) -> bool:
        """Return whether the work that the event stands for is done."""
        with self._lock:
            self._begin("event_done", event=event)
            return self._queues.is_done(event)

    def wait_event(self, stream: int, event: int) -> None:
        """Make later work on `stream` wait for what the event stands for now."""
        with self._lock:
            self._begin("wait_event", stream=stream, event=event)
            self._queues.wait(stream, event)

    def synchronize_event(self, event: int) -> None:
        """Block until the event is done."""
        with self._lock:
            self._begin("synchronize_event", event=event)
            self._queues.wait_done(event)
            if self.faults.lost is not None:
                self.faults.check("synchronize_event", event=event)

    # --- inside ---

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
        self._queues.use_lock(self._lock)

    def _count(self, call: str, **arguments: object) -> None:
        """Count the call, and let it fail if a fault says so."""
        self.calls[call] += 1
        if self.faults.alert:
            self.faults.check(call, **arguments)

    def _begin(self, call: str, **arguments: object) -> None:
        """Count a call that does nothing physical, and account for its time."""
        self._count(call, **arguments)
        self._spend(call)

    @abstractmethod
    def _spend(self, call: str) -> None:
        """Account for a call that does nothing physical."""

    def _refuse_when_closed(self, call: str, **arguments: object) -> None:
        if self._closed:
            raise DriverError(call, "CLOSED", arguments, advice="the driver was closed: open another one")
