"""Numba on a SmartPool: an External Memory Management plugin, interface version 1.

Device arrays of `numba.cuda` take their memory from the pool; pinned and mapped host memory stays
Numba's own. `install` sets the plugin; ``NUMBA_CUDA_MEMORY_MANAGER=smartpool.interop.numba`` sets it
from the environment, with a pool on every device that Numba opens.
"""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import AllocatorError, UnsupportedError
from smartpool.interop._frameworks import cuda_managers, framework, manager_for
from smartpool.smart_pool import SmartPool

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["install", "manager_class"]

_INSTALL: Final = "pip install 'numba-cuda[cu13]' (or [cu12])"

_installed: SmartPool | None = None


def manager_class(pool: SmartPool) -> type:
    """Return a memory manager class over `pool`, for `numba.cuda.set_memory_manager`.

    Requests are for Numba's default stream, as Numba's interface names none. An array that another
    stream uses must not be dropped before that stream is done, or be told by ``record_stream`` of the
    pool's manager; Numba's own allocator asks for no less.

    Raises
    ------
    MissingPackageError
        When Numba is not installed.
    DeviceNotFoundError
        When the pool is not on CUDA devices.
    """
    return _make_class(partial(manager_for, cuda_managers(pool)))


def install(pool: SmartPool) -> None:
    """Make `pool` the allocator of `numba.cuda` for the contexts that it opens from now on.

    Raises
    ------
    AllocatorError
        When a pool is installed already, or Numba has opened a context: a context keeps its manager.
    MissingPackageError, DeviceNotFoundError
        As `manager_class`.
    """
    global _installed  # noqa: PLW0603 - Numba's manager is one for the process
    if _installed is not None:
        raise AllocatorError(
            f"expected Numba to have no SmartPool yet, but {_installed!r} is installed, and stays so; "
            "use that one"
        )
    made = manager_class(pool)
    cuda = framework("numba.cuda", install=_INSTALL)
    if _has_context(cuda):
        raise AllocatorError(
            "expected Numba not to have opened a CUDA context yet; call install() before the first "
            "numba.cuda array or kernel"
        )
    cuda.set_memory_manager(made)
    _installed = pool


def _has_context(cuda: Any) -> bool:
    """Return whether some device of Numba's has a context already."""
    devices = cuda.cudadrv.driver.driver.devices.values()
    return any(device.primary_context is not None for device in devices)


def _make_class(manager_of: Any) -> type:
    """Return a subclass of Numba's base class over the managers that `manager_of` finds by device number."""
    cuda = framework("numba.cuda", install=_INSTALL)
    pointer_type, memory_info = cuda.MemoryPointer, cuda.MemoryInfo

    class SmartPoolMemoryManager(cuda.HostOnlyCUDAMemoryManager):  # type: ignore[misc, name-defined]
        """Device memory of a SmartPool for one context of Numba's."""

        def _manager(self) -> AdvancedMemoryPoolManager:
            found: AdvancedMemoryPoolManager = manager_of(self.context.device.id)
            return found

        def initialize(self) -> None:
            """Find the context's device in the pool now, so that a missing one is told early."""
            self._manager()

        def memalloc(self, size: int) -> Any:
            """Return a memory pointer of `size` bytes, freed when it dies."""
            manager = self._manager()
            pointer = manager.malloc(size)
            finalizer = partial(_free, sys.is_finalizing, manager.drop, pointer)
            return pointer_type(self.context, ctypes.c_void_p(pointer), size, finalizer=finalizer)

        def get_memory_info(self) -> Any:
            """Return what a request could get at most, and the most that the pool may ever hold."""
            manager = self._manager()
            total = manager.driver.memory_info().total
            return memory_info(free=manager.available_bytes, total=manager.config.cap(total))

        def get_ipc_handle(self, memory: Any) -> Any:
            """Refuse: memory that is mapped piece by piece has no such handle."""
            raise UnsupportedError(
                f"expected memory of cuMemAlloc for an IPC handle, got {memory!r} of a SmartPool, whose "
                "memory is mapped from chunks; allocate what other processes read by Numba's own manager"
            )

        @property
        def interface_version(self) -> int:
            """The version of Numba's interface that this class keeps to."""
            return 1

    return SmartPoolMemoryManager


def _free(finalizing: Any, free: Any, pointer: int) -> None:
    """Free `pointer`, unless the interpreter is ending: globals may be gone then, so none is used."""
    if not finalizing():
        free(pointer)


def __getattr__(name: str) -> Any:
    """Make the class that Numba looks for when the environment names this module."""
    if name != "_numba_memory_manager":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    pools: dict[int, SmartPool] = {}

    def manager_of(ordinal: int) -> AdvancedMemoryPoolManager:
        if ordinal not in pools:
            pools[ordinal] = SmartPool(f"cuda:{ordinal}")
        return cuda_managers(pools[ordinal])[ordinal]

    return _make_class(manager_of)
