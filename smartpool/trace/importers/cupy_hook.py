"""Recording what CuPy's memory pool is asked for, through CuPy's own memory hooks.

CuPy calls a hook's methods around every request to its pool, with keyword arguments: after an
allocation with the bytes that were asked for, before a free with the pointer. That is the order that a
`Recorder` wants. Hooks belong to the thread that entered them: work on other threads is not seen.

CuPy gives a block back to the stream for which it was allocated, whichever stream is current when the
array dies, and so a free is recorded on the stream of its allocation.
"""

from __future__ import annotations

from typing import Any

from smartpool.errors import DriverNotInstalledError
from smartpool.trace.recorder import Recorder

__all__ = ["CupyMemoryHook"]


def CupyMemoryHook(recorder: Recorder, *, device: int | None = None) -> Any:  # noqa: N802  it makes a class's object
    """Return a ``cupy.cuda.MemoryHook`` that records into `recorder`; enter it with ``with``.

    Parameters
    ----------
    recorder
        Where the events go.
    device
        Record this device alone; None records all, in one trace.

    Raises
    ------
    DriverNotInstalledError
        When CuPy is not installed.
    """
    try:
        from cupy import cuda  # noqa: PLC0415  asked for here and nowhere else
    except ImportError as error:
        raise DriverNotInstalledError(
            f"expected CuPy to be installed, got {error}; install cupy-cuda12x or cupy-cuda13x"
        ) from None

    class RecordingHook(cuda.MemoryHook):  # type: ignore[misc]  # CuPy has no types
        name = "SmartPoolRecorder"

        def malloc_postprocess(self, **event: Any) -> None:
            # The pointer is 0 when the request failed, and that of arrays of no bytes.
            if event["mem_ptr"] and device in (None, event["device_id"]):
                recorder.allocated(event["mem_ptr"], event["size"], cuda.get_current_stream().ptr)

        def free_preprocess(self, **event: Any) -> None:
            if event["mem_ptr"] and device in (None, event["device_id"]):
                recorder.freed(event["mem_ptr"])

    return RecordingHook()
