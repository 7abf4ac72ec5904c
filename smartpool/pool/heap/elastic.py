"""The elastic heap: blocks anywhere in reserved addresses, free memory usable wherever it lies.

Problem: physical memory that is free in the wrong place. An allocator that cannot move blocks
keeps it, and grows.
Method: every chunk is mapped once at its *home* address and stays there; blocks are placed in home
addresses by best fit, and a chunk may be shared by many. When no gap fits a request and the
policy's budget forbids to grow, the free pieces that exist are shown side by side at fresh
addresses by a second mapping of their chunks: a *window* (`smartpool.pool.heap.windows`), chosen by
`smartpool.memory.stitch`. Its block occupies its pieces at home, so every byte is accounted once
and in one place. Nothing is unmapped to make a window and no host waits: later work of the same
stream is ordered behind what may still run on the old addresses, and work of other streams waits
for the uses that the gaps carry. No byte is copied and no pointer moves.

Small requests are placed in *slabs*: blocks of 2 MiB of the home arena with an arena of their
own, so that a short life of a few bytes does not split the large gaps. A slab that is free as a
whole goes back when something does not fit.
Source: stitching by second mapping is GMLake's (ASPLOS 2024), growing in place PyTorch's
expandable segments'; home addresses, windows over partial chunks, and the budget are ours.
Bound: a request is refused only when live bytes and the request together exceed the cap by the
free pieces that lie in the middle of chunks (live on both sides), which no mapping can reach.

Home itself, with what a failing driver call leaves behind, is `smartpool.pool.heap.home`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from smartpool.errors import DriverOutOfMemoryError, InvariantError
from smartpool.memory.arena import ALIGNMENT, Arena, Range, Uses, join_uses
from smartpool.memory.stitch import Stitching, choose_pieces, largest_window
from smartpool.memory.tidy import place_tidily
from smartpool.pool.heap.device_memory import DeviceMemory
from smartpool.pool.heap.home import Home
from smartpool.pool.heap.placement import place_for_stream
from smartpool.pool.heap.policy import Policy
from smartpool.pool.heap.pricing import find_prices
from smartpool.pool.heap.undoing import Undo
from smartpool.pool.heap.windows import Windows
from smartpool.pool.streams import StreamClock
from smartpool.pool.telemetry.memory_map import Layout
from smartpool.prices import Prices
from smartpool.units import align_down

__all__ = ["ElasticHeap"]

_NEAR: Final = 1 / 2  # of the cap; with 3/4 one recorded trace needs 0.75 points more memory


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
        self.windows = Windows(memory.driver, clock)
        self.peak_live_bytes = 0
        self._place = Home(memory)
        self._home = self._place.arena
        self._small = Arena()
        self._slabs: set[int] = set()
        self._chunks = self._place.chunks
        self._memory = memory
        self._driver = memory.driver
        self._clock = clock
        self._policy = policy
        self._prices = prices
        self._priced = False
        self._slab_limit = policy.slab_limit
        self._tidy = policy.tidy
        self._take_care()

    def __repr__(self) -> str:
        return f"<ElasticHeap: {self._home!r}, {len(self._chunks)} chunks, {len(self.windows)} windows>"

    # ------------------------------------------------------------------ blocks

    def allocate(self, size: int, alignment: int, stream: int, largest: int | None = None) -> int | None:
        """Place a block in a gap; see `Heap.allocate`."""
        arena = self._small if size < self._slab_limit else self._home
        if arena.uses:
            return place_for_stream(arena, self._clock, size, alignment, stream, largest)
        if self._tidy and largest is None and alignment == ALIGNMENT:
            return place_tidily(arena, self._chunks, size, self._tidy)
        return arena.allocate(size, alignment, largest)

    def arena_for(self, size: int) -> Arena | None:
        """Return the arena for blocks of `size` bytes; see `Heap.arena_for`."""
        if size < self._slab_limit:
            return self._small
        return None if self._tidy else self._home

    def extend(self, size: int, alignment: int, stream: int, uses: Uses) -> int:
        """Find memory for a block that fits no gap; see `Heap.extend`."""
        if not self._priced:
            self._policy = self._policy.priced(find_prices(self._driver, self._prices))
            self._priced = True
        before = self.peak_live_bytes
        self.peak_live_bytes = max(before, self.live_bytes + size)
        try:
            address = self._extend(size, alignment, stream, uses)
        except BaseException:
            self.peak_live_bytes = before  # a refused request buys no budget
            raise
        self._take_care()
        return address

    def _take_care(self) -> None:
        """Be careful with every gap once the cap is near: what then fits nowhere fails."""
        near = self._memory.reserved_bytes > _NEAR * self._memory.cap_bytes
        self._home.roomy = 1.0 if near else self._policy.roomy
        self._home.trifle = 0.0 if near else self._policy.trifle

    def _extend(self, size: int, alignment: int, stream: int, uses: Uses) -> int:
        if self.windows.crowded:
            self.windows.reap(uses)
        if size < self._slab_limit and self._add_slab():
            address = self.allocate(size, alignment, stream)
            if address is not None:
                return address
        self._return_slabs()
        address = place_for_stream(self._home, self._clock, size, alignment, stream)
        return self._extend_home(size, alignment, stream, uses) if address is None else address

    def free_all(self, groups: Sequence[list[int]], size: int, uses: Uses) -> None:
        """End the blocks in `groups`; see `Heap.free_all`."""
        if size < self._slab_limit:
            self._small.free_all(groups, uses, self._free_elsewhere)
        else:
            self._home.free_all(groups, uses, self._free_elsewhere)

    def _free_elsewhere(self, address: int, uses: Uses) -> None:
        """End a block in a window, or a small block for which there was no room for a slab."""
        window = self.windows.at(address)
        if window is not None:
            for piece in window.pieces:
                self._home.free(piece.start, uses)
            self.windows.retire(address, uses)  # last: see `mend`
        else:
            self._home.free(address, uses)

    # ------------------------------------------------------------------ slabs

    def _add_slab(self) -> bool:
        """Make a block of the home arena into a slab; False when there is no room for one."""
        size = self._policy.slab_bytes
        gap = self._home.find(size)
        if gap is None:
            try:
                with Undo() as undo:
                    site, missing = self._place.find_site(size)
                    self._place.map(site, self._cut(missing), undo)
                    undo.keep()
            except DriverOutOfMemoryError:
                return False
            gap = self._home.find(size)
        if gap is None:
            return False
        uses = self._home.uses_of(gap)
        self._slabs.add(
            gap.start
        )  # first: a slab without its block is none, a block without its slab is lost
        self._home.place(gap, size)
        self._small.extend(gap.start, size, barrier=True, uses=uses)
        return True

    def spare_slab(self) -> bool:
        """Make a gap of home into a slab while slabs are few; see `Heap.spare_slab`.

        Emptying the bins of small requests instead costs a search for each block in them later on.
        """
        size = self._policy.slab_bytes
        if self._small.extent_bytes + size > self._policy.trifle / 4 * self._home.extent_bytes:
            return False
        return self._home.find(size) is not None and self._add_slab()

    def _return_slabs(self) -> None:
        """Turn slabs in which nothing is live back into gaps of the home arena."""
        for gap in list(self._small.fitting(self._policy.slab_bytes)):
            uses = self._small.uses_of(gap)
            self._small.retract(gap, *gap)
            self._home.free(gap.start, uses)
            self._slabs.remove(gap.start)

    # ------------------------------------------------------------------ growing and stitching

    def _extend_home(self, size: int, alignment: int, stream: int, uses: Uses) -> int:
        """Grow within the budget; otherwise stitch what is free, and create only what is missing."""
        shift = alignment - ALIGNMENT  # the gap to be grown may start at any multiple of 512
        budget = max(0, self._policy.budget_bytes(self.peak_live_bytes) - self._memory.reserved_bytes)
        start, missing = self._place.find_site(size + shift)
        stitching = None if missing <= budget else self._choose(size, alignment, budget)
        grow = stitching is None or self._growing_pays(missing, stitching, budget)
        if grow and missing <= self._memory.room_bytes:
            with Undo() as undo:
                try:
                    self._place.map(start, self._cut(self._growth(start, missing, budget)), undo)
                except DriverOutOfMemoryError:
                    pass  # the device holds less than the cap says: stitch
                else:
                    undo.keep()
                    address = place_for_stream(self._home, self._clock, size, alignment, stream)
                    if address is None:
                        raise InvariantError(f"no gap of {size} bytes after growing {self!r}")
                    return address
        return self._stitch(
            stitching or self._choose(size, alignment, budget), alignment, stream, uses, start
        )

    def _growing_pays(self, missing: int, stitching: Stitching, budget: int) -> bool:
        # What stitching would have to create as well is better created at home: no second mapping,
        # and what is left over of it lies behind the block, in one piece.
        return stitching.create_bytes >= missing or self._policy.growing_pays(
            missing,
            stitching.create_bytes,
            len(stitching.before) + len(stitching.after),
            chunk_bytes=self._policy.largest_chunk(
                peak_live_bytes=self.peak_live_bytes,
                cap_bytes=self._memory.cap_bytes,
                granularity=self._driver.granularity,
            ),
            budget_bytes=budget,
            block_bytes=stitching.block_bytes,
        )

    def _growth(self, start: int, missing: int, budget: int) -> int:
        room = min(budget, self._memory.room_bytes, self._place.room_at(start))
        return self._policy.growth_bytes(missing, self.peak_live_bytes, room, self._driver.granularity)

    def _choose(self, size: int, alignment: int, budget: int) -> Stitching:
        return choose_pieces(
            size,
            self._home.gaps_by_size(),
            self._chunks,
            budget_bytes=budget,
            granularity=self._driver.granularity,
            edge_price=self._policy.edge_price,
            show_price=self._policy.prices.show(1, 0),
            create_price=self._policy.prices.grow(1, 0),
            edge_start=alignment <= ALIGNMENT,
        )

    def _stitch(self, stitching: Stitching, alignment: int, stream: int, uses: Uses, site: int) -> int:
        """Show the chosen pieces, and what is created beside them at `site`, as one block."""
        size = stitching.block_bytes
        with Undo() as undo:
            created = (self._create(stitching.create_bytes, site, undo),) if stitching.create_bytes else ()
            pieces = _joined((*stitching.before, *created, *stitching.after), size)
            self._wait_for(pieces, stream, uses)
            if len(pieces) == 1 and pieces[0].start % alignment == 0:
                address = pieces[0].start
                self._place.take(pieces, undo)
            else:
                chunks = [c for piece in pieces for c in self._chunks.covering(piece.start, piece.end)]
                self._place.take(pieces, undo)
                address = self.windows.open(pieces, chunks, alignment).block.start
            undo.keep()
        return address

    def _cut(self, size: int) -> Iterator[int]:
        return self._policy.cut(
            size,
            peak_live_bytes=self.peak_live_bytes,
            cap_bytes=self._memory.cap_bytes,
            granularity=self._driver.granularity,
        )

    def _create(self, size: int, site: int, undo: Undo) -> Range:
        """Map `size` bytes of new chunks, at `site` if there is room, and return where they are."""
        start = site if self._place.room_at(site) >= size else self._place.find_site(size, fresh=True)[0]
        return self._place.map(start, self._cut(size), undo)

    def _wait_for(self, pieces: tuple[Range, ...], stream: int, uses: Uses) -> None:
        """Order `stream` behind whoever may still touch the pieces."""
        joined: Uses = None
        for piece in pieces if self._home.uses else ():
            joined = join_uses(joined, self._home.uses_of(self._place.gap_around(piece)))
        self._clock.wait(joined or uses, stream)

    def map_ahead(self, limit_bytes: int) -> int:
        """Map one new chunk of at most `limit_bytes` behind the last one; return its bytes, 0 for none.

        Raises `DriverOutOfMemoryError` when the device holds no more.
        """
        if not self._priced:
            return 0
        limit = align_down(min(limit_bytes, self._memory.room_bytes), self._driver.granularity)
        if limit <= 0:
            return 0
        size = next(self._cut(limit))
        with Undo() as undo:
            site, _ = self._place.find_site(size, fresh=True)
            self._place.map(site, [size], undo)
            undo.keep()
        return size

    # ------------------------------------------------------------------ giving memory back

    def release_idle(self, limit_bytes: int, uses: Uses, *, wait: bool, exact: bool = False) -> None:
        """Give idle chunks back to the device; see `Heap.release_idle`."""
        self._return_slabs()
        self._place.unmap_loose()
        self.windows.reap(uses, wait=wait)
        released = 0
        for gap in list(self._home.gaps_by_size()):
            if released >= limit_bytes or gap.size < self._driver.granularity:
                break
            gap_uses = self._home.uses_of(gap) or uses
            if wait:
                self._clock.synchronize(gap_uses)
            elif not self._clock.idle(gap_uses):
                continue
            released += self._release_gap(gap, limit_bytes - released, exact=exact)

    def _release_gap(self, gap: Range, limit_bytes: int, *, exact: bool = False) -> int:
        """Give back whole chunks of an idle gap that no window shows, and return their bytes."""
        released = 0
        rest = gap
        for chunk in list(self._chunks.inside(gap.start, gap.end)):
            if released >= limit_bytes:
                break
            if exact and chunk.size > limit_bytes - released:
                continue
            if not self.windows.mappings[chunk.handle]:
                self._place.release(rest, chunk)
                released += chunk.size
                rest = self._home.gap_at(chunk.end) or rest
        return released

    def close(self) -> None:
        """Give everything back; see `Heap.close`."""
        self.windows.close()
        self._return_slabs()
        self._place.unmap_loose()
        for gap in self._home.gaps():
            self._release_gap(gap, gap.size)
        self._place.unreserve()

    def mend(self, uses: Uses) -> None:
        """Make the books anew after an exception in the middle; see `Heap.mend`."""
        self._place.mend(uses)
        self.windows.mend()
        size = self._policy.slab_bytes
        self._slabs = {start for start in self._slabs if self._home.size_at(start) == size}
        self._small.mend([Range(start, size) for start in self._slabs], barrier=True, uses=uses)
        # A window whose pieces are not all taken was about to be made, or to go.
        for window in self.windows.opened():
            taken = [piece for piece in window.pieces if self._home.size_at(piece.start) == piece.size]
            if len(taken) < len(window.pieces):
                for piece in taken:
                    self._home.free(piece.start, uses)
                self.windows.retire(window.block.start, uses)
        self._driver.synchronize()
        self.windows.reap(None, wait=True)  # one may show a chunk that is not wanted any more
        self._place.unmap_loose()
        self._memory.release_unwanted()

    # ------------------------------------------------------------------ questions

    @property
    def live_bytes(self) -> int:
        """Bytes in blocks."""
        return self._home.live_bytes - self._small.free_bytes

    @property
    def gauge(self) -> Arena:
        """Home: slabs count as in use there."""
        return self._home

    @property
    def extent_bytes(self) -> int:
        """Bytes in blocks and gaps."""
        return self._home.extent_bytes

    def room_bytes(self) -> int:
        """Return the bytes of the largest block that needs no new memory."""
        self._return_slabs()
        return largest_window(self._home.gaps_by_size(), self._chunks)

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
        """Return whether a gap starts at `address`."""
        return self._home.gap_at(address) is not None or self._small.gap_at(address) is not None

    def blocks(self) -> Iterator[Range]:
        """Yield the blocks, in no order."""
        windows = self.windows.opened()
        hidden = self._slabs | {piece.start for window in windows for piece in window.pieces}
        yield from (window.block for window in windows)
        yield from (block for block in self._home.blocks() if block.start not in hidden)
        yield from self._small.blocks()

    def free_ranges(self) -> Iterator[int]:
        """Yield the sizes of the gaps."""
        for arena in (self._home, self._small):
            yield from (gap.size for gap in arena.gaps_by_size())

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

    def layout(self) -> Layout:
        """Return copies of blocks, gaps and chunks at home; see `Heap.layout`."""
        blocks, gaps = self._home.tables()
        for start in self._slabs:
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
        for part in (self._place, self._small, self.windows):
            part.check()
        slabs = {(start, self._policy.slab_bytes) for start in self._slabs}
        if not slabs <= {tuple(block) for block in self._home.blocks()}:
            raise InvariantError(f"slabs {slabs} are not blocks of {self._home!r}")
        for window in self.windows.opened():
            for piece in window.pieces:
                if self._home.size_at(piece.start) != piece.size:
                    raise InvariantError(f"{piece} of {window} is not a block of {self._home!r}")


def _joined(pieces: tuple[Range, ...], size: int) -> tuple[Range, ...]:
    """Join pieces that touch at home, and cut the last so that they hold `size` bytes together."""
    joined: list[Range] = []
    for piece in pieces:
        if joined and joined[-1].end == piece.start:
            joined[-1] = Range(joined[-1].start, joined[-1].size + piece.size)
        else:
            joined.append(piece)
    surplus = sum(piece.size for piece in joined) - size
    last = joined[-1]
    if not 0 <= surplus < last.size:
        raise InvariantError(f"{pieces} do not hold {size} bytes")
    joined[-1] = Range(last.start, last.size - surplus)
    return tuple(joined)
