"""What the pool must know of stream capture: is a stream being captured, and how to work beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smartpool.driver.cuda.driver import CudaDriver

__all__ = ["is_capturing", "relaxed_capture"]


def is_capturing(device: CudaDriver, stream: int) -> bool:
    """Return whether `stream` is being captured into a graph. Asking never harms the capture."""
    context = device.context
    values = (device.stream_handle(stream),)
    status = context.call_here("is_capturing", context.api.cuStreamIsCapturing, values, stream=stream)[1]
    return status is not context.api.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE


@contextmanager
def relaxed_capture(device: CudaDriver) -> Iterator[None]:
    """Let this thread make calls that a capture would forbid, such as `allocate` and `event_done`.

    What runs inside is not captured, and must not depend on captured work.
    """
    expect, api = device.context.bindings.expect, device.context.api
    relaxed = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = expect("relaxed_capture", api.cuThreadExchangeStreamCaptureMode(relaxed))
    try:
        yield
    finally:
        expect("relaxed_capture", api.cuThreadExchangeStreamCaptureMode(before))
