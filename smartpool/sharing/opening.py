"""The importing side: chunks of another process, mapped side by side as one buffer.

An opened buffer has a driver of its own, so that it may be closed anywhere, in a destructor that runs
in the middle of a pool's driver call included.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, cast

from smartpool.buffer import Buffer
from smartpool.descriptors import Descriptor
from smartpool.dlpack import DType
from smartpool.driver import open_driver
from smartpool.driver.protocol import Driver
from smartpool.driver.returning import Returning
from smartpool.errors import DeviceNotFoundError, DLPackError
from smartpool.sharing.endings import end, keep, sweep
from smartpool.sharing.lease import hold_lease
from smartpool.sharing.wire import Description

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["ImportedMemory", "open_buffer"]


class _Opened:
    """Memory of another process as long as it is mapped here, or some of it is left.

    Parameters
    ----------
    memory
        Who needs it.
    driver
        Of its own.
    lease
        What holds the lease.
    """

    def __init__(self, memory: ImportedMemory, driver: Driver, lease: Descriptor) -> None:
        self.freed = False
        self.driver = driver
        self._memory = weakref.ref(memory)
        self._lease = lease
        self._process = os.getpid()
        self._undos: list[tuple[Callable[..., None], tuple[int, ...]]] = [(driver.close, ())]
        self._returning = Returning()

    def map(self, description: Description, files: Sequence[Descriptor]) -> int:
        """Map the chunks, and return where. What was done of it when it fails is undone by `end`."""
        driver = self.driver
        chunks: list[int] = []
        for file, length in zip(files, description.chunks, strict=True):
            chunk = driver.import_chunk(file.fileno(), length)
            self._undos.append((driver.release_chunk, (chunk,)))
            chunks.append(chunk)
        size = sum(description.chunks)
        base = driver.reserve(size)
        self._undos.append((driver.unreserve, (base, size)))
        self._undos.append((self._unmap, (base, size)))
        address = base
        for chunk, length in zip(chunks, description.chunks, strict=True):
            driver.map_chunk(address, chunk)
            address += length
        driver.enable_access(base, size)
        return base

    @property
    def over(self) -> bool:
        """Whether nobody uses it any more."""
        return self.freed or self._memory() is None

    def end(self) -> bool:
        """Unmap the memory, once the device has done with it, and then let go of the lease."""
        if (
            self._process == os.getpid()
        ):  # a forked child has nothing else to give; its copy holds the lease too
            while self._undos:
                undo, arguments = self._undos[-1]
                self._returning(undo, *arguments)
                self._undos.pop()
                self._returning.done(*arguments)
        self._lease.close()
        return True

    def _unmap(self, base: int, size: int) -> None:
        with self.driver.beside_capture():
            self.driver.synchronize()
        self.driver.unmap(base, size)


class ImportedMemory:
    """Memory of another process, as a `Buffer` wants its manager.

    Parameters
    ----------
    driver
        A driver of its own.
    lease
        What holds the lease.
    """

    beside_capture = False

    def __init__(self, driver: Driver, lease: Descriptor) -> None:
        self.driver = driver
        self.opened = _Opened(self, driver, lease)
        keep(self.opened)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing() and "opened" in self.__dict__ and not self.opened.freed:  # nobody could free it
            self.opened.freed = True
            sweep()

    def free(self, pointer: int, stream: object = None) -> None:  # noqa: ARG002 - a manager's method
        """Unmap the memory, once the device has done with it, and let go of the lease."""
        self.opened.freed = True
        end(self.opened)

    drop = free  # what destructors call

    def stream_of(self, pointer: int) -> int:  # noqa: ARG002
        """Return the default stream: nothing is queued here on any."""
        return self.driver.default_stream

    def record_stream(self, pointer: int, stream: object) -> None:
        """Nothing: the end waits for the whole device."""

    def order_after(self, pointer: int, stream: int) -> None:
        """Nothing: what the exporter had queued is done."""

    def require_awake(self, pointer: int) -> None:
        """Nothing: a handle of this process keeps the memory, whatever the exporter does."""

    def working(self) -> AbstractContextManager[None]:
        """Nothing: nobody else calls this driver."""
        return nullcontext()

    def malloc(self, nbytes: int, stream: object = None) -> NoReturn:  # noqa: ARG002
        """Refuse a copy: there is no pool here to make it in."""
        raise DLPackError(
            f"expected a buffer of a pool to copy {nbytes} bytes beside it, got one of another process; "
            "export without copying, and let the consumer copy"
        )


def open_buffer(description: Description, files: Sequence[Descriptor]) -> Buffer:
    """Return a buffer over what is behind `files`, chunks and a lease; see `SharedBuffer.open`."""
    sweep()
    memory = ImportedMemory(_driver_for(description), hold_lease(files[-1]))
    try:
        base = memory.opened.map(description, files[:-1])
    except BaseException:  # the caller sees this, and not what undoing it says: what is left is tried again
        memory.opened.freed = True
        sweep()
        raise
    manager = cast("AdvancedMemoryPoolManager", cast("Any", memory))
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
