"""Stream capture on CUDA: is a stream being captured, and how to work beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from smartpool.driver.cuda.context import Context
from smartpool.driver.cuda.streams import StreamTable

__all__ = ["Captures"]

_NAMELESS: Final = -1  # captures that were ruined, or whose graph says more than the question can answer


class Captures:
    """What a driver can tell of captures, of whoever's.

    Parameters
    ----------
    context
        The primary context.
    streams
        Its streams.
    """

    __slots__ = ("_active", "_context", "_none", "_streams")

    def __init__(self, context: Context, streams: StreamTable) -> None:
        self._context = context
        self._streams = streams
        self._none = context.api.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        self._active = context.api.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE

    def is_capturing(self, stream: int) -> int:
        """Return the id of the capture that `stream` is in, 0 for none. Asking never harms the capture."""
        if not stream:  # never captured, and asking about it would ruin the capture of a blocking stream
            return 0
        if self._streams.is_gone(stream):
            return 0
        context, values = self._context, (self._streams.handle(stream),)
        status = context.call("is_capturing", context.api.cuStreamIsCapturing, values, stream=stream)[1]
        if status is self._none:
            return 0
        answer = context.api.cuStreamGetCaptureInfo(*values)
        known = answer[0] is context.bindings.success and answer[1] is self._active
        return int(answer[2]) if known else _NAMELESS

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Let this thread make calls that a capture would forbid, such as `allocate` and `event_done`."""
        expect, api = self._context.bindings.expect, self._context.api
        relaxed = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        before = expect("beside_capture", api.cuThreadExchangeStreamCaptureMode(relaxed))
        try:
            yield
        finally:
            expect("beside_capture", api.cuThreadExchangeStreamCaptureMode(before))
