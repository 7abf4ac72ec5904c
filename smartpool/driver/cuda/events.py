"""CUDA events behind plain integers: recorded, asked and recycled with as little Python as can be.

An event costs 1.5 us to create and destroy, and a pool wants one for every block that changes
streams, so destroyed events are kept for reuse. Only an event that is known to be done may come
back: a new event must count as done, and a pending one would not. It is known when it was seen to
be done after its last record. Asking at that moment was rejected: beside a stream capture the
question would invalidate the capture.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

from smartpool.driver.cuda.bindings import failure
from smartpool.driver.cuda.context import Context
from smartpool.driver.cuda.streams import StreamTable
from smartpool.driver.protocol import refusal
from smartpool.errors import DriverError

__all__ = ["Events"]

_SPARE: Final = 256


class Events:
    """The events of one context; the methods are those of the driver protocol.

    Parameters
    ----------
    context
        The primary context.
    streams
        The streams that events are recorded on.
    """

    __slots__ = (
        "_calls",
        "_context",
        "_lasting",
        "_live",
        "_not_ready",
        "_pending",
        "_query",
        "_record",
        "_record_context",
        "_spare",
        "_streams",
        "_success",
        "_wait",
    )

    def __init__(self, context: Context, streams: StreamTable) -> None:
        self._context = context
        self._streams = streams
        self._lasting = streams.lasting
        self._record_context = getattr(context.api, "cuCtxRecordEvent", None)
        self._calls = context.calls
        self._success, self._not_ready = context.bindings.success, context.bindings.not_ready
        self._record, self._query = context.api.cuEventRecord, context.api.cuEventQuery
        self._wait = context.api.cuStreamWaitEvent
        self._live: dict[int, Any] = {}
        self._pending: set[int] = set()  # recorded, and not seen to be done since
        self._spare: list[Any] = []

    def __len__(self) -> int:
        return len(self._live)

    def create(self) -> int:
        """Return an event, fresh or recycled, that counts as done until it is recorded."""
        try:
            event = self._spare.pop()
            self._calls["create_event"] += 1
        except IndexError:
            api = self._context.api
            flags = api.CUevent_flags.CU_EVENT_DISABLE_TIMING
            event = self._context.call_here("create_event", api.cuEventCreate, (flags,))[1]
        handle = int(event)
        self._live[handle] = event
        return handle

    def destroy(self, event: int) -> None:
        """Destroy an event; waits already queued on it are unaffected."""
        raw = self._raw("destroy_event", event)
        del self._live[event]
        if event not in self._pending and len(self._spare) < _SPARE:
            self._calls["destroy_event"] += 1
            self._spare.append(raw)
            return
        try:
            self._context.call("destroy_event", self._context.api.cuEventDestroy, (raw,), event=event)
        except DriverError:
            self._live[event] = raw
            raise
        self._pending.discard(event)

    def record(self, event: int, stream: int) -> None:
        """Make `event` stand for all work queued on `stream` up to now.

        Where the stream may have been destroyed meanwhile, the event stands for all work of the whole
        context: more than was asked for, and safe, where the driver crashes on a stream that is gone.
        """
        if stream not in self._lasting:
            self._record_everything(event, stream)
            return
        raw, handle = self._raw("record_event", event), self._streams.handle(stream)
        self._pending.add(event)
        begin = perf_counter()
        code = self._record(raw, handle)[0]
        self._context.seconds += perf_counter() - begin
        if code is self._success:
            self._calls["record_event"] += 1
        else:
            # A default stream is one of the current context. Where that is not ours CUDA refuses, since
            # the event is; so asking for the context beforehand (0.2 us) is not needed.
            self._context.call_here("record_event", self._record, (raw, handle), event=event, stream=stream)

    def _record_everything(self, event: int, stream: int) -> None:
        raw, context = self._raw("record_event", event), self._context
        if self._record_context is not None:
            self._pending.add(event)
            try:
                values = (context.raw, raw)
                context.call("record_event", self._record_context, values, event=event, stream=stream)
            except DriverError as error:
                if error.code != "FUNCTION_NOT_FOUND":
                    raise
                self._record_context = None  # the bindings know the call, the driver (before 12.5) does not
            else:
                return
        context.call_here("synchronize", context.api.cuCtxSynchronize, (), stream=stream)
        values = (raw, self._streams.handle(0))
        self._pending.add(event)
        context.call_here("record_event", self._record, values, event=event, stream=stream)

    def done(self, event: int) -> bool:
        """Return whether the work that the event stands for is done."""
        raw = self._raw("event_done", event)
        self._calls["event_done"] += 1
        begin = perf_counter()
        code = self._query(raw)[0]
        self._context.seconds += perf_counter() - begin
        if code is self._success:
            self._pending.discard(event)
            return True
        if code is self._not_ready:
            return False
        raise failure("event_done", code, {"event": event})

    def wait(self, stream: int, event: int) -> None:
        """Make later work on `stream` wait, on the device, for what the event stands for now."""
        values = (self._streams.handle(stream), self._raw("wait_event", event), 0)
        # Events may be waited for across contexts, so a default stream of another one would be accepted.
        call = self._context.call if stream in self._streams.owned else self._context.call_here
        call("wait_event", self._wait, values, stream=stream, event=event)

    def synchronize(self, event: int) -> None:
        """Block the host until the event is done."""
        raw = self._raw("synchronize_event", event)
        self._context.call("synchronize_event", self._context.api.cuEventSynchronize, (raw,), event=event)
        self._pending.discard(event)

    def drain(self) -> None:
        """Destroy the events that are kept for reuse."""
        while self._spare:
            self._context.api.cuEventDestroy(self._spare.pop())

    def _raw(self, call: str, event: int) -> Any:
        raw = self._live.get(event)
        if raw is None:
            raise refusal(call, "no such event: pass one from create_event, not destroyed", event=event)
        return raw
