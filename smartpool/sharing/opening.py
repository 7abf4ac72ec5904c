"""The importing side: chunks of another process, mapped side by side as one buffer.

An opened buffer has a driver of its own, so that it may be closed anywhere, in a destructor that runs
in the middle of a pool's driver call included.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn, cast

from smartpool.buffer import Buffer
from smartpool.dlpack import DType
from smartpool.driver import open_driver
from smartpool.driver.protocol import Driver
from smartpool.errors import DeviceNotFoundError, DLPackError
from smartpool.sharing.lease import Lease
from smartpool.sharing.shared import Description

if TYPE_CHECKING:
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["ImportedMemory", "open_buffer"]


class ImportedMemory:
    """Memory of another process, as a `Buffer` wants its manager.

    Parameters
    ----------
    driver
        A driver of its own.
    base, size
        Where the chunks are mapped.
    chunks
        Their handles.
    lease
        The descriptor that holds the lease.
    """

    def __init__(self, driver: Driver, base: int, size: int, chunks: list[int], lease: int) -> None:
        self.driver = driver
        self._base = base
        self._size = size
        self._chunks = chunks
        self._lease = lease
        self._process = os.getpid()

    def free(self, pointer: int, stream: object = None) -> None:  # noqa: ARG002 - a manager's method
        """Unmap the memory, once the device has done with it, and let go of the lease."""
        if sys.is_finalizing():
            return  # the end of the process gives all back
        if os.getpid() != self._process:
            os.close(self._lease)  # a forked child has nothing else to give; its copy holds the lease too
            return
        driver = self.driver
        with driver.beside_capture():
            driver.synchronize()
        driver.unmap(self._base, self._size)
        for chunk in self._chunks:
            driver.release_chunk(chunk)
        driver.unreserve(self._base, self._size)
        driver.close()
        os.close(self._lease)

    drop = free  # what destructors call

    def stream_of(self, pointer: int) -> int:  # noqa: ARG002
        """Return the default stream: nothing is queued here on any."""
        return self.driver.default_stream

    def record_stream(self, pointer: int, stream: object) -> None:
        """Nothing: the end waits for the whole device."""

    def order_after(self, pointer: int, stream: int) -> None:
        """Nothing: what the exporter had queued is done."""

    def malloc(self, nbytes: int, stream: object = None) -> NoReturn:  # noqa: ARG002
        """Refuse a copy: there is no pool here to make it in."""
        raise DLPackError(
            f"expected a buffer of a pool to copy {nbytes} bytes beside it, got one of another process; "
            "export without copying, and let the consumer copy"
        )


def open_buffer(description: Description, descriptors: list[int], lease: int) -> Buffer:
    """Return a buffer over the chunks behind `descriptors`; see `SharedBuffer.open`."""
    with ExitStack() as undo:
        held = Lease(lease).hold()
        undo.callback(os.close, held)
        driver = _driver_for(description)
        undo.callback(driver.close)
        size = sum(description.chunks)
        base = driver.reserve(size)
        undo.callback(driver.unreserve, base, size)
        chunks: list[int] = []
        address = base
        for descriptor, length in zip(descriptors, description.chunks, strict=True):
            chunk = driver.import_chunk(descriptor, length)
            undo.callback(driver.release_chunk, chunk)
            driver.map_chunk(address, chunk)
            undo.callback(driver.unmap, address, length)
            chunks.append(chunk)
            address += length
        driver.enable_access(base, size)
        undo.pop_all()
    memory: Any = ImportedMemory(driver, base, size, chunks, held)
    manager = cast("AdvancedMemoryPoolManager", memory)
    buffer = Buffer(manager, base + description.offset, description.nbytes)
    buffer._shape = description.shape  # noqa: SLF001
    buffer._dtype = DType.parse(description.dtype)  # noqa: SLF001
    return buffer.freeze() if description.read_only else buffer


def _driver_for(description: Description) -> Driver:
    """Open the device of that identity, whatever its number is in this process."""
    if not description.identity:
        return open_driver(description.device)
    from smartpool.driver.cuda import CudaDriver, load  # noqa: PLC0415 - only where CUDA is asked for

    bindings = load()
    for ordinal in range(bindings.device_count()):
        if bindings.identity(ordinal) == description.identity:
            return CudaDriver(ordinal, bindings)
    raise DeviceNotFoundError(
        f"expected the GPU {description.identity} of the shared buffer ({description.device} where it was "
        f"exported) among those that this process sees, and it is not; CUDA_VISIBLE_DEVICES decides which"
    )
