"""Launch shapes: how large the blocks of a kernel should be, as the driver's occupancy calls say.

Occupancy is the share of a multiprocessor's threads that can be resident at once with a kernel's use
of registers and shared memory. It bounds how much latency the device can hide; more is not always
faster, so the shape is a place to start from, and `occupancy` says what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from smartpool.driver.cuda.driver import CudaDriver

__all__ = ["LaunchShape", "kernel_handle", "launch_shape"]

_WARP: Final = 32
_NAMES: Final = ("handle", "ptr", "function", "kernel", "_handle")
_DEPTH: Final = 4


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """A shape for a kernel, and what it uses of the device.

    Attributes
    ----------
    grid
        Blocks: enough for the work that was told, or as many as fill the device once.
    block
        Threads of a block.
    shared_bytes
        Dynamic shared memory of a block.
    blocks_per_multiprocessor
        How many blocks of this size are resident on a multiprocessor at once.
    occupancy
        The share of a multiprocessor's threads that are then in use, in (0, 1].
    """

    grid: int
    block: int
    shared_bytes: int
    blocks_per_multiprocessor: int
    occupancy: float


def launch_shape(
    device: CudaDriver,
    kernel: object,
    *,
    threads: int | None = None,
    shared_bytes: int | Callable[[int], int] = 0,
    block_limit: int = 0,
) -> LaunchShape:
    """Return the block size of highest occupancy for `kernel`, and a grid for `threads` threads.

    Parameters
    ----------
    device
        The device on which the kernel is loaded.
    kernel
        See `kernel_handle`.
    threads
        How many threads are wanted in all; None for as many as the device runs at once.
    shared_bytes
        Dynamic shared memory of a block: bytes, or a function of the block size.
    block_limit
        The largest block that the kernel is written for; 0 for the device's own limit.

    Raises
    ------
    InvalidRequestError
        When an argument is wrong.
    DriverError
        When the driver knows no such kernel, or no block of it fits.
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InvalidRequestError(f"threads: expected None or an integer from 1, got {threads!r}")
    if type(block_limit) is not int or block_limit < 0:
        raise InvalidRequestError(f"block_limit: expected an integer from 0, got {block_limit!r}")
    asking = _Occupancy(device, kernel_handle(kernel))
    if callable(shared_bytes):
        block = asking.best_block(shared_bytes, block_limit)
        shared = shared_bytes(block)
    else:
        shared = shared_bytes
        block = asking.suggested_block(shared, block_limit)
    active = asking.active_blocks(block, shared)
    multiprocessors = device.context.attribute("MULTIPROCESSOR_COUNT")
    resident = device.context.attribute("MAX_THREADS_PER_MULTIPROCESSOR")
    return LaunchShape(
        grid=active * multiprocessors if threads is None else -(-threads // block),
        block=block,
        shared_bytes=shared,
        blocks_per_multiprocessor=active,
        occupancy=active * block / resident,
    )


def kernel_handle(kernel: object) -> int:
    """Return the handle of a kernel.

    Taken are an integer; a `CUfunction` or `CUkernel` of `cuda.bindings`; a kernel of cuda.core, a
    `RawKernel` or `Function` of CuPy, a compiled kernel of Triton, and whatever else has a handle under
    one of the names ``handle``, ``ptr``, ``function`` or ``kernel``; a function of Numba's `cuda.jit` that
    was compiled for one signature.

    Raises
    ------
    InvalidRequestError
        When there is none in it.

    Examples
    --------
    >>> class Kernel:
    ...     handle = 0x5000
    >>> kernel_handle(Kernel()) == kernel_handle(0x5000) == 0x5000
    True
    """
    found: Any = kernel
    for _ in range(_DEPTH):
        if isinstance(found, bool) or found is None:
            break
        if hasattr(found, "__int__"):
            handle = int(found)
            if handle > 0:
                return handle
            break
        compiled = getattr(found, "overloads", None)  # Numba's dispatcher
        if isinstance(compiled, dict) and len(compiled) == 1:
            found = next(iter(compiled.values()))
        library = getattr(found, "_codelibrary", None)
        if library is not None:
            found = library.get_cufunc()
            continue
        found = next((value for name in _NAMES if (value := getattr(found, name, None)) is not None), None)
    raise InvalidRequestError(
        f"expected a loaded kernel, or its handle, got {kernel!r}; pass the CUfunction, a kernel of "
        "cuda.core, a cupy.RawKernel, or a numba.cuda function that was called once"
    )


class _Occupancy:
    """The driver's occupancy calls for one kernel."""

    def __init__(self, device: CudaDriver, handle: int) -> None:
        self._device = device
        self._context = device.context
        self._api = device.context.api
        self._function = self._api.CUfunction(handle)

    def suggested_block(self, shared: int, limit: int) -> int:
        """Return the block size that the driver suggests for a fixed amount of shared memory."""
        values = (self._function, None, shared, limit)
        call = self._api.cuOccupancyMaxPotentialBlockSize
        return int(self._context.call_here("launch_shape", call, values, shared_bytes=shared)[2])

    def active_blocks(self, block: int, shared: int) -> int:
        """Return how many blocks of a size are resident on a multiprocessor."""
        values = (self._function, block, shared)
        call = self._api.cuOccupancyMaxActiveBlocksPerMultiprocessor
        return int(self._context.call_here("launch_shape", call, values, block=block, shared_bytes=shared)[1])

    def best_block(self, shared_bytes: Callable[[int], int], limit: int) -> int:
        """Return the block size with most resident threads, the largest among equals.

        What `cuOccupancyMaxPotentialBlockSize` does with a callback, which the driver would call through C.
        """
        largest = self._context.attribute("MAX_THREADS_PER_BLOCK")
        attribute = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        values = (attribute, self._function)
        own = int(self._context.call_here("launch_shape", self._api.cuFuncGetAttribute, values)[1])
        largest = min(largest, own, limit or largest)
        sizes = range(largest // _WARP * _WARP, 0, -_WARP) or (largest,)
        resident = {size: size * self.active_blocks(size, shared_bytes(size)) for size in sizes}
        return max(resident, key=resident.__getitem__)
