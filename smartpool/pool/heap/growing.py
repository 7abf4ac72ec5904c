"""Growing: memory for a block that fits no gap of home, new or stitched.

Problem: physical memory that is free in the wrong place. An allocator that cannot move blocks
keeps it, and grows.
Method: while the policy's budget allows, new chunks are mapped at home, behind the largest gap that
can be made longer. Beyond it, a *window* that was made before is used again if its pieces are free
(`smartpool.pool.heap.windows`): no driver call. Else the free pieces that exist are shown side by side
at fresh addresses by a second mapping of their chunks, a window more, chosen by
`smartpool.memory.stitch`; only what they lack is created, and where even that costs more than bytes are
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

from collections.abc import Iterator

from smartpool.errors import DriverOutOfMemoryError, InvariantError
from smartpool.memory.arena import ALIGNMENT, Range, Uses, join_uses
from smartpool.memory.stitch import Stitching, choose_pieces
from smartpool.pool.heap.device_memory import DeviceMemory
from smartpool.pool.heap.home import Home
from smartpool.pool.heap.placement import place_for_stream
from smartpool.pool.heap.policy import Policy
from smartpool.pool.heap.pricing import find_prices
from smartpool.pool.heap.undoing import Undo
from smartpool.pool.heap.windows import Windows
from smartpool.pool.streams import StreamClock
from smartpool.prices import Prices
from smartpool.units import align_down

__all__ = ["Growing"]


class Growing:
    """Who decides between new and stitched memory, and makes either. The pool's lock guards it.

    Parameters
    ----------
    place
        Home, where chunks are mapped.
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
    """

    def __init__(  # noqa: PLR0917 - the heap's own parts, in the order in which they stand on each other
        self,
        place: Home,
        windows: Windows,
        memory: DeviceMemory,
        clock: StreamClock,
        policy: Policy,
        prices: Prices | None,
    ) -> None:
        self.policy = policy
        self.peak_live_bytes = 0
        self._place = place
        self._home = place.arena
        self._chunks = place.chunks
        self._windows = windows
        self._memory = memory
        self._driver = memory.driver
        self._clock = clock
        self._prices = prices
        self._priced = False

    def __repr__(self) -> str:
        return f"<Growing: {self._place!r}, peak of {self.peak_live_bytes} bytes>"

    def price(self) -> None:
        """Find out what the driver's calls cost, the first time; they are not needed before."""
        if not self._priced:
            self.policy = self.policy.priced(find_prices(self._driver, self._prices))
            self._priced = True

    # ------------------------------------------------------------------ a block

    def extend(self, size: int, alignment: int, stream: int, uses: Uses) -> int:
        """Grow within the budget; otherwise stitch what is free, and create only what is missing."""
        shift = alignment - ALIGNMENT  # the gap to be grown may start at any multiple of 512
        budget = max(0, self.policy.budget_bytes(self.peak_live_bytes) - self._memory.reserved_bytes)
        start, missing = self._place.find_site(size + shift)
        if missing > budget:
            address = self._take_kept(size, alignment, stream, uses)
            if address is not None:
                return address
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

    def _growth(self, start: int, missing: int, budget: int) -> int:
        room = min(budget, self._memory.room_bytes, self._place.room_at(start))
        return self.policy.growth_bytes(missing, self.peak_live_bytes, room, self._driver.granularity)

    def _cut(self, size: int) -> Iterator[int]:
        return self.policy.cut(
            size,
            peak_live_bytes=self.peak_live_bytes,
            cap_bytes=self._memory.cap_bytes,
            granularity=self._driver.granularity,
        )

    # ------------------------------------------------------------------ stitching

    def _take_kept(self, size: int, alignment: int, stream: int, uses: Uses) -> int | None:
        """Place a block in a window that was made before; None when no such window's pieces are free."""
        window = self._windows.find(size, alignment, self._home.is_free)
        if window is None:
            return None
        self._wait_for(window.pieces, stream, uses)
        with Undo() as undo:
            self._place.take(window.pieces, undo)
            self._windows.reopen(window)
            undo.keep()
        return window.block.start

    def stitch_idle(self, size: int, alignment: int, stream: int, uses: Uses) -> int | None:
        """Place a block in pieces that are free, creating nothing; None where they are too little."""
        address = self._take_kept(size, alignment, stream, uses)
        if address is not None:
            return address
        stitching = self._choose(size, alignment, 0)
        return None if stitching.create_bytes else self._stitch(stitching, alignment, stream, uses, 0)

    def _choose(self, size: int, alignment: int, budget: int) -> Stitching:
        return choose_pieces(
            size,
            self._home.gaps_by_size(),
            self._chunks,
            budget_bytes=budget,
            granularity=self._driver.granularity,
            edge_price=self.policy.edge_price,
            show_price=self.policy.prices.show(1, 0),
            create_price=self.policy.prices.grow(1, 0),
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
                address = self._windows.open(pieces, chunks, alignment).block.start
            undo.keep()
        return address

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

    # ------------------------------------------------------------------ gaps

    def make_gap(self, size: int) -> None:
        """Map what home lacks for a gap of `size` bytes, whatever the budget.

        Raises `DriverOutOfMemoryError` when the device holds no more.
        """
        with Undo() as undo:
            site, missing = self._place.find_site(size)
            self._place.map(site, self._cut(missing), undo)
            undo.keep()

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
