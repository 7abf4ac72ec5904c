"""The `cpu` device: host memory, remapped for real.

On Linux a reservation is a range of addresses without pages, a chunk is a range of one sparse
file in memory (`memfd`), and mapping is `mmap` at a fixed address: two mappings of a chunk show
the same bytes, and what is unmapped faults when touched. Pages are taken from the system at first
touch, not when a chunk is created; what bounds chunks and raw memory is `capacity`. Elsewhere the
device has raw memory only.

What differs from a GPU: `fork` shares chunks with the child (raw memory is copied), and there is
no time between queueing work and its end unless a test pauses the stream.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Concatenate, Final, ParamSpec, TypeVar

from smartpool.driver import pages
from smartpool.driver.bookkeeping import Mapping
from smartpool.driver.footprint import Footprint
from smartpool.driver.host import HostDriver
from smartpool.driver.protocol import MemoryInfo, refusal
from smartpool.errors import InvalidSizeError
from smartpool.units import KiB, MiB

__all__ = ["CpuDriver"]

_CPU: Final = (1, 0)  # kDLCPU
_PAGE: Final = mmap.PAGESIZE
_UNKNOWN_TOTAL: Final = 1 << 40
_MEMINFO: Final = Path("/proc/meminfo")
_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _timed(
    hook: Callable[Concatenate[CpuDriver, _Arguments], _Result],
) -> Callable[Concatenate[CpuDriver, _Arguments], _Result]:
    """Add the time that a hook takes to the driver's `seconds`."""

    @wraps(hook)
    def timed(self: CpuDriver, /, *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        begin = perf_counter()
        try:
            return hook(self, *arguments, **named)
        finally:
            self.seconds += perf_counter() - begin

    return timed


class CpuDriver(HostDriver):
    r"""Host memory behind the driver protocol.

    Parameters
    ----------
    capacity
        Bytes that may be held, or None for the machine's memory (the container's limit, where that
        is less). With None, `memory_info` tells no more free than the system has available.
    granularity
        Bytes of the virtual-memory calls: a power of two, and a multiple of the page. The default
        is a GPU's, so that tests here mean something there.

    Examples
    --------
    >>> driver = CpuDriver(capacity=64 << 20)
    >>> address = driver.allocate(100)
    >>> driver.fill(address, 7, 100, driver.default_stream)
    >>> driver.read(address, 3)
    b'\x07\x07\x07'
    >>> driver.free(address)
    """

    def __init__(self, *, capacity: int | None = None, granularity: int = 2 * MiB) -> None:
        if capacity is not None and capacity <= 0:
            raise InvalidSizeError(f"expected a capacity of at least 1 byte, got {capacity}")
        if granularity % _PAGE or granularity & (granularity - 1) or granularity <= 0:
            raise InvalidSizeError(f"expected a granularity of 2**k * {_PAGE} bytes, got {granularity}")
        footprint = Footprint(capacity or physical_memory(), page=_PAGE, small_limit=0)
        super().__init__("cpu", _CPU, granularity if pages.VIRTUAL else 0, footprint)
        self._ask_system = capacity is None
        self._chunk_file: pages.ChunkFile | None = None
        self._shared = pages.SharedChunks()
        self._sharing = False

    @_timed
    def _memory_info(self, free: int) -> MemoryInfo:
        if self._ask_system:
            free = min(free, _meminfo("MemAvailable") or free)
        return MemoryInfo(free, self._footprint.capacity)

    @_timed
    def _allocate(self, size: int, growth: int) -> int:  # noqa: ARG002 - counted above
        return pages.allocate(size)

    @_timed
    def _free(self, address: int, size: int, freed: int) -> None:  # noqa: ARG002
        pages.free(address, size)

    @_timed
    def _allocate_host(self, size: int) -> int:
        return pages.allocate(size)

    @_timed
    def _free_host(self, address: int, size: int) -> None:
        pages.free(address, size)

    @_timed
    def _reserve(self, size: int) -> int:
        return pages.reserve(size, self.granularity)

    @_timed
    def _unreserve(self, address: int, size: int) -> None:
        pages.unreserve(address, size)

    # A chunk's handle is its offset in the file plus one unit, so there is no table to keep in step.

    # Those that other processes may open have a file each: whoever is given one chunk sees no other, and
    # its memory lives as long as anybody has the file.

    @_timed
    def _create_chunk(self, size: int) -> int:
        if self._sharing:
            return self._shared.create(size)
        if self._chunk_file is None:
            self._chunk_file = pages.ChunkFile()
        return self._chunk_file.take(size) + self.granularity

    @_timed
    def _release_chunk(self, handle: int, size: int) -> None:
        if handle in self._shared:
            self._shared.release(handle)
        else:
            self._file().give(handle - self.granularity, size)

    @_timed
    def _map(self, mapping: Mapping) -> None:
        if mapping.handle in self._shared:
            self._shared.map(mapping.start, mapping.handle, mapping.size)
        else:
            self._file().map(mapping.start, mapping.handle - self.granularity, mapping.size)

    @_timed
    def _enable_access(self, address: int, size: int, mappings: list[Mapping]) -> None:  # noqa: ARG002
        pages.protect(address, size)

    @_timed
    def _unmap(self, address: int, size: int, mappings: list[Mapping]) -> None:
        if mappings:
            pages.unmap_pages(address, size)

    def _share_chunks(self) -> None:
        self._sharing = True

    @_timed
    def _export_chunk(self, handle: int) -> int:
        if handle not in self._shared:
            advice = "it was created before share_chunks: make the pool with shareable=True"
            raise refusal("export_chunk", advice, chunk=handle)
        return self._shared.descriptor(handle)

    @_timed
    def _import_chunk(self, descriptor: int, size: int) -> int:
        return self._shared.take_in(descriptor, size)

    @_timed
    def _fill(self, address: int, value: int, size: int) -> None:
        ctypes.memset(address, value, size)

    @_timed
    def _copy(self, destination: int, source: int, size: int) -> None:
        ctypes.memmove(destination, source, size)

    @_timed
    def _read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    @_timed
    def _write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def _spend(self, call: str) -> None:
        """Nothing: the bookkeeping of streams and events is not the device's time."""

    def _last_given_back(self) -> None:
        if self._chunk_file is not None:
            self._chunk_file.close()

    def _file(self) -> pages.ChunkFile:
        assert self._chunk_file is not None, "a chunk exists, so its file does"
        return self._chunk_file


def physical_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or the container's limit."""
    total = _meminfo("MemTotal") or _UNKNOWN_TOTAL
    for limit in _LIMITS:
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


def _meminfo(field: str) -> int | None:
    """Return a field of /proc/meminfo in bytes, or None where there is none."""
    try:
        with _MEMINFO.open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * KiB
    except OSError:
        pass
    return None
