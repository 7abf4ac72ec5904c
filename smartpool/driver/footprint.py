"""How much physical memory a host driver's callers hold, and whether more fits.

Chunks count as they are. Raw memory is rounded as a device rounds it. On the H200 (driver 580,
`bench/results/driver_costs.json`) a raw allocation above 1 MiB takes whole pages of 2 MiB, and
smaller ones share such pages: 200 of 64 KiB took 7 pages, 200 of 500 KiB took 50. Here the small
ones are packed without loss (7 and 49 pages).
"""

from __future__ import annotations

from dataclasses import dataclass

from smartpool.units import align_up

__all__ = ["Footprint"]

_RAW_UNIT = 512


@dataclass(slots=True)
class Footprint:
    """Physical bytes in use: `held == chunk_bytes + large_bytes + align_up(small_bytes, page)`.

    Parameters
    ----------
    capacity
        Bytes that the device has.
    page
        Bytes to which the device rounds a large raw allocation.
    small_limit
        Raw allocations up to this size share pages.

    Examples
    --------
    >>> footprint = Footprint(8 << 20, page=2 << 20, small_limit=1 << 20)
    >>> footprint.add_raw(100), footprint.add_raw(100), footprint.add_raw(3 << 20)
    (2097152, 0, 4194304)
    >>> footprint.held
    6291456
    """

    capacity: int
    page: int
    small_limit: int
    chunk_bytes: int = 0
    large_bytes: int = 0
    small_bytes: int = 0

    @property
    def held(self) -> int:
        """Physical bytes in use."""
        return self.chunk_bytes + self.large_bytes + align_up(self.small_bytes, self.page)

    @property
    def free(self) -> int:
        """Physical bytes that nobody holds."""
        small = align_up(self.small_bytes, self.page) if self.small_bytes else 0
        return self.capacity - self.chunk_bytes - self.large_bytes - small

    def emptied(self) -> Footprint:
        """Return a footprint of the same device in which nothing is held."""
        return Footprint(self.capacity, self.page, self.small_limit)

    def growth(self, size: int) -> int:
        """Return the physical bytes that raw memory of `size` bytes would take beside what is held."""
        if size > self.small_limit:
            return align_up(size, self.page)
        small = self.small_bytes
        return align_up(small + align_up(size, _RAW_UNIT), self.page) - align_up(small, self.page)

    def add_raw(self, size: int) -> int:
        """Count raw memory and return the physical bytes that it took."""
        growth = self.growth(size)
        if size > self.small_limit:
            self.large_bytes += growth
        else:
            self.small_bytes += align_up(size, _RAW_UNIT)
        return growth

    def remove_raw(self, size: int) -> int:
        """Undo `add_raw` and return the physical bytes that became free."""
        if size > self.small_limit:
            freed = align_up(size, self.page)
            self.large_bytes -= freed
            return freed
        before = align_up(self.small_bytes, self.page)
        self.small_bytes -= align_up(size, _RAW_UNIT)
        return before - align_up(self.small_bytes, self.page)
