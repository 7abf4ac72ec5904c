"""What tracking says: frozen values of counts, scopes, and all of it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["Counts", "ProfileRecord", "Tracked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Requests of one group: bytes as requested, and blocks.

    Attributes
    ----------
    current_bytes, peak_bytes, total_bytes
        Live now; the most that were live at once since tracking began or `reset_peaks`; requested so far.
    current_blocks, peak_blocks
        The same in blocks.
    allocations, frees
        Calls so far.
    """

    current_bytes: int = 0
    peak_bytes: int = 0
    total_bytes: int = 0
    current_blocks: int = 0
    peak_blocks: int = 0
    allocations: int = 0
    frees: int = 0

    @property
    def total_blocks(self) -> int:
        """Blocks that were requested so far: one a call."""
        return self.allocations


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRecord:
    """A scope on one device, over all the times that it was entered. Threads are not told apart.

    Attributes
    ----------
    num_calls
        How often it was entered.
    memory_peak
        The most by which live bytes ever exceeded those at its entry.
    memory_total
        Bytes requested in it.
    peak_live_bytes
        The most that was live in it, with what was live before.
    net_bytes
        Bytes requested less bytes freed: what it left behind.
    allocations, frees
        Requests and frees in it.
    seconds
        Time spent in it.
    """

    num_calls: int = 0
    memory_peak: int = 0
    memory_total: int = 0
    peak_live_bytes: int = 0
    net_bytes: int = 0
    allocations: int = 0
    frees: int = 0
    seconds: float = 0.0

    def joined(self, other: ProfileRecord) -> ProfileRecord:
        """Return the record of both: peaks are the larger ones, all else adds up."""
        pairs = {one.name: (getattr(self, one.name), getattr(other, one.name)) for one in fields(self)}
        peaks = {"memory_peak", "peak_live_bytes"}
        return ProfileRecord(**{name: (max if name in peaks else sum)(pair) for name, pair in pairs.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What was tracked on one device.

    Attributes
    ----------
    since
        When tracking began, in seconds since the epoch.
    total
        The device as a whole.
    tiers, streams, tags
        By the name of the tier, the handle of the stream that a block was requested for, and the tag
        that was set where it was requested.
    tags_at_peak
        Tag to bytes at the moment when the device's live bytes were at their peak.
    profiles
        Scopes by name; a nested one is named ``outer/inner``.
    """

    since: float
    total: Counts
    tiers: Mapping[str, Counts]
    streams: Mapping[int, Counts]
    tags: Mapping[str, Counts]
    tags_at_peak: Mapping[str, int]
    profiles: Mapping[str, ProfileRecord]

    def as_dict(self) -> dict[str, Any]:
        """Return everything in plain dictionaries, ready for JSON."""
        return asdict(self) | {"streams": {str(key): asdict(counts) for key, counts in self.streams.items()}}
