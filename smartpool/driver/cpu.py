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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Final

from smartpool.driver import pages
from smartpool.driver.bookkeeping import Mapping
from smartpool.driver.footprint import Footprint
from smartpool.driver.host import HostDriver
from smartpool.driver.protocol import MemoryInfo
from smartpool.errors import DriverOutOfMemoryError, InvalidSizeError
from smartpool.units import KiB, MiB

__all__ = ["CpuDriver"]

_CPU: Final = (1, 0)  # kDLCPU
_PAGE: Final = mmap.PAGESIZE
_UNKNOWN_TOTAL: Final = 1 << 40


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
        super().__init__("cpu", _CPU, granularity if pages.AVAILABLE else 0, footprint)
        self._ask_system = capacity is None
        self._raw: dict[int, mmap.mmap] = {}
        self._offsets: dict[int, int] = {}
        self._chunk_file: pages.ChunkFile | None = None

    def _memory_info(self) -> MemoryInfo:
        with self._timed():
            free = self._footprint.capacity - self._footprint.held
            if self._ask_system:
                free = min(free, _meminfo("MemAvailable") or free)
            return MemoryInfo(free, self._footprint.capacity)

    def _allocate(self, size: int) -> int:
        with self._timed():
            try:
                memory = _anonymous(size)
            except (OSError, OverflowError, ValueError) as error:
                raise DriverOutOfMemoryError(
                    "allocate", "ENOMEM", {"size": size}, advice=str(error)
                ) from error
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            self._raw[address] = memory
            return address

    def _free(self, address: int, size: int) -> None:  # noqa: ARG002 - the mapping knows its size
        with self._timed():
            self._raw.pop(address).close()

    def _reserve(self, size: int) -> int:
        with self._timed():
            return pages.reserve(size, self.granularity)

    def _unreserve(self, address: int, size: int) -> None:
        with self._timed():
            pages.unreserve(address, size)

    def _create_chunk(self, handle: int, size: int) -> None:
        with self._timed():
            if self._chunk_file is None:
                self._chunk_file = pages.ChunkFile()
            self._offsets[handle] = self._chunk_file.take(size)

    def _release_chunk(self, handle: int, size: int) -> None:
        with self._timed():
            self._file().give(self._offsets[handle], size)
            del self._offsets[handle]

    def _map(self, mapping: Mapping) -> None:
        with self._timed():
            file, offset = self._file().file, self._offsets[mapping.handle]
            pages.map_pages(mapping.address, mapping.size, file, offset)

    def _enable_access(self, address: int, size: int, mappings: list[Mapping]) -> None:  # noqa: ARG002
        with self._timed():
            pages.protect(address, size)

    def _unmap(self, address: int, size: int, mappings: list[Mapping]) -> None:
        if mappings:
            with self._timed():
                pages.unmap_pages(address, size)

    def _fill(self, address: int, value: int, size: int) -> None:
        with self._timed():
            ctypes.memset(address, value, size)

    def _copy(self, destination: int, source: int, size: int) -> None:
        with self._timed():
            ctypes.memmove(destination, source, size)

    def _read(self, address: int, size: int) -> bytes:
        with self._timed():
            return ctypes.string_at(address, size)

    def _write(self, address: int, data: bytes) -> None:
        with self._timed():
            ctypes.memmove(address, data, len(data))

    def _spend(self, call: str) -> None:
        """Nothing: the bookkeeping of streams and events is not the device's time."""

    def _last_given_back(self) -> None:
        if self._chunk_file is not None:
            self._chunk_file.close()

    def _file(self) -> pages.ChunkFile:
        assert self._chunk_file is not None, "a chunk exists, so its file does"
        return self._chunk_file

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = perf_counter()
        try:
            yield
        finally:
            self.seconds += perf_counter() - begin


def physical_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or the container's limit."""
    total = _meminfo("MemTotal") or _UNKNOWN_TOTAL
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


def _meminfo(field: str) -> int | None:
    """Return a field of /proc/meminfo in bytes, or None where there is none."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * KiB
    except OSError:
        pass
    return None


def _anonymous(size: int) -> mmap.mmap:
    """Return fresh private pages. Shared ones, the default, would be an object in the kernel each."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
