"""One CUDA device behind the driver protocol.

The primary context is retained for as long as the driver is open or its callers hold something,
so pointers are shared with every framework in the process.

Virtual memory is `smartpool.driver.cuda.virtual`, events and streams are modules of their own; here
is the rest: raw memory, copies, and the driver's life.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from smartpool.copying import not_copied
from smartpool.driver.cuda.bindings import Bindings, load
from smartpool.driver.cuda.capture import Captures
from smartpool.driver.cuda.context import Context
from smartpool.driver.cuda.events import Events
from smartpool.driver.cuda.streams import StreamTable
from smartpool.driver.cuda.virtual import VirtualMemory
from smartpool.driver.protocol import MemoryInfo, refusal
from smartpool.errors import DriverError

__all__ = ["CudaDriver"]

_DLPACK_CUDA: Final = 2


class CudaDriver(VirtualMemory):
    """A CUDA device.

    Parameters
    ----------
    ordinal
        The device number, as this process sees devices.
    bindings
        The driver's functions; None loads `cuda.bindings`.

    Attributes
    ----------
    calls, seconds
        Calls made, by protocol name, and the seconds measured in them. Threads that call at the
        same instant may lose a count.
    context
        The primary context.
    stream
        See `StreamTable.identify`, and there for 0, 1 and 2.
    keep_stream
        See `StreamTable.keep`: for streams that are never destroyed.
    native_stream
        See `StreamTable.native`: what may be told to others.
    stream_handle
        The driver's object for a stream, as the calling thread means it.

    Raises
    ------
    DriverNotInstalledError, DriverTooOldError, DeviceNotFoundError
        When the device cannot be opened.
    """

    __reduce_ex__ = not_copied

    def __init__(self, ordinal: int = 0, bindings: Bindings | None = None) -> None:
        context = Context(bindings or load(), ordinal)
        self._closed = self._released = False
        try:
            super().__init__(context)
        except BaseException:
            context.release()
            raise
        self.dl_device = (_DLPACK_CUDA, ordinal)
        self.default_stream = 0
        self.calls = context.calls
        self._streams = StreamTable(context.bindings, self.name, context.handle, int(context.device))
        self.stream, self.stream_handle = self._streams.identify, self._streams.handle
        self.keep_stream, self.native_stream = self._streams.keep, self._streams.native
        self._events = events = Events(context, self._streams)
        self.record_event, self.event_done = events.record, events.done
        self.wait_event, self.synchronize_event = events.wait, events.synchronize
        captures = Captures(context, self._streams)
        self.is_capturing, self.beside_capture = captures.is_capturing, captures.beside

    def __repr__(self) -> str:
        return f"<CudaDriver {self.name!r}>"

    @property
    def seconds(self) -> float:
        """Seconds spent in driver calls."""
        return self.context.seconds

    @property
    def identity(self) -> str:
        """What the device is called in every process."""
        return self.context.bindings.identity(self.ordinal)

    # --- raw memory ---

    def memory_info(self) -> MemoryInfo:
        """Return free and total physical bytes, of the whole device and all its users."""
        _, free, total = self._call_here("memory_info", self._api.cuMemGetInfo, ())
        return MemoryInfo(int(free), int(total))

    def allocate(self, size: int) -> int:
        """Return the address of `size` fresh bytes (`cuMemAlloc`)."""
        self._check_allocation(size)
        address = int(self._call_here("allocate", self._api.cuMemAlloc, (size,), size=size)[1])
        self._raw[address] = size
        return address

    def free(self, address: int) -> None:
        """Give back what `allocate` returned (`cuMemFree`): blocks until the device is idle."""
        self._return(self._raw, "free", self._api.cuMemFree, (address,), address=address)

    # --- memory of the host ---

    def allocate_host(self, size: int) -> int:
        """Return the address of `size` pinned bytes of the host (`cuMemHostAlloc`), for every context."""
        self._check_allocation(size)
        portable = self._api.CU_MEMHOSTALLOC_PORTABLE
        address = int(
            self._call_here("allocate_host", self._api.cuMemHostAlloc, (size, portable), size=size)[1]
        )
        self._host[address] = size
        return address

    def free_host(self, address: int) -> None:
        """Give back what `allocate_host` returned (`cuMemFreeHost`)."""
        self._return(self._host, "free_host", self._api.cuMemFreeHost, (address,), address=address)

    def copy_to_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes of the device into pinned memory."""
        self._copy("copy_to_host", self._api.cuMemcpyDtoHAsync, destination, source, size, stream)

    def copy_from_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes of pinned memory to the device."""
        self._copy("copy_from_host", self._api.cuMemcpyHtoDAsync, destination, source, size, stream)

    # --- streams ---

    def create_stream(self) -> int:
        """Return a new stream that does not synchronize with the default stream."""
        self._refuse_when_closed("create_stream")
        flags = self._api.CUstream_flags.CU_STREAM_NON_BLOCKING
        return self._streams.add(self._call_here("create_stream", self._api.cuStreamCreate, (flags,))[1])

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream from `create_stream`; its pending work still completes."""
        gone = self._streams.remove(stream)
        try:
            self._call("destroy_stream", self._api.cuStreamDestroy, (gone,), stream=stream)
        except DriverError:
            self._streams.add(gone)
            raise
        self._finish_closing()

    def synchronize(self, stream: int | None = None) -> None:
        """Block until all work of `stream` (None: of the device's primary context) is done."""
        if self._released:
            return  # nothing can be pending: everything was given back
        if stream is None:
            self._call_here("synchronize", self._api.cuCtxSynchronize, (), stream=stream)
        else:
            handle = self.stream_handle(stream)
            self._call_here("synchronize", self._api.cuStreamSynchronize, (handle,), stream=stream)

    # --- events: the rest of the calls are bound to `Events` when the driver is made ---

    def create_event(self) -> int:
        """Return an event, fresh or recycled, that counts as done until it is recorded."""
        self._refuse_when_closed("create_event")
        return self._events.create()

    def destroy_event(self, event: int) -> None:
        """Destroy an event; waits already queued on it are unaffected."""
        self._events.destroy(event)
        self._finish_closing()

    # --- data ---

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Queue on `stream`: set `size` bytes to `value`."""
        if not 0 <= value <= 255:
            raise refusal("fill", "expected a value in 0..255", address=address, value=value)
        arguments = (address, value, size, self.stream_handle(stream))
        self._on_stream(
            "fill",
            self._api.cuMemsetD8Async,
            arguments,
            address=address,
            value=value,
            size=size,
            stream=stream,
        )

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes that do not overlap, within this device."""
        if abs(destination - source) < size:
            raise refusal("copy", "the ranges overlap", destination=destination, source=source, size=size)
        self._copy("copy", self._api.cuMemcpyDtoDAsync, destination, source, size, stream)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes after all queued work is done."""
        if size <= 0:
            raise refusal("read", "expected a size of at least 1 byte", address=address, size=size)
        self.synchronize()
        data = (ctypes.c_char * size)()
        arguments = (ctypes.addressof(data), address, size)
        self._call_here("read", self._api.cuMemcpyDtoH, arguments, address=address, size=size)
        return data.raw

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address` after all queued work is done."""
        self.synchronize()
        source = (ctypes.c_char * len(data)).from_buffer_copy(data)
        arguments = (address, ctypes.addressof(source), len(data))
        self._call_here("write", self._api.cuMemcpyHtoD, arguments, address=address, size=len(data))

    # --- life ---

    def describe(self) -> dict[str, object]:
        """Return what a reader wants to know of the device: name, memory, driver, what is supported."""
        info = self.memory_info()
        return {
            "device": self.name,
            **self.context.describe(),
            "free_bytes": info.free,
            "total_bytes": info.total,
            "granularity": self.granularity,
            "virtual_memory": bool(self.granularity),
        }

    def held(self) -> dict[str, int]:
        """Return how much of everything callers hold now. All zeros: nothing leaked."""
        raw, chunks = self._raw.copy(), self._chunks.copy()
        return {
            "raw": len(raw),
            "raw_bytes": sum(raw.values()),
            "reservations": len(self._reserved),
            "chunks": len(chunks),
            "chunk_bytes": sum(chunks.values()),
            "host_bytes": sum(self._host.copy().values()),
        }

    def check(self) -> None:
        """Nothing: CUDA has books of its own, and lets nobody look into them."""

    def close(self) -> None:
        """Take no new memory, streams or events; the context goes with the last thing given back."""
        self._closed = True
        self._finish_closing()

    # --- inside ---

    def _copy(  # noqa: PLR0917 - the call, and what it copies
        self, call: str, function: Callable[..., Any], destination: int, source: int, size: int, stream: int
    ) -> None:
        values = (destination, source, size, self.stream_handle(stream))
        self._on_stream(
            call, function, values, destination=destination, source=source, size=size, stream=stream
        )

    def _on_stream(
        self,
        call: str,
        function: Callable[..., Any],
        values: tuple[Any, ...],
        *,
        stream: int,
        **arguments: object,
    ) -> None:
        """Call the driver; only the default streams take their context from the thread."""
        if stream in self._streams.owned:
            self._call(call, function, values, stream=stream, **arguments)
        else:
            self._call_here(call, function, values, stream=stream, **arguments)

    def _check_allocation(self, size: int) -> None:
        if size <= 0:
            raise refusal("allocate", "expected a size of at least 1 byte", size=size)
        self._refuse_when_closed("allocate", size=size)

    def _refuse_when_closed(self, call: str, **arguments: object) -> None:
        if self._closed:
            raise DriverError(call, "CLOSED", arguments, advice="the driver was closed: open another one")

    def _finish_closing(self) -> None:
        """Release the context once the driver is closed and callers hold nothing."""
        if not self._closed or self._released:
            return
        with self._lock:
            held = self._raw or self._reserved or self._chunks or self._host
            if self._released or held or len(self._events) or self._streams.owned:
                return
            self._released = True
        self._events.drain()
        self.context.release()
