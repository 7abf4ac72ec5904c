"""Streams and events of the host drivers: an asynchronous device that a test plays by hand.

By default work is done as it is queued. `pause` holds a stream: what is queued on it afterwards
(fills, copies, event records, waits) stays pending until `resume`. A stream that waits for an
event holds itself until the event is done. So every interleaving that a device could show can be
set up on one thread, and repeated.

An event is a name; what it stands for is the `Marker` of its latest record. Waits hold markers,
not events, so recording an event again, or destroying it, does not change what others wait for.

Every method is called with the driver's lock held; the conditions share that lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from smartpool.driver.protocol import refusal
from smartpool.errors import InvariantError, StreamError

__all__ = ["FIRST_HANDLE", "Queues"]

FIRST_HANDLE = 16
"""Handles of streams and events start here: 0, 1 and 2 have a meaning in CUDA and DLPack."""


@dataclass(slots=True, eq=False)
class Marker:
    """A point in a stream's work, and the streams that wait for it."""

    done: bool = False
    waiters: list[_Stream] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Stream:
    handle: int
    paused: bool = False
    pending: deque[Callable[[], None] | _Record | _Wait] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Record:
    marker: Marker


@dataclass(slots=True, eq=False)
class _Wait:
    marker: Marker


_DONE = Marker(done=True)


class Queues:
    """The streams and events of one host driver, which says by `use_lock` what guards them; 0 exists."""

    __slots__ = ("_changed", "_destroyed", "_events", "_inconsistent", "_next_handle", "_streams", "captured")

    _changed: threading.Condition

    def __init__(self) -> None:
        self._streams = {0: _Stream(0)}
        self._destroyed: dict[int, _Stream] = {}
        self._events: dict[int, Marker] = {}
        self._next_handle = FIRST_HANDLE
        self.captured: int | None = None  # a stream whose pending work is a graph's, and waited for by nobody
        self._inconsistent = False  # an interrupt ended `_run`: streams that could go on may not have

    def use_lock(self, lock: threading.Lock) -> None:
        """Let waits give up this lock, which the driver holds around every call."""
        self._changed = threading.Condition(lock)

    # --- streams ---

    def create_stream(self) -> int:
        """Return the handle of a new stream."""
        handle = self._new_handle()
        self._streams[handle] = _Stream(handle)
        return handle

    def destroy_stream(self, handle: int) -> None:
        """Forget a stream; work that is pending on it still completes."""
        if handle == 0:
            raise StreamError("expected a stream from create_stream, got the default stream: it stays")
        stream = self._stream(handle)
        del self._streams[handle]
        if stream.pending:
            self._destroyed[handle] = stream

    def knows_stream(self, handle: int) -> bool:
        """Return whether `handle` is a live stream."""
        return handle in self._streams

    def is_idle(self, handle: int) -> bool:
        """Return whether work queued on the stream now would be done at once."""
        stream = self._stream(handle)
        return not stream.paused and not stream.pending

    def submit(self, handle: int, work: Callable[[], None]) -> None:
        """Queue `work` on a stream, and do it if nothing holds it."""
        stream = self._stream(handle)
        self._inconsistent = True
        stream.pending.append(work)
        self._run(stream)

    def pause(self, handle: int) -> None:
        """Hold the stream: work queued from now on stays pending."""
        self._stream(handle).paused = True

    def resume(self, handle: int) -> None:
        """Do what is pending on the stream, destroyed or not, and hold it no longer."""
        stream = self._destroyed.get(handle) or self._stream(handle)
        self._inconsistent = True
        stream.paused = False
        self._run(stream)

    def pending(self, handle: int) -> int:
        """Return how many pieces of work wait on the stream."""
        return len((self._destroyed.get(handle) or self._stream(handle)).pending)

    def take_pending(self, handle: int) -> list[Callable[[], None]]:
        """Return the work that waits on a held stream, which then has none; records and waits are dropped."""
        stream = self._stream(handle)
        work = [item for item in stream.pending if not isinstance(item, _Record | _Wait)]
        stream.pending.clear()
        self._changed.notify_all()
        return work

    def wait_idle(self, handle: int | None) -> None:
        """Block until the stream (None: every stream) has nothing pending. Lets other threads in."""
        streams = (
            [*self._streams.values(), *self._destroyed.values()] if handle is None else [self._stream(handle)]
        )
        self._changed.wait_for(
            lambda: not any(stream.pending for stream in streams if stream.handle != self.captured)
        )

    # --- events ---

    def create_event(self) -> int:
        """Return a new event, which counts as done."""
        handle = self._new_handle()
        self._events[handle] = _DONE
        return handle

    def destroy_event(self, event: int) -> None:
        """Forget an event. What waits for its marker goes on waiting."""
        self._marker("destroy_event", event)
        del self._events[event]

    def record(self, event: int, handle: int) -> None:
        """Let the event stand for all that is queued on the stream now."""
        self._marker("record_event", event)
        stream = self._stream(handle)
        if not stream.paused and not stream.pending:
            self._events[event] = _DONE
            return
        marker = Marker()
        stream.pending.append(_Record(marker))  # first: an event must not wait for what was never queued
        self._events[event] = marker

    def is_done(self, event: int) -> bool:
        """Return whether what the event stands for is done."""
        return self._marker("event_done", event).done

    def wait(self, handle: int, event: int) -> None:
        """Make later work on the stream wait for what the event stands for now."""
        marker = self._marker("wait_event", event)
        stream = self._stream(handle)
        if marker.done:
            return
        self._inconsistent = True
        stream.pending.append(_Wait(marker))
        self._run(stream)

    def wait_done(self, event: int) -> None:
        """Block until the event is done. Lets other threads in."""
        marker = self._marker("synchronize_event", event)
        self._changed.wait_for(lambda: marker.done)

    # --- the whole ---

    def check(self) -> None:
        """Raise `InvariantError` unless every stream that could go on has gone on."""
        if self._inconsistent:
            self._recover()
        for stream in (*self._streams.values(), *self._destroyed.values()):
            if stream.paused or not stream.pending:
                continue
            head = stream.pending[0]
            if not isinstance(head, _Wait) or head.marker.done or stream not in head.marker.waiters:
                raise InvariantError(f"stream {stream.handle} is held by nothing, yet has {head} pending")
        for handle, stream in self._destroyed.items():
            if handle in self._streams or not stream.pending:
                raise InvariantError(f"destroyed stream {handle} is live or has nothing pending")

    def _run(self, first: _Stream) -> None:
        """Do all pending work that nothing holds, on this stream and on those that it lets go on.

        A piece leaves its queue after it was done, so an interrupt may do it again but never lose it.
        """
        self._inconsistent = True
        ready = [first]
        while ready:
            stream = ready.pop()
            while stream.pending and not stream.paused:
                head = stream.pending[0]
                if isinstance(head, _Record):
                    head.marker.done = True
                    ready += head.marker.waiters
                    head.marker.waiters.clear()
                elif not isinstance(head, _Wait):
                    head()
                elif not head.marker.done:
                    if stream not in head.marker.waiters:
                        head.marker.waiters.append(stream)
                    break
                stream.pending.popleft()
            if not stream.pending:
                self._destroyed.pop(stream.handle, None)
        self._inconsistent = False
        self._changed.notify_all()

    def _recover(self) -> None:
        """Let every stream go on, after an interrupt in `_run`."""
        for stream in (*self._streams.values(), *self._destroyed.values()):
            self._run(stream)

    def _new_handle(self) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        return handle

    def _stream(self, handle: int) -> _Stream:
        if self._inconsistent:
            self._recover()
        stream = self._streams.get(handle)
        if stream is None:
            raise StreamError(
                f"expected 0 or a stream from this driver's create_stream, got {handle!r}: "
                "it is destroyed, or a stream of another device"
            )
        return stream

    def _marker(self, call: str, event: int) -> Marker:
        if self._inconsistent:
            self._recover()
        marker = self._events.get(event)
        if marker is None:
            raise refusal(call, "no such event: pass one from create_event, not destroyed", event=event)
        return marker
