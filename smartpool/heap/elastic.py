"""The elastic heap: blocks anywhere in reserved addresses, free memory usable wherever it lies.

Every chunk is mapped once at its *home* address and stays there; blocks are placed in home addresses
by first fit, and a chunk may be shared by many. This is where blocks begin and end, and where idle
memory is given back. Its parts:

*Home* (`smartpool.heap.arena`): blocks, and the gaps between them, exactly where chunks are mapped.
*Mappings* (`smartpool.heap.mappings`): which chunk is mapped where, at home and in windows.
*Growing* (`smartpool.heap.growing`): memory for a block that fits no gap, new or stitched.
*Windows* (`smartpool.heap.windows`): the second mappings through which stitched blocks are seen.
*Slabs* (`smartpool.heap.slabs`): blocks of home in which small requests are placed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from smartpool.driver.protocol import MappedRange
from smartpool.errors import InvariantError
from smartpool.heap.arena import ALIGNMENT, Arena, Range, Uses, side_by_side
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.growing import Growing
from smartpool.heap.mappings import Mappings, union
from smartpool.heap.placement import place_for_stream
from smartpool.heap.policy import Policy
from smartpool.heap.profile import HeapProfile, Restoring
from smartpool.heap.protocol import Layout
from smartpool.heap.slabs import Slabs
from smartpool.heap.stitch import largest_window
from smartpool.heap.stream_order import StreamClock
from smartpool.heap.windows import Windows, cut
from smartpool.prices import Prices

__all__ = ["ElasticHeap"]


class ElasticHeap:
    """Blocks, slabs, chunks and windows of one device. The pool's lock guards it.

    Parameters
    ----------
    memory
        The device's physical memory.
    clock
        Stream order.
    policy
        How large chunks are, and how much may be reserved beyond the peak of live bytes.
    prices
        What the driver's calls cost; None to find out when the heap first grows.
    """

    def __init__(
        self, memory: DeviceMemory, clock: StreamClock, policy: Policy, prices: Prices | None = None
    ) -> None:
        self._home = Arena()
        self._chunks = Mappings(memory, primary=True)
        self.windows = Windows(memory, clock)
        self._growing = Growing(self._home, self._chunks, self.windows, memory, clock, policy, prices)
        self._slabs = Slabs(self._home, self._growing)
        self._small = self._slabs.arena
        self._memory = memory
        self._driver = memory.driver
        self._clock = clock
        self._slab_limit = policy.slab_limit

    def __repr__(self) -> str:
        return f"<ElasticHeap: {self._home!r}, {len(self._chunks)} chunks, {len(self.windows)} windows>"

    # ------------------------------------------------------------------ blocks

    def allocate(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in a gap; see `Heap.allocate`."""
        arena = self._small if size < self._slab_limit else self._home
        if arena.uses:
            return place_for_stream(arena, self._clock, size, alignment, stream)
        return arena.allocate(size, alignment)

    def arena_for(self, size: int) -> Arena | None:
        """Return the arena for blocks of `size` bytes; see `Heap.arena_for`."""
        return self._small if size < self._slab_limit else self._home

    def extend(self, size: int, alignment: int, stream: int) -> int:
        """Find memory for a block that fits no gap; see `Heap.extend`."""
        growing = self._growing
        if not growing.priced:
            growing.price()
        before = growing.peak_live_bytes
        growing.peak_live_bytes = max(before, self.live_bytes + size)
        try:
            if self.windows.kept_mappings > self.windows.most_kept:
                self.windows.reap_oldest(self._clock.default_uses())
            address = self._add_slab_for(size, alignment, stream) if size < self._slab_limit else None
            if address is None:
                address = self._place_at_home(size, alignment, stream)
            return growing.extend(size, alignment, stream) if address is None else address
        except BaseException:
            growing.peak_live_bytes = before  # a refused request buys no budget
            raise

    def _add_slab_for(self, size: int, alignment: int, stream: int) -> int | None:
        return self.allocate(size, alignment, stream) if self._slabs.add() else None

    def _place_at_home(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in a gap of home, slabs in which nothing is live among them."""
        if self._slabs.starts:
            self._slabs.give_back()
        if self._home.uses or alignment > ALIGNMENT:
            return place_for_stream(self._home, self._clock, size, alignment, stream)
        return self._home.serve(size, [], self.free_elsewhere)

    def place_idle(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in what is free, without growing; see `Heap.place_idle`."""
        if size < self._slab_limit:
            address = self.allocate(size, alignment, stream)
            if address is None and self._slabs.add(grow=False):
                address = self.allocate(size, alignment, stream)
            if address is not None:
                return address
        address = self._place_at_home(size, alignment, stream)
        return self._growing.stitch_idle(size, alignment, stream) if address is None else address

    def split(self, address: int, sizes: Sequence[int]) -> None:
        """Turn a block into several; see `Heap.split`."""
        parts = side_by_side(address, sizes)
        window = self.windows.at(address)
        if window is None:
            (self._small if address in self._small else self._home).split(parts)
            return
        pieces = cut(window.pieces, sizes)
        self._home.split([piece for part in pieces for piece in part])  # first: see `mend`
        self.windows.split(window, dict(zip(parts, pieces, strict=True)))

    def free_all(self, groups: Sequence[list[int]], size: int, uses: Uses) -> None:
        """End the blocks in `groups`; see `Heap.free_all`."""
        if size < self._slab_limit:
            self._small.free_all(groups, uses, self.free_elsewhere)
        else:
            self._home.free_all(groups, uses, self.free_elsewhere)

    def free_elsewhere(self, address: int, uses: Uses) -> None:
        """End a block in a window, or a small block for which there was no room for a slab."""
        window = self.windows.at(address)
        if window is not None:
            for piece in window.pieces:
                self._home.free(piece.start, uses)
            self.windows.retire(address, uses)  # last: see `mend`
        else:
            self._home.free(address, uses)

    def spare_slab(self) -> bool:
        """Make a gap of home into a slab while slabs are few; see `Heap.spare_slab`."""
        return self._slabs.spare()

    def map_ahead(self, limit_bytes: int) -> int:
        """Map one new chunk before it is asked for; see `Growing.map_ahead`."""
        return self._growing.map_ahead(limit_bytes)

    def learned(self) -> HeapProfile:
        """Return what a next run can begin with; see `Growing.learned`."""
        return self._growing.learned()

    def restore(self, restoring: Restoring) -> int:
        """Make the next part of a profile again; see `Growing.restore`."""
        return self._growing.restore(restoring)

    # ------------------------------------------------------------------ giving memory back

    def release_idle(self, limit_bytes: int, *, wait: bool, exact: bool = False) -> None:
        """Give idle chunks back to the device; see `Heap.release_idle`."""
        self._slabs.give_back()
        self.windows.settle()
        self._chunks.settle()
        released, uses = 0, self._clock.default_uses()
        for gap in list(self._home.gaps_by_size()):
            if released >= limit_bytes or gap.size < self._driver.granularity:
                break
            gap_uses = self._home.uses_of(gap) or uses
            if wait:
                self._clock.synchronize(gap_uses)
            elif not self._clock.idle(gap_uses):
                continue
            released += self._release_gap(gap, limit_bytes - released, uses, wait=wait, exact=exact)

    def _release_gap(
        self, gap: Range, limit_bytes: int, uses: Uses = None, *, wait: bool = False, exact: bool = False
    ) -> int:
        """Give back whole chunks of an idle gap that no live block's window shows, and return their bytes."""
        released = 0
        rest = gap
        for chunk in self._chunks.table.inside(gap.start, gap.end):
            if released >= limit_bytes:
                break
            if exact and chunk.size > limit_bytes - released:
                continue
            if self.windows.uncover(chunk.chunk, uses, wait=wait):
                self._chunks.unmap([chunk])
                self._home.retract(rest, chunk.start, chunk.size)
                self._chunks.drop(chunk)
                self._memory.tell("unmap", chunk.start, chunk.size)
                released += chunk.size
                rest = self._home.gap_at(chunk.end) or rest
        return released

    def books(self) -> tuple[Mappings, Mappings]:
        """Return the primary mappings and the aliases, for whoever puts them to sleep."""
        return self._chunks, self.windows.aliases

    def live_ranges(self) -> list[Range]:
        """Return the bytes at home in which something is live, those shown by windows among them."""
        return union(self._home.blocks())

    def close(self) -> None:
        """Give everything back; see `Heap.close`."""
        self.windows.close()
        self._slabs.give_back()
        self._chunks.settle()
        for gap in self._home.gaps():
            self._release_gap(gap, gap.size)
        self._chunks.unreserve()

    def mend(self, uses: Uses) -> None:
        """Make the books anew after an exception in the middle; see `Heap.mend`."""
        self._chunks.mend()
        self._home.mend(union(self.memory()), uses=uses)
        self.windows.mend()
        self._slabs.mend(uses)
        # A window whose pieces are not all taken was about to be made, to go, or to be split.
        for window in self.windows.opened():
            for piece in window.pieces:
                self._home.rejoin(piece)
            taken = [piece for piece in window.pieces if self._home.size_at(piece.start) == piece.size]
            if len(taken) < len(window.pieces):
                for piece in taken:
                    self._home.free(piece.start, uses)
                self.windows.retire(window.block.start, uses)
        self._driver.synchronize()
        self.windows.reap()  # one may show a chunk that is to go
        self._chunks.settle()
        self._memory.release_unwanted()

    # ------------------------------------------------------------------ questions

    @property
    def live_bytes(self) -> int:
        """Bytes in blocks."""
        small = self._small
        return self._home.live_bytes - small.extent_bytes + small.live_bytes

    @property
    def peak_live_bytes(self) -> int:
        """The most bytes in blocks so far, as growing knows it."""
        return self._growing.peak_live_bytes

    @property
    def gauge(self) -> Arena:
        """Home: slabs count as in use there."""
        return self._home

    @property
    def extent_bytes(self) -> int:
        """Bytes in blocks and gaps."""
        return self._home.extent_bytes

    def room_bytes(self) -> int:
        """Return the bytes of the largest block that `place_idle` can place."""
        self._slabs.give_back()
        return largest_window(self._home.gaps_by_size(), self._chunks.table)

    @property
    def largest_gap_bytes(self) -> int:
        """Bytes of the largest gap."""
        gaps = (self._home.largest_gap, self._small.largest_gap)
        return max((gap.size for gap in gaps if gap), default=0)

    @property
    def small_bytes(self) -> int:
        """Bytes of the slabs."""
        return self._small.extent_bytes

    def block_size(self, address: int) -> int | None:
        """Return the size of the block at `address`, or None."""
        window = self.windows.at(address)
        if window is not None:
            return window.block.size
        return self._small.size_at(address) or self._home.size_at(address)

    def is_gap(self, address: int) -> bool:
        """Return whether `address` lies in a gap, or is where a kept window had its block."""
        arenas = (self._home, self._small)
        return any(arena.gap_around(address) for arena in arenas) or self.windows.was_block(address)

    def blocks(self) -> Iterator[Range]:
        """Yield the blocks, in no order."""
        windows = self.windows.opened()
        hidden = self._slabs.starts | {piece.start for window in windows for piece in window.pieces}
        yield from (window.block for window in windows)
        yield from (block for block in self._home.blocks() if block.start not in hidden)
        yield from self._small.blocks()

    def free_ranges(self) -> Iterator[int]:
        """Yield the sizes of the gaps."""
        for arena in (self._home, self._small):
            yield from arena.sizes()

    def memory(self) -> Iterator[Range]:
        """Yield where the chunks are at home."""
        return (Range(chunk.start, chunk.size) for chunk in self._chunks)

    def pieces(self, address: int) -> tuple[Range, ...]:
        """Return the memory under the block at `address`: for one in a window, its pieces at home."""
        window = self.windows.at(address)
        if window is not None:
            return window.pieces
        size = self.block_size(address)
        return () if size is None else (Range(address, size),)

    def mapped(self, address: int, size: int) -> list[MappedRange]:
        """Return the chunks mapped under [address, address + size), in order; see `Heap.mapped`."""
        books = (self._chunks, self.windows.aliases)
        found = [mapping for book in books for mapping in book.table.touching(address, address + size)]
        return [MappedRange(mapping.start, mapping.size, mapping.chunk) for mapping in found]

    def layout(self) -> Layout:
        """Return copies of blocks, gaps and chunks at home; see `Heap.layout`."""
        blocks, gaps = self._home.tables()
        for start in self._slabs.starts:
            del blocks[start]  # what is in them tells more
        small_blocks, small_gaps = self._small.tables()
        shown: dict[int, tuple[int, int]] = {}
        for window in self.windows.opened():
            offset = 0
            for piece in window.pieces:
                shown[piece.start] = (window.block.start, offset)
                offset += piece.size
        chunks = {chunk.start: chunk.size for chunk in self._chunks}
        blocks.update(small_blocks)
        gaps.update(small_gaps)
        return Layout(blocks=blocks, gaps=gaps, chunks=chunks, shown=shown)

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every gap."""
        self._home.mark(uses)
        self._small.mark(uses)
        self.windows.mark(uses)

    def check(self) -> None:
        """Prove that blocks, gaps, slabs, chunks, windows and addresses agree."""
        for part in (self._home, self._chunks, self._slabs, self.windows):
            part.check()
        if union(self.memory()) != union([*self._home.blocks(), *self._home.gaps()]):
            raise InvariantError("a block or a gap lies where no chunk is at home")
        for window in self.windows.opened():
            for piece in window.pieces:
                if self._home.size_at(piece.start) != piece.size:
                    raise InvariantError(f"{piece} of {window} is not a block of {self._home!r}")
