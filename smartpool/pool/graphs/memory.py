# ruff: noqa: SLF001 - this module is a part of the pool
"""What graphs hold on one device: regions of the heap, cut into blocks by an arena for each stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from smartpool.copying import not_copied
from smartpool.errors import CaptureError, InvariantError
from smartpool.memory.arena import ALIGNMENT, Arena, Range, Uses
from smartpool.pool.bins import Bin, enter
from smartpool.pool.graphs.held import HeldBin
from smartpool.pool.heap.protocol import Heap
from smartpool.pool.tiers import tier_of
from smartpool.units import MiB, align_up, format_size

if TYPE_CHECKING:
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["FoundMemory", "GraphMemory"]

_SEGMENT: Final = 2 * MiB  # what the driver gives at least


class GraphMemory:
    """Memory of one device whose addresses graphs have baked in. Made by `SmartPool.capture`.

    It stays the graphs' until `close`, which is to be called when they are gone, or never launched again.

    Attributes
    ----------
    closed
        Whether `close` was called.
    in_heap
        Whether the regions are blocks of the pool's heap.
    """

    in_heap = True

    def __init__(self, manager: AdvancedMemoryPoolManager) -> None:
        self.closed = False
        self._manager = manager
        self._arenas: dict[int, Arena] = {}  # by stream; the pool's lock guards all of it but `_returned`
        self._regions: dict[int, tuple[int, int]] = {}  # start -> size, stream
        self._returned: list[tuple[int, HeldBin]] = []  # freed, and not in an arena yet
        self._resting: list[tuple[int, int]] = []  # freed after another stream used them too
        self._late_users: set[int] = set()  # streams of what was freed after `close`

    __reduce_ex__ = not_copied

    def __repr__(self) -> str:
        state = "closed, " if self.closed else ""
        return f"<GraphMemory on {self._manager.driver.name}: {state}{format_size(self.held_bytes)} held>"

    @property
    def held_bytes(self) -> int:
        """Bytes that are the graphs', live or free."""
        return sum(size for _, size in self.regions())

    def holds(self, address: int) -> bool:
        """Return whether the address lies in the graphs' memory. O(regions)."""
        return any(start <= address < start + size for start, size in self.regions())

    def close(self) -> None:
        """Give the memory back, once the device is done with it: no graph over it may be launched again.

        What is live becomes ordinary memory, and keeps the region around it until it is freed. Idempotent.

        Raises
        ------
        CaptureError
            While a capture into this memory is under way.
        """
        from smartpool.pool.graphs import captures as graphs  # noqa: PLC0415 - which stands on this module

        pool = self._manager
        if self.closed:
            return
        if pool._disowned or not isinstance(pool, graphs.GraphPool):  # the parent's, or never used
            self.closed = True
            return
        with pool.driver.beside_capture(), pool._writing():
            if isinstance(pool, graphs.CapturingPool) and pool.captured_memory is self:
                raise CaptureError("expected the capture into this memory to have ended; end it first")
            if isinstance(pool, graphs.CapturingPool):
                pool.unsettled = True  # nothing may wait for the device beside a capture
            else:
                pool.driver.synchronize()
            self.closed = True
            pool.collect_graphs()
        graphs.release_if_over(pool)

    # ------------------------------------------------------------------ inside, under the pool's lock

    def take(
        self, nbytes: int, stream: int, alignment: int, take_region: Callable[[int, int, int], int]
    ) -> int:
        """Return the address of a block for captured work on `stream`.

        `take_region` gives a block of the heap, or a raw segment, by size, stream and alignment.
        """
        self.collect()
        size = align_up(nbytes, ALIGNMENT) or ALIGNMENT
        arena = self._arenas.setdefault(stream, Arena())
        start = arena.allocate(size, alignment)
        if start is None:
            region = self.region_bytes(size, alignment)
            base = take_region(region, stream, alignment)
            self._regions[base] = (region, stream)
            arena.extend(base, region, barrier=not self.in_heap)
            start = arena.allocate(size, alignment)
            assert start is not None
        held = HeldBin(nbytes, size, stream, tier_of(nbytes), self._returned)
        enter(self._manager.quick_path[1], start, held)
        return start

    def region_bytes(self, size: int, alignment: int) -> int:
        """Return how large a region is taken for a block."""
        return align_up(size, alignment)

    def give_back(self, start: int, size: int, uses: Uses) -> None:
        """Give a region back to where it came from; `uses` may still touch it."""
        self._manager._heap.free_all([[start]], size, uses)

    def collect(self) -> None:
        """Put what was freed into the arenas; what several streams used rests until the memory is closed."""
        while self._returned:
            pointer, bin_ = self._returned.pop()
            if bin_.others and not self.closed:
                self._resting.append((pointer, bin_.stream))
                continue
            self._arenas[bin_.stream].free(pointer)
            if self.closed:
                self._late_users.update((bin_.stream, *bin_.others))

    def late_users(self) -> set[int]:
        """Return the streams whose work may still touch what was freed since `close` waited, once."""
        users, self._late_users = self._late_users, set()
        return users

    def leave(self) -> list[tuple[int, int]]:
        """Take out the regions in which nothing is live; return start and size of each."""
        while self._resting:
            pointer, stream = self._resting.pop()
            self._arenas[stream].free(pointer)
        idle = []
        for start, (size, stream) in list(self._regions.items()):
            arena = self._arenas[stream]
            gap = arena.gap_around(start) or arena.gap_at(start)
            if gap is not None and gap.start <= start and start + size <= gap.end:
                arena.retract(gap, start, size)
                del self._regions[start]
                idle.append((start, size))
        return idle

    def mend(self, heap: Heap) -> None:
        """Make the arenas anew after an exception in the middle of a call; see `Heap.mend`."""
        held = self._manager._memory.segments()
        sizes = heap.block_size if self.in_heap else held.get
        self._regions = {at: region for at, region in self._regions.items() if sizes(at) == region[0]}
        for stream, arena in self._arenas.items():
            mine = [Range(start, size) for start, (size, own) in self._regions.items() if own == stream]
            arena.mend(mine, barrier=not self.in_heap)

    def regions(self) -> list[tuple[int, int]]:
        """Return start and size of each region."""
        return [(start, size) for start, (size, _) in self._regions.copy().items()]

    def check(self, live: dict[int, Bin]) -> None:
        """Prove that the arenas cover the regions, and hold the live blocks and what was freed lately."""
        blocks = {start for arena in self._arenas.values() for start, _ in arena.blocks()}
        mine = (item for item in live.items() if isinstance(item[1], HeldBin))
        held = {pointer for pointer, bin_ in mine if bin_.is_of(self._returned)}  # type: ignore[attr-defined]
        noted = {pointer for pointer, _ in self._returned} | {pointer for pointer, _ in self._resting}
        if blocks != held | noted or held & noted:
            raise InvariantError(f"blocks {blocks} of {self!r} are not live {held} and freed {noted}")
        for stream, arena in self._arenas.items():
            arena.check()
            extent = sum(size for size, own in self._regions.values() if own == stream)
            if extent != arena.extent_bytes:
                raise InvariantError(f"regions of {extent} bytes are not the extent of {arena!r}")


class FoundMemory(GraphMemory):
    """Memory of one capture that began outside of `SmartPool.capture`, in raw segments."""

    in_heap = False

    def region_bytes(self, size: int, alignment: int) -> int:
        """Return whole segments, so that small requests share them."""
        return align_up(size + alignment, _SEGMENT)

    def give_back(self, start: int, size: int, uses: Uses) -> None:  # noqa: ARG002
        """Give a segment back to the device once it is done with it."""
        pool = self._manager
        pool._clock.synchronize(uses)
        pool._memory.apart.discard(start)
        pool._memory.release_segment(start)

    def take_segment(self, size: int, stream: int, alignment: int) -> int:  # noqa: ARG002
        """Return the address of a new segment."""
        memory = self._manager._memory
        start = memory.allocate_segment(size)
        memory.apart.add(start)
        return start
