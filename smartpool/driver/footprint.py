"""How much physical memory a host driver's callers hold, and whether more fits.

Chunks count as they are. Raw memory is rounded as the device rounds it: large allocations to
whole pages of the device, and small ones as if packed into such pages without loss.
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

    def fits_raw(self, size: int) -> bool:
        """Return whether `size` bytes of raw memory fit beside what is held."""
        self.add_raw(size)
        fits = self.held <= self.capacity
        self.remove_raw(size)
        return fits

    def fits_chunk(self, size: int) -> bool:
        """Return whether a chunk fits beside what is held."""
        return self.held + size <= self.capacity

    def add_raw(self, size: int) -> None:
        """Count raw memory."""
        if size <= self.small_limit:
            self.small_bytes += align_up(size, _RAW_UNIT)
        else:
            self.large_bytes += align_up(size, self.page)

    def remove_raw(self, size: int) -> None:
        """Undo `add_raw`."""
        if size <= self.small_limit:
            self.small_bytes -= align_up(size, _RAW_UNIT)
        else:
            self.large_bytes -= align_up(size, self.page)
