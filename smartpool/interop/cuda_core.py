"""cuda.core on a SmartPool: a `MemoryResource` whose buffers are the pool's.

``Device.memory_resource = memory_resource(pool)`` makes it the device's own; or call its `allocate`.
A buffer is freed in the order of the stream that it was allocated on, or of the one that
``Buffer.close(stream)`` and ``Buffer.set_deallocation_stream`` name.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from smartpool.interop._frameworks import framework, one_manager
from smartpool.smart_pool import SmartPool

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["memory_resource"]

_INSTALL: Final = "pip install cuda-core"


def memory_resource(pool: SmartPool, device_id: int | None = None) -> Any:
    """Return a `cuda.core.MemoryResource` over the CUDA device `device_id` of `pool`, or its first.

    The resource keeps the pool alive. Raises `MissingPackageError` where cuda.core is not installed, and
    `DeviceNotFoundError` when the pool has no such device.
    """
    ordinal, manager = one_manager(pool, device_id)
    return _resource_class()(pool, manager, ordinal)


@cache
def _resource_class() -> type:
    """Return the subclass of cuda.core's `MemoryResource`, made when it is first needed."""
    core = framework("cuda.core", install=_INSTALL)
    if not hasattr(core, "Buffer"):  # before 0.5
        core = framework("cuda.core.experimental", install=_INSTALL)
    from_handle, finalizing = core.Buffer.from_handle, sys.is_finalizing

    class SmartPoolMemoryResource(core.MemoryResource):  # type: ignore[misc, name-defined]
        """Device memory of a SmartPool as cuda.core wants it."""

        def __init__(self, pool: SmartPool, manager: AdvancedMemoryPoolManager, ordinal: int) -> None:
            self._pool = pool
            self._manager = manager
            self._ordinal = ordinal

        def __repr__(self) -> str:
            return f"<SmartPoolMemoryResource over {self._pool!r}>"

        def allocate(self, size: int, stream: Any = None) -> Any:
            """Return a buffer of `size` bytes for use on `stream`, on which it is later freed too."""
            manager = self._manager
            pointer = manager.malloc(size, manager.driver.stream(stream) or None)
            try:
                return _make_buffer(from_handle, pointer, size, self, stream)
            except Exception:  # behind an interrupt there may be a buffer, which frees the block itself
                manager.free(pointer)
                raise

        def deallocate(self, ptr: Any, size: int, stream: Any = None) -> None:  # noqa: ARG002 - cuda.core's
            """Free what `allocate` gave, behind the work queued so far on `stream`."""
            if not finalizing():  # the modules may be empty then
                self._manager.drop(int(ptr), stream)

        @property
        def is_device_accessible(self) -> bool:
            """Whether kernels can use the memory: yes."""
            return True

        @property
        def is_host_accessible(self) -> bool:
            """Whether the host can use the memory: no."""
            return False

        @property
        def is_managed(self) -> bool:
            """Whether it is unified memory: no."""
            return False

        @property
        def device_id(self) -> int:
            """The CUDA device number."""
            return self._ordinal

    return SmartPoolMemoryResource


def _make_buffer(from_handle: Any, pointer: int, size: int, resource: Any, stream: Any) -> Any:
    """Return cuda.core's buffer; from 1.0 on it remembers the stream itself."""
    if stream is None:
        return from_handle(pointer, size, mr=resource)
    try:
        return from_handle(pointer, size, mr=resource, stream=stream)
    except TypeError:
        return from_handle(pointer, size, mr=resource)
