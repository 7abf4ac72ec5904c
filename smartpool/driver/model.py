# ruff: noqa: ARG002 - the hooks of HostDriver are told more than the model needs
"""The `model` device: addresses without memory, any capacity, and the cost of every call.

A replay on it makes the same calls as on the GPU and is refused the same mistakes; `seconds` then
says what the calls would have cost there, by the table in `costs`. What the model leaves out:
contention, the first-touch cost of a fresh context, and that `cuMemFree` waits for the device.

Addresses come from a bump pointer, raw memory and reservations from regions of their own. A range
that was given back is handed out again for the next request of its exact size, latest first, as
real drivers do: a pool that keeps stale addresses is found out.
"""

from __future__ import annotations

import itertools
from itertools import count
from typing import Final

from smartpool.driver.bookkeeping import MOST_ADDRESSES, Mapping
from smartpool.driver.costs import H200, CostTable
from smartpool.driver.footprint import Footprint
from smartpool.driver.host import HostDriver
from smartpool.driver.protocol import MemoryInfo
from smartpool.driver.queues import FIRST_HANDLE
from smartpool.errors import InvalidSizeError, UnsupportedError
from smartpool.units import BINARY_UNITS, GiB, MiB, align_up, format_size

__all__ = ["ModelDriver"]

_GRANULARITY: Final = 2 * MiB
_MOST_BYTES: Final = MOST_ADDRESSES // 8
_RAW_BASE: Final = 1 << 44
_RESERVED_BASE: Final = 1 << 56
_DISTANCE: Final = 1 << 48
_DISTANCES: Final = 128
_instances = count()
# fmt: off
_PLAIN: Final = (
    "create_stream", "destroy_stream", "synchronize",
    "create_event", "destroy_event", "record_event", "event_done", "wait_event", "synchronize_event",
)  # calls whose cost does not depend on a size
# fmt: on
_NO_DEVICE: Final = (12, 0)  # kDLExtDev: nothing here can be read


class ModelDriver(HostDriver):
    """A device of `capacity` bytes that takes no memory and no time, and says what it would have taken.

    Parameters
    ----------
    capacity
        Physical bytes of the device.
    costs
        What each call costs.

    Examples
    --------
    >>> driver = ModelDriver(80 << 30)
    >>> base, chunk = driver.reserve(1 << 40), driver.create_chunk(32 << 20)
    >>> driver.map_chunk(base, chunk); driver.enable_access(base, 32 << 20)
    >>> driver.name, driver.calls["map_chunk"], round(driver.seconds * 1e6)
    ('model:80GiB', 1, 50)
    """

    def __init__(self, capacity: int = 141 * GiB, costs: CostTable = H200) -> None:
        if capacity <= 0:
            raise InvalidSizeError(f"expected a capacity of at least 1 byte, got {format_size(capacity)}")
        if capacity > _MOST_BYTES:
            raise InvalidSizeError(
                f"expected a capacity of at most {format_size(_MOST_BYTES)}, got {format_size(capacity)}; "
                "pools take several times as many addresses, and no processor has more"
            )
        footprint = Footprint(capacity, page=_GRANULARITY, small_limit=costs.small_limit)
        super().__init__(f"model:{exact_size(capacity)}", _NO_DEVICE, _GRANULARITY, footprint)
        self.costs = costs
        self._handles = itertools.count(FIRST_HANDLE)
        # As on real machines, no two devices of a process share an address.
        distance = next(_instances) % _DISTANCES * _DISTANCE
        self._raw_space = _Space(_RAW_BASE + distance)
        self._reserved_space = _Space(_RESERVED_BASE + distance)
        self._plain = {call: getattr(costs, call).seconds() for call in _PLAIN}

    def _memory_info(self, free: int) -> MemoryInfo:
        self.seconds += self.costs.memory_info.seconds()
        return MemoryInfo(free, self._footprint.capacity)

    def _allocate(self, size: int, growth: int) -> int:
        if size <= self.costs.small_limit:
            self.seconds += self.costs.allocate_small.seconds()
        if growth:
            self.seconds += self.costs.allocate.seconds(growth)
        return self._raw_space.take(self._spacing(size))

    def _free(self, address: int, size: int, freed: int) -> None:
        if size <= self.costs.small_limit:
            self.seconds += self.costs.free_small.seconds()
        if freed:
            self.seconds += self.costs.free.seconds(freed)
        self._raw_space.give(address, self._spacing(size))

    def _allocate_host(self, size: int) -> int:
        self.seconds += self.costs.allocate_host.seconds(size)
        return self._raw_space.take(align_up(size, _GRANULARITY))

    def _free_host(self, address: int, size: int) -> None:
        self.seconds += self.costs.free_host.seconds(size)
        self._raw_space.give(address, align_up(size, _GRANULARITY))

    def _spacing(self, size: int) -> int:
        return align_up(size, 512 if size <= self.costs.small_limit else _GRANULARITY)

    def _reserve(self, size: int) -> int:
        self.seconds += self.costs.reserve.seconds(size)
        return self._reserved_space.take(size)

    def _unreserve(self, address: int, size: int) -> None:
        self.seconds += self.costs.unreserve.seconds(size)
        self._reserved_space.give(address, size)

    def _create_chunk(self, size: int) -> int:
        self.seconds += self.costs.create_chunk.seconds(size)
        return next(self._handles)

    def _release_chunk(self, handle: int, size: int) -> None:
        self.seconds += self.costs.release_chunk.seconds(size)

    def _map(self, mapping: Mapping) -> None:
        self.seconds += self.costs.map_chunk.seconds(mapping.size)

    def _enable_access(self, address: int, size: int, mappings: list[Mapping]) -> None:
        costs = self.costs
        seconds = costs.enable_access_call.seconds()
        for mapping in mappings:
            cost = costs.enable_access_again if mapping.accessible else costs.enable_access
            seconds += cost.seconds(mapping.size)
        self.seconds += seconds

    def _unmap(self, address: int, size: int, mappings: list[Mapping]) -> None:
        for mapping in mappings:
            self.seconds += self.costs.unmap.seconds(mapping.size)

    def _share_chunks(self) -> None:
        raise UnsupportedError(f"share_chunks: {_NOTHING_TO_READ}")

    def _export_chunk(self, handle: int) -> int:
        raise UnsupportedError(f"export_chunk: {_NOTHING_TO_READ}")

    def _import_chunk(self, descriptor: int, size: int) -> int:
        raise UnsupportedError(f"import_chunk: {_NOTHING_TO_READ}")

    def _fill(self, address: int, value: int, size: int) -> None:
        self.seconds += self.costs.fill.seconds(size)

    def _copy(self, destination: int, source: int, size: int) -> None:
        self.seconds += self.costs.copy.seconds(size)

    def _read(self, address: int, size: int) -> bytes:
        raise UnsupportedError(_NOTHING_TO_READ)

    def _write(self, address: int, data: bytes) -> None:
        raise UnsupportedError(_NOTHING_TO_READ)

    def _spend(self, call: str) -> None:
        self.seconds += self._plain.get(call, 0.0)

    def _last_given_back(self) -> None:
        """Nothing: the model holds nothing."""


_NOTHING_TO_READ = "the model device has addresses but no memory: use the cpu device to read and write"


class _Space:
    """An endless range of addresses: a bump pointer, and ranges given back, by size."""

    __slots__ = ("_free", "_next")

    def __init__(self, base: int) -> None:
        self._next = base
        self._free: dict[int, list[int]] = {}

    def take(self, size: int) -> int:
        free = self._free.get(size)
        if free:
            return free.pop()
        address, self._next = self._next, self._next + size
        return address

    def give(self, address: int, size: int) -> None:
        self._free.setdefault(size, []).append(address)


def exact_size(nbytes: int) -> str:
    """Return `nbytes` exactly, with the largest unit that divides it.

    >>> exact_size(80 << 30), exact_size(1536), exact_size(1000)
    ('80GiB', '1536', '1000')
    """
    for unit, factor in BINARY_UNITS:
        if nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)
