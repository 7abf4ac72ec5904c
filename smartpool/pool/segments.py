"""Segment arenas: how a tier grows where a device has no virtual memory.

Each segment is one raw allocation, apart from its neighbours by a barrier, and is given back whole
when nothing in it is live. This is the classic design (PyTorch, CuPy, RMM); it is here for platforms
without the virtual-memory calls, not for its fragmentation.
"""

from __future__ import annotations

from typing import Final

from smartpool.errors import InvariantError
from smartpool.memory.arena import Arena, Range, Uses
from smartpool.pool.device_memory import DeviceMemory
from smartpool.pool.streams import StreamClock
from smartpool.units import MiB, align_up

__all__ = ["SegmentArena"]

_SMALL_SEGMENT: Final = 2 * MiB
_SEGMENT_STEP: Final = 2 * MiB
_SHARED_SEGMENT: Final = 32 * MiB


class SegmentArena:
    """One arena on raw segments. The pool's lock guards it.

    Parameters
    ----------
    memory
        The device's physical memory.
    clock
        Stream order.
    small
        Whether it serves the SMALL tier: segments of 2 MiB instead of 32.
    """

    def __init__(self, memory: DeviceMemory, clock: StreamClock, *, small: bool) -> None:
        self.arena = Arena()
        self._memory = memory
        self._clock = clock
        self._segment_bytes = _SMALL_SEGMENT if small else _SHARED_SEGMENT
        self._segments: dict[int, int] = {}  # start -> size

    def __repr__(self) -> str:
        return f"<SegmentArena: {self.arena!r} in {len(self._segments)} segments>"

    def grow(self, size: int, peak_live_bytes: int, home_uses: Uses) -> None:  # noqa: ARG002 - as ElasticArena
        """Make a gap of at least `size` bytes in a new segment; nothing has changed when it raises."""
        segment = align_up(max(size, self._segment_bytes), _SEGMENT_STEP)
        if segment > self._memory.room_bytes:
            segment = size
        start = self._memory.allocate_segment(segment)
        self._segments[start] = segment
        self.arena.extend(start, segment, barrier=True)

    def release_idle(self, limit_bytes: int, home_uses: Uses, *, wait: bool = False) -> int:
        """Give whole free segments back, up to about `limit_bytes`; return the bytes given back."""
        released = 0
        for start, size in list(self._segments.items()):
            gap = self.arena.gap_at(start)
            if released >= limit_bytes or gap is None or gap.size != size:
                continue
            uses = self.arena.uses_of(gap) or home_uses
            if wait:
                self._clock.synchronize(uses)
            elif not self._clock.idle(uses):
                continue
            self._memory.free_segment(start)
            self.arena.retract(gap, start, size)
            del self._segments[start]
            released += size
        return released

    def reap(self, *, wait: bool = False) -> None:
        """Do nothing: a segment has one mapping for life."""

    def close(self) -> None:
        """Give everything back. No block may be live, and the device must be idle."""
        for start in list(self._segments):
            self._memory.free_segment(start)
            del self._segments[start]

    def check(self) -> None:
        """Prove that segments, blocks and gaps agree."""
        self.arena.check()
        segments = [Range(*item) for item in self._segments.items()]
        if sum(segment.size for segment in segments) != self.arena.extent_bytes:
            raise InvariantError(f"segments {segments} are not the extent of {self.arena!r}")
        for block in self.arena.blocks():
            if not any(segment.start <= block.start and block.end <= segment.end for segment in segments):
                raise InvariantError(f"{block} lies in no segment")
