"""Growing: memory for a block that fits no gap of home, new or stitched.

Problem: physical memory that is free in the wrong place. An allocator that cannot move blocks
keeps it, and grows.
Method: while the policy's budget allows, new chunks are mapped at home, behind the largest gap that
can be made longer. Beyond it, a *window* that was made before is used again if its pieces are free
(`smartpool.heap.windows`): no driver call. Else the free pieces that exist are shown side by side
at fresh addresses by a second mapping of their chunks, a window more, chosen by
`smartpool.heap.stitch`; only what they lack is created, and where even that costs more than bytes are
worth, home grows all the same. Its block occupies its pieces at home, so
every byte is accounted once and in one place. Nothing is unmapped to make a window and no host
waits: later work of the same stream is ordered behind what may still run on the old addresses, and
work of other streams waits for the uses that the gaps carry. No byte is copied and no pointer moves.
Source: stitching by second mapping is GMLake's (ASPLOS 2024), growing in place PyTorch's
expandable segments'; windows over partial chunks and the budget are ours.
Bound: a request is refused only when live bytes and the request together exceed the cap by the
free pieces that lie in the middle of chunks (live on both sides), which no mapping can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from smartpool.errors import DriverError, DriverOutOfMemoryError, InvariantError
from smartpool.heap.arena import ALIGNMENT, Arena, Range, Uses, join_uses
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.mappings import Mappings
from smartpool.heap.policy import Policy
from smartpool.heap.pricing import find_prices
from smartpool.heap.profile import HeapProfile, Restoring, offsets_in, parts_of
from smartpool.heap.stitch import Stitching, choose_pieces
from smartpool.heap.stream_order import StreamClock
from smartpool.heap.windows import Windows
from smartpool.prices import Prices
from smartpool.units import align_down

__all__ = ["Growing"]

_SITES_EXAMINED: Final = 32


class Growing:
    """Who decides between new and stitched memory, and makes either. The pool's lock guards it.

    Parameters
    ----------
    home
        Blocks and gaps, where chunks are mapped for good.
    chunks
        Those mappings.
    windows
        Where they are mapped a second time.
    memory
        The device's physical memory.
    clock
        Stream order.
    policy
        How large chunks are, and how much may be reserved beyond the peak of live bytes.
    prices
        What the driver's calls cost; None to find out.

    Attributes
    ----------
    policy
        The policy, from `price` on for these prices.
    peak_live_bytes
        What the budget is measured by; the heap, which knows what is live, sets it.
    priced
        Whether the prices are known.
    """

    def __init__(  # noqa: PLR0917 - the heap's own parts, in the order in which they stand on each other
        self,
        home: Arena,
        chunks: Mappings,
        windows: Windows,
        memory: DeviceMemory,
        clock: StreamClock,
        policy: Policy,
        prices: Prices | None,
    ) -> None:
        self.policy = policy
        self.peak_live_bytes = 0
        self._home = home
        self._chunks = chunks
        self._windows = windows
        self._memory = memory
        self._driver = memory.driver
        self._clock = clock
        self._prices = prices
        self.priced = False

    def __repr__(self) -> str:
        return f"<Growing: {self._chunks!r}, peak of {self.peak_live_bytes} bytes>"

    def price(self) -> None:
        """Find out what the driver's calls cost; they are not needed before the first growth."""
        self.policy = self.policy.priced(find_prices(self._driver, self._prices))
        self.priced = True

    # ------------------------------------------------------------------ a block

    def extend(self, size: int, alignment: int, stream: int) -> int:
        """Grow within the budget; otherwise take or stitch what is free, and create only what is missing."""
        memory, policy, granularity = self._memory, self.policy, self._driver.granularity
        budget = max(0, int((1 + policy.slack) * self.peak_live_bytes) - memory.reserved_bytes)
        if budget < granularity and (kept := self._take_kept(size, alignment, stream)) is not None:
            return kept
        # A gap may start at any multiple of 512.
        start, room, missing = self._find_site(size + alignment - ALIGNMENT)
        if granularity <= budget < missing:
            kept = self._take_kept(size, alignment, stream)
            if kept is not None:
                return kept
        stitching = None if missing <= budget else self._choose(size, alignment, budget)
        most = memory.cap_bytes - memory.reserved_bytes
        if missing <= most and (stitching is None or self._growing_pays(missing, stitching, budget)):
            ahead = min(budget, most, room, int(policy.ahead * self.peak_live_bytes))
            try:
                grown = self._map(start, room, max(missing, ahead // granularity * granularity))
            except DriverOutOfMemoryError:  # the device holds less than the cap says: stitch
                start, room, _ = self._find_site(size + alignment - ALIGNMENT)
            else:
                if alignment <= ALIGNMENT and not self._home.uses:
                    return self._home.extend_for(*grown, size)
                gap = self._home.extend(*grown)
                self._clock.wait(self._home.uses_of(gap), stream)
                return self._home.place(gap, size, alignment)
        return self._stitch(
            stitching or self._choose(size, alignment, budget), alignment, stream, (start, room)
        )

    def _find_site(self, size: int, *, fresh: bool = False) -> tuple[int, int, int]:
        """Return address, bytes of addresses there and bytes missing there for a gap of `size` bytes.

        Best is behind the largest gap that ends where nothing is mapped; with `fresh`, all of
        `size` is to be mapped, and the best is simply an end.
        """
        granularity, room_before = self._driver.granularity, self._home.room_before
        best = (0, 0, 0)
        for start, room in self._chunks.sites(_SITES_EXAMINED):
            missing = -(((0 if fresh else room_before(start)) - size) // granularity) * granularity
            if room >= missing and (not best[2] or missing < best[2]):
                best = (start, room, missing)
        if not best[2]:
            start, room = self._chunks.reserve(size)
            best = (start, room, -(-size // granularity) * granularity)
        return best

    def _cut(self, size: int) -> Sequence[int]:
        """Return the sizes of the chunks for `size` bytes."""
        return self.policy.cut(
            size,
            peak_live_bytes=self.peak_live_bytes,
            cap_bytes=self._memory.cap_bytes,
            granularity=self._driver.granularity,
        )

    def _map(self, start: int, room: int, size: int, sizes: Sequence[int] = ()) -> Range:
        """Map `size` bytes of new chunks at `start`, where there are `room` addresses, in one step."""
        self._chunks.map(Range(start, room), start, sizes or self._cut(size))
        if self._memory.on_change is not None:
            self._memory.on_change("map", start, size, self._memory.reserved_bytes)
        return Range(start, size)

    def _shrink(self, part: Range) -> None:
        """Take a new gap away again, while another failure is under way."""
        self._home.retract(self._gap_around(part), *part)
        self._chunks.take_back(*part)
        self._memory.tell("unmap", *part)

    def _growing_pays(self, missing: int, stitching: Stitching, budget: int) -> bool:
        # What stitching would have to create as well is better created at home: no second mapping,
        # and what is left over of it lies behind the block, in one piece.
        return stitching.create_bytes >= missing or self.policy.growing_pays(
            missing,
            stitching.create_bytes,
            len(stitching.before) + len(stitching.after),
            chunk_bytes=self.policy.largest_chunk(
                peak_live_bytes=self.peak_live_bytes,
                cap_bytes=self._memory.cap_bytes,
                granularity=self._driver.granularity,
            ),
            budget_bytes=budget,
            block_bytes=stitching.block_bytes,
        )

    # ------------------------------------------------------------------ stitching

    def _take_kept(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in a window that was made before; None when no such window's pieces are free."""
        if not self._windows.kept_mappings:
            return None
        window = self._windows.find(size, alignment, self._home.is_free)
        if window is None:
            return None
        self._wait_for(window.pieces, stream)
        self._windows.reopen(window)  # first: see `ElasticHeap.mend`
        self._take(window.pieces)
        return window.block.start

    def stitch_idle(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in pieces that are free, creating nothing; None where they are too little."""
        address = self._take_kept(size, alignment, stream)
        if address is not None:
            return address
        stitching = self._choose(size, alignment, 0)
        return None if stitching.create_bytes else self._stitch(stitching, alignment, stream, (0, 0))

    def _choose(self, size: int, alignment: int, budget: int) -> Stitching:
        return choose_pieces(
            size,
            self._home.gaps_by_size(),
            self._chunks.table,
            budget_bytes=budget,
            granularity=self._driver.granularity,
            edge_price=self.policy.edge_price,
            show_price=self.policy.prices.show(1, 0),
            create_price=self.policy.prices.grow(1, 0),
            edge_start=alignment <= ALIGNMENT,
        )

    def _stitch(self, stitching: Stitching, alignment: int, stream: int, site: tuple[int, int]) -> int:
        """Show the chosen pieces, and what is created beside them at `site`, as one block."""
        created: tuple[Range, ...] = ()
        if stitching.create_bytes:
            start, room = site
            if room < stitching.create_bytes:
                start, room, _ = self._find_site(stitching.create_bytes, fresh=True)
            created = (self._map(start, room, stitching.create_bytes),)
            self._home.extend(*created[0])
        try:
            pieces = _joined((*stitching.before, *created, *stitching.after), stitching.block_bytes)
            self._wait_for(pieces, stream)
            address = pieces[0].start
            if len(pieces) > 1 or address % alignment:
                chunks = [c for piece in pieces for c in self._chunks.table.touching(piece.start, piece.end)]
                address = self._windows.open(pieces, chunks, alignment).block.start
        except DriverError:
            for part in created:
                self._shrink(part)
            raise
        self._take(pieces)
        return address

    def _take(self, pieces: tuple[Range, ...]) -> None:
        """Make each piece a block of home."""
        for piece in pieces:
            self._home.place_at(self._gap_around(piece), *piece)

    def _gap_around(self, piece: Range) -> Range:
        """Return the gap that holds `piece`, which is free."""
        gap = self._home.gap_at(piece.start) or self._home.gap_before(piece.end)
        if gap is None or gap.start > piece.start or gap.end < piece.end:
            gap = self._home.gap_around(piece.start)
        if gap is None or gap.end < piece.end:
            raise InvariantError(f"{piece} is not free in {self._home!r}")
        return gap

    def _wait_for(self, pieces: tuple[Range, ...], stream: int) -> None:
        """Order `stream` behind whoever may still touch the pieces."""
        joined: Uses = None
        for piece in pieces if self._home.uses else ():
            joined = join_uses(joined, self._home.uses_of(self._gap_around(piece)))
        self._clock.wait(joined, stream)

    # ------------------------------------------------------------------ gaps

    def make_gap(self, size: int) -> None:
        """Map what home lacks for a gap of `size` bytes, whatever the budget.

        Raises `DriverOutOfMemoryError` when the device holds no more.
        """
        self._home.extend(*self._map(*self._find_site(size)))

    def map_ahead(self, limit_bytes: int) -> int:
        """Map one new chunk of at most `limit_bytes` behind the last one; return its bytes, 0 for none.

        Raises `DriverOutOfMemoryError` when the device holds no more.
        """
        if not self.priced:
            return 0
        limit = align_down(min(limit_bytes, self._memory.room_bytes), self._driver.granularity)
        if limit <= 0:
            return 0
        return self._map_chunk(self._cut(limit)[0]).size

    def _map_chunk(self, size: int) -> Range:
        """Map one new chunk behind the last one, and return where."""
        start, room, _ = self._find_site(size, fresh=True)
        part = self._map(start, room, size, [size])
        self._home.extend(*part)
        return part

    def learned(self) -> HeapProfile:
        """Return what a next run can begin with: the chunks, and what windows show."""
        chunks = list(self._chunks)
        return HeapProfile(
            self._driver.granularity,
            tuple([chunk.size for chunk in chunks]),
            tuple([offsets_in(chunks, window.shown) for window in self._windows.whole()]),
        )

    def restore(self, restoring: Restoring) -> int:
        """Make the next chunk or window of a profile; return its bytes, 0 when all is made.

        What would exceed the cap is left out, and so is a window of chunks that have gone back. Raises
        `DriverOutOfMemoryError` when the device holds no more.
        """
        profile, made = restoring.profile, restoring.made
        if len(made) < len(profile.chunks):
            if not self.priced:
                self.price()
            size = profile.chunks[len(made)]
            if size <= self._memory.room_bytes:
                chunk = self._chunks.table.get(self._map_chunk(size).start)
                assert chunk is not None
                made.append(chunk)
                return size
            restoring.profile = profile = replace(profile, chunks=profile.chunks[: len(made)])
        while restoring.windows < len(profile.windows):
            window = profile.windows[restoring.windows]
            restoring.windows += 1
            if max(piece.end for piece in window) > sum(profile.chunks):
                continue
            parts = parts_of(made, window)
            chunks = [chunk for chunk, _ in parts]
            room = self._windows.most_kept - self._windows.kept_mappings
            if len(parts) <= room and all(self._chunks.table.get(chunk.start) is chunk for chunk in chunks):
                pieces = _joined(tuple([part for _, part in parts]), sum(piece.size for piece in window))
                self._windows.retire(self._windows.open(pieces, chunks, ALIGNMENT).block.start, None)
                return sum(piece.size for piece in window)
        return 0


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
