"""What graphs hold on one device: regions of the heap, cut into blocks by an arena for each stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from smartpool.copying import not_copied
from smartpool.errors import CaptureError, InvariantError
from smartpool.heap.arena import ALIGNMENT, Arena, Range, Uses
from smartpool.heap.protocol import Heap
from smartpool.pool.bins import Bin, LoneBin, enter
from smartpool.pool.ending import release_if_over
from smartpool.units import MiB, align_up, format_size

if TYPE_CHECKING:
    from smartpool.graphs.captures import Graphs
    from smartpool.pool.slow_path import SlowPath

__all__ = ["FoundMemory", "GraphMemory"]

_SEGMENT: Final = 2 * MiB  # what the driver gives at least


class HeldBin(LoneBin):
    """The bin of one block in a graph's memory: what is put into it goes to that memory.

    Parameters
    ----------
    like
        A bin of its size and stream.
    returned
        Where the block is noted when it is freed, with the bin that says who used it.
    """

    __slots__ = ("_returned",)

    def __init__(self, like: Bin, returned: list[tuple[int, HeldBin]]) -> None:
        super().__init__(like)
        self._returned = returned

    def own(self) -> Bin:
        """Return another bin for the block, to be told of further streams."""
        own = HeldBin(self, self._returned)
        own.others = self.others
        return own

    def is_of(self, returned: list[tuple[int, HeldBin]]) -> bool:
        """Return whether the block goes back to that list."""
        return self._returned is returned

    def append(self, pointer: int) -> None:
        """Note that the block was freed. Atomic, so that it may happen anywhere."""
        self._returned.append((pointer, self))


class Capturable(Protocol):
    """A pool of which graphs can hold memory: `AdvancedMemoryPoolManager`."""

    slow_path: SlowPath
    graphs: Graphs


class HeldMemory:
    """Memory of one device whose addresses graphs have baked in.

    Attributes
    ----------
    closed
        Whether `close` was called.
    in_heap
        Whether the regions are blocks of the pool's heap.
    """

    in_heap = True

    def __init__(self, pool: SlowPath, graphs: Graphs) -> None:
        self.closed = False
        self._pool = pool
        self._graphs = graphs
        self._arenas: dict[int, Arena] = {}  # by stream; the pool's lock guards all of it but `_returned`
        self._regions: dict[int, tuple[int, int]] = {}  # start -> size, stream
        self._returned: list[tuple[int, HeldBin]] = []  # freed, and not in an arena yet
        self._resting: list[tuple[int, int]] = []  # freed after another stream used them too
        self._late_users: set[int] = set()  # streams of what was freed after `close`

    __reduce_ex__ = not_copied

    def __repr__(self) -> str:
        state = "closed, " if self.closed else ""
        return (
            f"<{type(self).__name__} on {self._pool.driver.name}: {state}{format_size(self.held_bytes)} held>"
        )

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
        pool, graphs = self._pool, self._graphs
        if self.closed:
            return
        if pool.disowned or self not in graphs.memories:  # the parent's, or never used
            self.closed = True
            return
        with pool.driver.beside_capture(), pool.writing():
            if graphs.capture is None:
                pool.driver.synchronize()
            elif graphs.capture.memory is self:
                raise CaptureError("expected the capture into this memory to have ended; end it first")
            else:
                graphs.unsettled = True  # nothing may wait for the device beside a capture
            self.closed = True
            graphs.collect(pool)
        release_if_over(pool)

    def is_of(self, graphs: Graphs) -> bool:
        """Return whether it belongs to that pool."""
        return self._graphs is graphs

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
        enter(self._pool.live, start, HeldBin(self._pool.new_bin(nbytes, stream), self._returned))
        return start

    def region_bytes(self, size: int, alignment: int) -> int:
        """Return how large a region is taken for a block."""
        return align_up(size, alignment)

    def give_back(self, start: int, size: int, uses: Uses) -> None:
        """Give a region back to where it came from; `uses` may still touch it."""
        self._pool.heap.free_all([[start]], size, uses)

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
        sizes = self.region_sizes(heap)
        self._regions = {at: region for at, region in self._regions.items() if sizes.get(at) == region[0]}
        for stream, arena in self._arenas.items():
            mine = [Range(start, size) for start, (size, own) in self._regions.items() if own == stream]
            arena.mend(mine, barrier=not self.in_heap)

    def region_sizes(self, heap: Heap) -> dict[int, int | None]:
        """Return start to size of what may be regions, as those say who gave them."""
        return {start: heap.block_size(start) for start in self._regions}

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


class GraphMemory(HeldMemory):
    """Memory of one device whose addresses graphs have baked in. Made by `SmartPool.capture`.

    It stays the graphs' until `close`, which is to be called when they are gone, or never launched again.
    It holds its pool.

    Attributes
    ----------
    closed
        Whether `close` was called.
    """

    def __init__(self, manager: Capturable) -> None:
        super().__init__(manager.slow_path, manager.graphs)
        self._manager = manager


class FoundMemory(HeldMemory):
    """Memory of one capture that began outside of `SmartPool.capture`, in raw segments."""

    in_heap = False

    def region_bytes(self, size: int, alignment: int) -> int:
        """Return whole segments, so that small requests share them."""
        return align_up(size + alignment, _SEGMENT)

    def region_sizes(self, heap: Heap) -> dict[int, int | None]:  # noqa: ARG002 - these are not the heap's
        """Return start to size of the segments."""
        return {**self._pool.memory.segments()}

    def give_back(self, start: int, size: int, uses: Uses) -> None:  # noqa: ARG002
        """Give a segment back to the device once it is done with it."""
        self._pool.clock.synchronize(uses)
        self._pool.memory.apart.discard(start)
        self._pool.memory.release_segment(start)

    def take_segment(self, size: int, stream: int, alignment: int) -> int:  # noqa: ARG002
        """Return the address of a new segment."""
        memory = self._pool.memory
        start = memory.allocate_segment(size)
        memory.apart.add(start)
        return start
