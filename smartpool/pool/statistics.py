"""What a pool says about itself: frozen snapshots, derived when asked for.

The quick path counts nothing. Live bytes are the sum over the table of live blocks, cached bytes
the sum over the bins, and so on: a snapshot costs O(live blocks), about 50 ns for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from smartpool.pool.fragmentation import Fragmentation

__all__ = ["MemorySnapshot", "TierSnapshot"]


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """One tier: live blocks and bytes as requested, and bytes cached in its bins."""

    live_blocks: int
    live_bytes: int
    cached_blocks: int
    cached_bytes: int


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """One device's memory at an instant. All sizes in bytes.

    Attributes
    ----------
    live_bytes, live_blocks
        As requested, before rounding to 512.
    block_bytes
        Live blocks after rounding.
    cached_bytes
        Freed blocks in bins, ready for a request of the same size.
    gap_bytes
        Free ranges of the arenas, mapped.
    reserved_bytes, peak_reserved_bytes
        Physical memory that the pool holds, now and at most.
    peak_live_bytes
        The largest `live_bytes` seen at a search, a flush or a snapshot; exact while recording.
    largest_free_bytes
        The largest gap.
    cap_bytes, device_free_bytes, device_total_bytes
        The pool's limit, and what the driver says.
    searches, flushes, grows
        How often a request missed its bin, the bins were emptied, and memory was mapped.
    waits
        Waits between streams that were queued on the device.
    driver_calls, driver_seconds
        Calls by name, and what they cost.
    """

    device: str
    live_bytes: int
    live_blocks: int
    block_bytes: int
    cached_bytes: int
    gap_bytes: int
    reserved_bytes: int
    peak_reserved_bytes: int
    peak_live_bytes: int
    largest_free_bytes: int
    cap_bytes: int
    device_free_bytes: int
    device_total_bytes: int
    searches: int
    flushes: int
    grows: int
    waits: int
    driver_calls: Mapping[str, int]
    driver_seconds: float
    tiers: Mapping[str, TierSnapshot]
    fragmentation: Fragmentation

    @property
    def pressure(self) -> float:
        """Share of the cap that is live, in [0, 1]."""
        return self.live_bytes / self.cap_bytes

    def as_dict(self) -> dict[str, object]:
        """Return everything in plain dictionaries, ready for JSON."""
        return asdict(self) | {
            "driver_calls": dict(self.driver_calls),
            "tiers": {name: asdict(tier) for name, tier in self.tiers.items()},
            "fragmentation": self.fragmentation.as_dict(),
            "pressure": self.pressure,
        }
