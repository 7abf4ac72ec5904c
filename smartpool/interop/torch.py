"""PyTorch on a SmartPool: as the allocator of the process, or in a `torch.cuda.MemPool`.

`install` gives every CUDA tensor of the process memory of the pool, block by block: what PyTorch's
own caching allocator does is then the pool's work. `mem_pool` leaves PyTorch's allocator in place
and only feeds it its segments, inside ``with torch.cuda.use_mem_pool(...)``.

Both go through `torch._C._cuda_customAllocator`, which takes C addresses as integers, so neither needs a
extension of its own. What `install` hands over is compiled at run time (`_torch_front`): most requests
and frees are over in 15 ns, and Python is called for the others; `mem_pool` hands over `ctypes` callbacks,
which PyTorch calls for a segment now and then. It is private API of PyTorch; what is relied on was read in
PyTorch 2.11 and 2.13 and is tested on 2.11.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from warnings import warn

from smartpool.errors import (
    AllocatorError,
    PoolClosedError,
    UnknownPointerError,
    UnsupportedError,
)
from smartpool.heap.arena import ALIGNMENT
from smartpool.interop._frameworks import cuda_managers, framework, manager_for
from smartpool.interop._torch_callbacks import address_of, front_of
from smartpool.interop._torch_front import Front
from smartpool.interop._torch_graphs import Graphs
from smartpool.interop._torch_rescue import CppErrors, Rescue
from smartpool.interop._torch_segments import Segments, mem_pool_over
from smartpool.smart_pool import SmartPool
from smartpool.units import align_up

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = [
    "install",
    "installed_pool",
    "max_memory_reserved",
    "mem_pool",
    "memory_allocated",
    "memory_reserved",
    "memory_snapshot",
    "memory_stats",
]

_INSTALL: Final = "install PyTorch with CUDA, see https://pytorch.org"

_STREAMS: Final = 32  # of each priority, in PyTorch's own table

_Reset = ctypes.CFUNCTYPE(None)
_MemoryFraction = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.c_int)
_RecordStream = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
# PyTorch's id is a pair of 64-bit integers, which C++ passes as two of them; its filter is an object,
# which C++ passes by address.
_BeginPool = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p)
_EndPool = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)


@dataclass(frozen=True, slots=True)
class _Installation:
    """What `install` left behind, for the rest of the process."""

    pool: SmartPool
    managers: dict[int, AdvancedMemoryPoolManager]
    allocator: Any
    rescue: Rescue
    graphs: Graphs
    front: Front


_installation: _Installation | None = None


# ------------------------------------------------------------------ the allocator of the process


def install(pool: SmartPool) -> None:
    """Make `pool` the allocator of every CUDA tensor of this process, until it ends.

    Call it before anything touches CUDA through PyTorch. PyTorch frees hundreds of blocks while the
    interpreter ends, so the pool must not be closed before; it goes with the process.

    What PyTorch frees is kept for its next request of that size, and goes back to the pool before memory
    grows, is trimmed or refused, and for requests of others; statistics are of the moment. While somebody
    watches each request (tracking, recording, hooks, debugging), every one of them reaches the pool.

    Out of memory is `torch.OutOfMemoryError`, as from PyTorch's own allocator; the pool and the CUDA
    context stay usable. Any other failure of a request is a `RuntimeError` that begins with its class.

    Raises
    ------
    AllocatorError
        When a pool is installed already, or PyTorch has initialised CUDA: its own allocator has handed
        out memory then, and cannot be replaced.
    MissingPackageError
        When PyTorch is not installed, or llvmlite, which compiles what PyTorch calls.
    UnsupportedError
        When PyTorch was built without CUDA, or is too old to take an allocator, and on anything but Linux.
    DeviceNotFoundError
        When the pool is not on CUDA devices.
    """
    global _installation  # noqa: PLW0603 - PyTorch's allocator is one for the process
    torch = framework("torch", install=_INSTALL)
    managers = cuda_managers(pool)
    if _installation is not None:
        raise AllocatorError(
            f"expected PyTorch to have no SmartPool yet, but {_installation.pool!r} is installed, and "
            "stays so until the process ends; use that pool, or mem_pool() in another process"
        )
    make = _custom_allocator(torch)
    if torch.cuda.is_initialized():
        raise AllocatorError(
            "expected PyTorch not to have used CUDA yet, but it is initialised, with its own allocator; "
            "call install() first, before any tensor is made on a CUDA device or torch.cuda is asked for "
            "anything but is_available() and device_count()"
        )
    graphs = Graphs(pool)
    errors = CppErrors(_libc10(torch))
    rescue = Rescue(managers, errors)
    try:
        front = front_of(managers, rescue, errors.throw, partial(_lasting_streams, torch))
        allocator = make(front.allocate, front.release)
        _set_hooks(allocator, pool, managers, graphs, front)
        torch._C._cuda_changeCurrentAllocator(allocator)  # noqa: SLF001 - there is no public way
    except UnsupportedError:
        raise
    except RuntimeError as error:
        raise AllocatorError(
            f"expected PyTorch to take the allocator, but it refused: {error}; call install() before "
            "anything allocates on a CUDA device"
        ) from error
    _installation = _Installation(pool, managers, allocator, rescue, graphs, front)


def installed_pool() -> SmartPool | None:
    """Return the pool that `install` was given, or None."""
    return None if _installation is None else _installation.pool


def _custom_allocator(torch: Any) -> Callable[[int, int], Any]:
    """Return PyTorch's maker of allocators; `UnsupportedError` where it has none."""
    make: Callable[[int, int], Any] | None = getattr(torch._C, "_cuda_customAllocator", None)  # noqa: SLF001
    if make is None or torch.version.cuda is None or not hasattr(torch, "OutOfMemoryError"):
        raise UnsupportedError(
            f"expected a PyTorch with CUDA and with torch._C._cuda_customAllocator (2.5 or later), got "
            f"{torch.__version__}; {_INSTALL}"
        )
    return make


def _libc10(torch: Any) -> Any:
    """Return the library in which PyTorch's errors are; it is loaded already."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    except OSError as error:
        raise UnsupportedError(
            f"expected a PyTorch with a shared libc10: {error}; use smartpool.interop.torch.mem_pool instead"
        ) from error


def _lasting_streams(torch: Any, device: int) -> list[int]:
    """Return the streams that PyTorch hands out in turn, and never destroys, on a device.

    There are 32 of each priority; asking for 32 brings PyTorch back to where it was. Streams that are
    not among them are of other libraries (`torch.cuda.ExternalStream`), and may be destroyed.
    """
    streams = []
    for priority in (0, -1):
        streams += [torch.cuda.Stream(device, priority=priority).cuda_stream for _ in range(_STREAMS)]
    return streams


def _set_hooks(
    allocator: Any,
    pool: SmartPool,
    managers: dict[int, AdvancedMemoryPoolManager],
    graphs: Graphs,
    front: Front,
) -> None:
    """Take PyTorch's other calls too: `record_stream`, `empty_cache`, captures of graphs."""

    def record_stream(pointer: int, stream: int | None) -> None:
        for manager in managers.values():
            if manager.owns(pointer):
                front.mark(pointer)
                with suppress(UnknownPointerError):  # freed meanwhile, on another thread
                    manager.record_stream(pointer, stream)
                return
        # Memory of others (a view of a NumPy array's copy, DLPack) is theirs to order.

    def empty_cache() -> None:
        with suppress(PoolClosedError):
            pool.trim()

    def memory_fraction(fraction: float, device: int) -> None:  # noqa: ARG001 - PyTorch's signature
        warn(
            "torch.cuda.set_per_process_memory_fraction has no effect on a SmartPool; "
            "limit it when it is made: SmartPool('cuda:0', SmartPoolConfig(max_bytes=...))",
            stacklevel=2,
        )

    allocator.set_record_stream_fn(address_of(_RecordStream, record_stream))
    allocator.set_reset_fn(address_of(_Reset, empty_cache))
    allocator.set_memory_fraction_fn(address_of(_MemoryFraction, memory_fraction))
    allocator.set_begin_allocate_to_pool(address_of(_BeginPool, graphs.begin))
    allocator.set_end_allocate_to_pool_fn(address_of(_EndPool, graphs.end))
    allocator.set_release_pool(address_of(_EndPool, graphs.release))


# ------------------------------------------------------------------ a pool beside PyTorch's own


def mem_pool(pool: SmartPool, **options: Any) -> Any:
    """Return a `torch.cuda.MemPool` whose segments come from `pool`.

    Tensors made inside ``with torch.cuda.use_mem_pool(it)`` live there; PyTorch's own allocator cuts
    the segments (2 MiB, 20 MiB or more) into tensors, so the pool sees segments, and PyTorch's
    statistics and snapshots work. It can be made at any time.

    `torch.cuda.empty_cache` gives its idle segments back while nobody is inside, and so does a request
    that cannot be served otherwise. So its ``id`` changes, and is to be asked for when it is needed.

    Parameters
    ----------
    pool
        A pool on the devices that PyTorch will use.
    options
        Passed on to `torch.cuda.MemPool`, such as ``use_on_oom=True``.

    Raises
    ------
    AllocatorError
        When a pool is the allocator of the process: PyTorch's own, which a `MemPool` needs, is off then.
    MissingPackageError, UnsupportedError, DeviceNotFoundError
        As `install`.
    """
    torch = framework("torch", install=_INSTALL)
    managers = cuda_managers(pool)
    make = _custom_allocator(torch)
    if _installation is not None:
        raise AllocatorError(
            "expected PyTorch's own allocator, which a MemPool stands on, but install() replaced it in this "
            "process; use one or the other"
        )
    return mem_pool_over(Segments(torch, managers, make, options), torch)


# ------------------------------------------------------------------ what PyTorch cannot say any more


def memory_stats(device: int = 0) -> dict[str, int]:
    """Return what `torch.cuda.memory_stats` says of its own allocator, by the same keys, of the pool.

    PyTorch refuses its statistics (`memory_stats`, `memory_allocated`, `memory_reserved`, their
    peaks and resets, `memory_snapshot`) under any allocator that is not its own. Of its keys these
    have a meaning here: ``allocated_bytes``, ``active_bytes`` and ``requested_bytes`` (live, after and
    before rounding), ``reserved_bytes``, ``allocation`` (live blocks), ``num_ooms``, ``num_alloc_retries``
    (requests that had to map memory). Everything else is in `SmartPool.get_statistics`.

    The pool does not count on its quick path: the peak of live bytes is that of the moments when it
    searched, grew or was asked. The peak of reserved bytes is exact.
    """
    installation = _require_installation()
    now = manager_for(installation.managers, device).snapshot()
    live_peak = max(now.peak_live_bytes, now.block_bytes)
    return {
        "allocated_bytes.all.current": now.block_bytes,
        "allocated_bytes.all.peak": live_peak,
        "active_bytes.all.current": now.block_bytes,
        "active_bytes.all.peak": live_peak,
        "requested_bytes.all.current": now.live_bytes,
        "requested_bytes.all.peak": now.peak_live_bytes,
        "reserved_bytes.all.current": now.reserved_bytes,
        "reserved_bytes.all.peak": now.peak_reserved_bytes,
        "allocation.all.current": now.live_blocks,
        "graph_bytes.all.current": installation.graphs.held_bytes(device),
        "num_alloc_retries": now.grows,
        "num_ooms": installation.rescue.failures,
    }


def memory_allocated(device: int = 0) -> int:
    """Return the live bytes of the installed pool, as `torch.cuda.memory_allocated` would."""
    return memory_stats(device)["allocated_bytes.all.current"]


def memory_reserved(device: int = 0) -> int:
    """Return the physical bytes that the installed pool holds, as `torch.cuda.memory_reserved` would."""
    return memory_stats(device)["reserved_bytes.all.current"]


def max_memory_reserved(device: int = 0) -> int:
    """Return the most that `memory_reserved` ever was, as `torch.cuda.max_memory_reserved` would."""
    return memory_stats(device)["reserved_bytes.all.peak"]


def memory_snapshot(device: int = 0) -> list[dict[str, Any]]:
    """Return the live blocks of the installed pool, by address.

    Each has the keys of a block in `torch.cuda.memory_snapshot`: ``address``, ``size``,
    ``requested_size``, ``state``, with the stream and the device that PyTorch gives its segment. There
    are no segments: memory is mapped under blocks, not cut into them.
    """
    installation = _require_installation()
    installation.front.drain(everything=True)
    manager = manager_for(installation.managers, device)
    blocks = []
    for pointer, nbytes in sorted(manager.live_blocks().items()):
        with suppress(UnknownPointerError):  # freed meanwhile
            blocks.append(
                {
                    "device": device,
                    "address": pointer,
                    "size": align_up(nbytes, ALIGNMENT) or ALIGNMENT,
                    "requested_size": nbytes,
                    "stream": manager.stream_of(pointer),
                    "state": "graph" if installation.graphs.holds(pointer) else "active_allocated",
                }
            )
    return blocks


def _require_installation() -> _Installation:
    if _installation is None:
        raise AllocatorError(
            "expected a pool to be PyTorch's allocator, none is; call smartpool.interop.torch.install(pool) "
            "first, or ask torch.cuda itself"
        )
    return _installation
