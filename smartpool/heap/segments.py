"""Segment heaps: how a pool grows where a device has no virtual memory.

Each segment is one raw allocation, apart from its neighbours by a barrier, and is given back whole
when nothing in it is live. This is the classic design (PyTorch, CuPy, RMM); it is here for platforms
without the virtual-memory calls, not for its fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from smartpool.driver.protocol import MappedRange
from smartpool.errors import DriverOutOfMemoryError, InvariantError
from smartpool.heap.arena import ALIGNMENT, Arena, Range, Uses, side_by_side
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.placement import place_for_stream
from smartpool.heap.protocol import Layout
from smartpool.heap.stream_order import StreamClock
from smartpool.units import MiB, align_up

__all__ = ["SegmentHeap"]

_SMALL_REQUEST: Final = 1 * MiB
_SMALL_SEGMENT: Final = 2 * MiB
_SHARED_SEGMENT: Final = 32 * MiB
_SEGMENT_STEP: Final = 2 * MiB


class SegmentHeap:
    """Two arenas on raw segments, for the SMALL tier and for the rest. The pool's lock guards it.

    When the device holds no further segment, each arena helps the other out.

    Parameters
    ----------
    memory
        The device's physical memory.
    clock
        Stream order.
    """

    def __init__(self, memory: DeviceMemory, clock: StreamClock) -> None:
        self._small, self._rest = Arena(), Arena()
        self._memory = memory
        self._clock = clock
        self._segments: dict[int, tuple[Arena, int]] = {}  # start -> (arena, size)

    def __repr__(self) -> str:
        return f"<SegmentHeap: {self._small!r}, {self._rest!r}, {len(self._segments)} segments>"

    def allocate(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in a gap; see `Heap.allocate`."""
        return place_for_stream(self._arena(size), self._clock, size, alignment, stream)

    def arena_for(self, size: int) -> Arena:
        """Return the arena for blocks of `size` bytes; see `Heap.arena_for`."""
        return self._arena(size)

    def extend(self, size: int, alignment: int, stream: int) -> int:
        """Place a block in a new segment; see `Heap.extend`."""
        arena = self._arena(size)
        least = size + (alignment - ALIGNMENT)
        segment = align_up(
            max(least, _SMALL_SEGMENT if arena is self._small else _SHARED_SEGMENT), _SEGMENT_STEP
        )
        try:
            start = self._memory.allocate_segment(segment)
        except DriverOutOfMemoryError:
            segment = least
            try:
                start = self._memory.allocate_segment(segment)
            except DriverOutOfMemoryError:
                other = self._rest if arena is self._small else self._small
                address = place_for_stream(other, self._clock, size, alignment, stream)
                if address is None:
                    raise
                return address
        self._segments[start] = (arena, segment)
        arena.extend(start, segment, barrier=True)
        address = place_for_stream(arena, self._clock, size, alignment, stream)
        if address is None:
            raise InvariantError(f"no gap of {size} bytes in a new segment of {segment}")
        return address

    def place_idle(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in a gap; see `Heap.place_idle`."""
        return self.allocate(size, alignment, stream)

    def split(self, address: int, sizes: Sequence[int]) -> None:
        """Turn a block into several; see `Heap.split`."""
        arena = self._small if address in self._small else self._rest
        arena.split(side_by_side(address, sizes))

    def free_all(self, groups: Sequence[list[int]], size: int, uses: Uses) -> None:
        """End the blocks in `groups`; see `Heap.free_all`."""
        arena, other = self._small, self._rest
        if size >= _SMALL_REQUEST:
            arena, other = other, arena
        arena.free_all(groups, uses, other.free)

    def free_elsewhere(self, address: int, uses: Uses) -> None:
        """End a block that is not in the arena where it was looked for; see `Heap.free_elsewhere`."""
        (self._small if address in self._small else self._rest).free(address, uses)

    def release_idle(self, limit_bytes: int, *, wait: bool, exact: bool = False) -> None:
        """Give whole free segments back; see `Heap.release_idle`."""
        released, uses = 0, self._clock.default_uses()
        for start, (arena, size) in list(self._segments.items()):
            gap = arena.gap_at(start)
            if released >= limit_bytes or gap is None or gap.size != size:
                continue
            if exact and released + size > limit_bytes:
                continue
            gap_uses = arena.uses_of(gap) or uses
            if wait:
                self._clock.synchronize(gap_uses)
            elif not self._clock.idle(gap_uses):
                continue
            self._release(start)
            released += size

    def close(self) -> None:
        """Give everything back; see `Heap.close`."""
        for start in list(self._segments):
            self._release(start)

    def _release(self, start: int) -> None:
        """Give a segment back in which nothing is live. If the driver refuses, it is tried again later."""
        arena, size = self._segments[start]
        arena.retract(Range(start, size), start, size)
        del self._segments[start]
        self._memory.release_segment(start)

    def mend(self, uses: Uses) -> None:
        """Make the books anew after an exception in the middle; see `Heap.mend`."""
        held = self._memory.segments()
        self._segments = {start: segment for start, segment in self._segments.items() if start in held}
        for arena in (self._small, self._rest):
            extents = [
                Range(start, size) for start, (owner, size) in self._segments.items() if owner is arena
            ]
            arena.mend(extents, barrier=True, uses=uses)
        self._memory.mend_segments(set(self._segments))
        self._memory.recount()
        self._memory.release_unwanted()

    @property
    def live_bytes(self) -> int:
        """Bytes in blocks."""
        return self._small.live_bytes + self._rest.live_bytes

    @property
    def gauge(self) -> SegmentHeap:
        """The heap itself."""
        return self

    @property
    def extent_bytes(self) -> int:
        """Bytes in blocks and gaps."""
        return self._small.extent_bytes + self._rest.extent_bytes

    def room_bytes(self) -> int:
        """Return the bytes of the largest gap."""
        return self.largest_gap_bytes

    @property
    def largest_gap_bytes(self) -> int:
        """Bytes of the largest gap."""
        return max(self.free_ranges(), default=0)

    @property
    def small_bytes(self) -> int:
        """Bytes of the segments for small requests."""
        return self._small.extent_bytes

    def spare_slab(self) -> bool:
        """Set nothing apart; see `Heap.spare_slab`."""
        return False

    def block_size(self, address: int) -> int | None:
        """Return the size of the block at `address`, or None."""
        return self._small.size_at(address) or self._rest.size_at(address)

    def is_gap(self, address: int) -> bool:
        """Return whether `address` lies in a gap."""
        return any(arena.gap_around(address) is not None for arena in (self._small, self._rest))

    def blocks(self) -> Iterator[Range]:
        """Yield the blocks, in no order."""
        yield from self._small.blocks()
        yield from self._rest.blocks()

    def free_ranges(self) -> Iterator[int]:
        """Yield the sizes of the gaps."""
        for arena in (self._small, self._rest):
            yield from arena.sizes()

    def memory(self) -> Iterator[Range]:
        """Yield the segments."""
        return (Range(start, size) for start, (_, size) in self._segments.items())

    def pieces(self, address: int) -> tuple[Range, ...]:
        """Return the block at `address`, which is in one piece."""
        size = self.block_size(address)
        return () if size is None else (Range(address, size),)

    def mapped(self, address: int, size: int) -> list[MappedRange]:  # noqa: ARG002 - a Heap
        """Return nothing: no segment is mapped from chunks."""
        return []

    def layout(self) -> Layout:
        """Return copies of blocks, gaps and segments; see `Heap.layout`."""
        small, rest = self._small.tables(), self._rest.tables()
        segments = {start: size for start, (_, size) in self._segments.items()}
        return Layout(blocks=small[0] | rest[0], gaps=small[1] | rest[1], chunks=segments, shown={})

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every gap."""
        self._small.mark(uses)
        self._rest.mark(uses)

    def check(self) -> None:
        """Prove that segments, blocks and gaps agree."""
        for arena in (self._small, self._rest):
            arena.check()
            segments = [
                Range(start, size) for start, (owner, size) in self._segments.items() if owner is arena
            ]
            if sum(segment.size for segment in segments) != arena.extent_bytes:
                raise InvariantError(f"segments {segments} are not the extent of {arena!r}")
            for block in arena.blocks():
                if not any(part.start <= block.start and block.end <= part.end for part in segments):
                    raise InvariantError(f"{block} lies in no segment")

    def _arena(self, size: int) -> Arena:
        return self._small if size < _SMALL_REQUEST else self._rest
