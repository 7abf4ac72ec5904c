"""CuPy on a SmartPool.

Every array that CuPy makes takes its memory from the pool, on CuPy's current stream, and gives it
back in the order of that stream when the last view of it dies.

What CuPy keeps is an `UnownedMemory` whose owner is a `Buffer` of ours. Rejected:
`cupy.cuda.PythonFunctionAllocator`, whose memory object can lose its free function to the garbage
collector before it is used (an array in a reference cycle then leaks), and which asks for an
address and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from smartpool.buffer import Buffer
from smartpool.errors import AllocatorError
from smartpool.heap.arena import ALIGNMENT
from smartpool.interop._frameworks import cuda_managers, framework, manager_for
from smartpool.scopes import scoped
from smartpool.smart_pool import SmartPool

__all__ = ["allocator", "install", "uninstall", "using"]

_SPECIAL = 2  # handles up to this one are default streams, which are never captured
_INSTALL = "pip install cupy-cuda13x (or cupy-cuda12x)"

_installed: tuple[Callable[[int], Any], Any] | None = None  # our allocator, and the one before it


def allocator(pool: SmartPool) -> Callable[[int], Any]:
    """Return a function for `cupy.cuda.set_allocator` or `cupy.cuda.using_allocator`.

    It returns a `cupy.cuda.MemoryPointer` of the pool's memory for use on CuPy's current stream, on
    CuPy's current device, and raises what `SmartPool.allocate` raises: out of memory is a
    `MemoryError`, as CuPy's own is.

    Raises
    ------
    MissingPackageError
        When CuPy is not installed.
    DeviceNotFoundError
        When the pool is not on CUDA devices. The function raises it too, for a device that the pool
        does not have.
    """
    cuda = framework("cupy", install=_INSTALL).cuda
    managers = cuda_managers(pool)
    pointer_to, unowned = cuda.MemoryPointer, cuda.UnownedMemory
    current_device, current_stream = cuda.device.get_device_id, cuda.get_current_stream
    capturing = cuda.runtime.streamIsCapturing
    first, allocate = next(iter(managers)), pool.allocate
    identify = managers[first].driver.stream  # its result takes the pool's quick path, a handle does not

    def allocate_for_cupy(nbytes: int) -> Any:
        device = current_device()
        if not nbytes:  # as CuPy's own pool: nothing, at no address
            return pointer_to(unowned(0, 0, None, device), 0)
        stream = current_stream().ptr
        try:
            captured = stream > _SPECIAL and capturing(stream)
        except RuntimeError:  # how CuPy says that a capture was ruined: until its end it is one all the same
            captured = True
        if device == first and not captured:
            buffer = allocate(nbytes, identify(stream) if stream else None)
        else:
            manager = manager_for(managers, device)
            handle = manager.driver.stream(stream)
            if captured:  # what a bin holds is not the graph's: the searching path
                pointer = manager.malloc_aligned(nbytes, ALIGNMENT, handle)
            else:
                pointer = manager.malloc(nbytes, handle)
            buffer = Buffer(manager, pointer, nbytes)
        return pointer_to(unowned(buffer.pointer, nbytes, buffer, device), 0)

    return allocate_for_cupy


def install(pool: SmartPool) -> None:
    """Make `pool` the allocator of CuPy, in all threads, until `uninstall`.

    Arrays that are alive keep the memory they have, from whichever allocator.

    Raises
    ------
    AllocatorError
        When a pool is installed already.
    MissingPackageError, DeviceNotFoundError
        As `allocator`.
    """
    global _installed  # noqa: PLW0603 - CuPy's allocator is one for the process, and so is this
    if _installed is not None:
        raise AllocatorError(
            "expected no SmartPool under CuPy, one is installed already; call "
            "smartpool.interop.cupy.uninstall() first"
        )
    function = allocator(pool)
    cuda = framework("cupy", install=_INSTALL).cuda
    before = cuda.get_allocator()
    cuda.set_allocator(function)
    _installed = (function, before)


def uninstall() -> None:
    """Give CuPy the allocator back that it had before `install`. Does nothing when none is installed.

    Raises
    ------
    AllocatorError
        When someone else set another allocator meanwhile; that one is left in place.
    """
    global _installed
    if _installed is None:
        return
    cuda = framework("cupy", install=_INSTALL).cuda
    (function, before), _installed = _installed, None
    if cuda.get_allocator() is not function:
        raise AllocatorError(
            "expected CuPy's allocator to be the one that install() set, but another was set since; "
            "it stays in place"
        )
    cuda.set_allocator(before)


@scoped
def using(pool: SmartPool) -> Iterator[None]:
    """Let CuPy allocate from `pool` inside the ``with`` block, in this thread."""
    with framework("cupy", install=_INSTALL).cuda.using_allocator(allocator(pool)):
        yield
