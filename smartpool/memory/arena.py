"""An arena: blocks in a set of address ranges, placed by best fit into the gaps between them.

Problem: dynamic storage allocation with sizes in bytes and no moves: find a free range for each
request, join free neighbours at once, and lend or take back address ranges while blocks are live.
Method: best fit by size, lowest address first among equals; the free side is `smartpool.memory.gaps`.
Bound: O(log n) for each request and each free, with n gaps. Best fit wastes at most about 20 %
on published traces (Wilson and others, *Dynamic Storage Allocation*, 1995) where memory is one
fixed range; the elastic pool around this arena gets the rest back by remapping.
Rejected: size classes (internal fragmentation of up to 12-25 %), buddies (the same), next fit
(leaves large gaps torn).

Invariants, proved by `check()`::

    live_bytes + free_bytes == extent_bytes
    no two blocks overlap, no two gaps touch (except across a barrier)
    the index and both boundary tags name the same gaps
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from smartpool.errors import InvariantError
from smartpool.memory.gaps import ALIGNMENT, START_BITS, START_MASK, Gaps, Range, Uses, join_uses
from smartpool.memory.ordered import ROOM

__all__ = ["ALIGNMENT", "Arena", "Range", "Uses", "join_uses", "side_by_side"]


class Arena(Gaps):
    """Blocks and gaps in the address ranges that `extend` lent.

    Attributes
    ----------
    roomy, trifle
        While this share of the arena is free, or for a gap of less than that share of what is free,
        `allocate` disregards its limit.

    Examples
    --------
    >>> arena = Arena()
    >>> arena.extend(0, 4096)
    >>> first, second = arena.allocate(1024), arena.allocate(1024)
    >>> arena.free(first), arena.largest_gap
    (1024, Range(start=2048, size=2048))
    >>> arena.free(second), arena.largest_gap
    (1024, Range(start=0, size=4096))
    """

    __slots__ = ("_blocks", "extent_bytes", "live_bytes", "roomy", "trifle")

    def __init__(self) -> None:
        super().__init__()
        self.extent_bytes = 0
        self.live_bytes = 0
        self.roomy, self.trifle = 1.0, 0.0
        self._blocks: dict[int, int] = {}  # start -> size

    def __repr__(self) -> str:
        return (
            f"<Arena: {len(self._blocks)} blocks of {self.live_bytes} bytes, "
            f"{len(self._gap_at)} gaps of {self.free_bytes} bytes>"
        )

    def __contains__(self, start: int) -> bool:
        """Return whether a block starts at `start`."""
        return start in self._blocks

    # ------------------------------------------------------------------ requests

    def allocate(self, size: int, alignment: int = ALIGNMENT, largest: int | None = None) -> int | None:
        """Place a block of `size` bytes (a positive multiple of 512) and return its start.

        Best fit, at the low end of the gap. None when no gap fits, or when the best has more than
        `largest` bytes and is `precious`; nothing has changed then. O(log n). The gap's uses are
        forgotten: ask `find` and `uses_of` first where they matter.
        """
        sole = self._by_size.sole
        if sole is None or self.uses or alignment > ALIGNMENT:
            found = self.find(size, alignment)
            if found is None or (largest is not None and found.size > largest and self.precious(found.size)):
                return None
            return self.place(found, size, alignment)
        # The usual case written out: a third of the searching path's time is spent here.
        index = bisect_left(sole, size << START_BITS)
        if index == len(sole):
            return None
        key = sole[index]
        gap = key >> START_BITS
        if largest is not None and gap > largest and self.precious(gap):
            return None
        del sole[index]
        start = key & START_MASK
        del self._gap_at[start]
        rest = start + size
        if gap == size:
            del self._gap_before[rest]
        else:
            gap -= size
            self._gap_at[rest] = gap
            self._gap_before[rest + gap] = rest
            insort(sole, gap << START_BITS | rest, 0, index)  # there is room: one was taken out
        self._blocks[start] = size
        self.live_bytes += size
        return start

    def precious(self, size: int) -> bool:
        """Return whether a gap of `size` bytes is worth some care. O(1).

        It is not while the free share of the arena is `roomy`, nor when it is a `trifle` of what is free.
        """
        free = self.extent_bytes - self.live_bytes
        return free < self.roomy * self.extent_bytes and size > self.trifle * free

    def place(self, gap: Range, size: int, alignment: int = ALIGNMENT) -> int:
        """Lay a block of `size` bytes into `gap`, which fits it, as low as possible. O(log n)."""
        start = gap.start + alignment - 1 & -alignment
        self.place_at(gap, start, size)
        return start

    def place_at(self, gap: Range, start: int, size: int) -> None:
        """Lay a block onto [start, start + size), all of it inside `gap`. O(log n)."""
        if start < gap.start or start + size > gap.end:
            raise InvariantError(f"[{start:#x}, +{size}) is not inside {gap}")
        uses = self._remove_gap(gap.start, gap.size)
        if start > gap.start:
            self._add_gap(gap.start, start - gap.start, uses)
        if start + size < gap.end:
            self._add_gap(start + size, gap.end - start - size, uses)
        self._blocks[start] = size
        self.live_bytes += size

    def free(self, start: int, uses: Uses = None) -> int:
        """End the block at `start`, join the gap with its neighbours, and return the block's size.

        `KeyError` when no block starts there; nothing has changed then. O(log n).
        """
        size = self._blocks.pop(start)
        self.live_bytes -= size
        self._join(start, size, uses)
        return size

    def split(self, parts: Iterable[Range]) -> None:
        """Make a block of each of `parts`, which together are blocks of now; in one step, for `mend`."""
        self._blocks.update({part.start: part.size for part in parts})

    def rejoin(self, part: Range) -> None:
        """Make `part` one block, if blocks of now fill it. O(blocks in it)."""
        inside, start = [], part.start
        while start < part.end and (size := self._blocks.get(start)):
            inside.append(start)
            start += size
        if start == part.end and len(inside) > 1:
            self._blocks[part.start] = part.size  # first: `mend` passes over blocks that lie in another
            for start in inside[1:]:
                del self._blocks[start]

    def free_all(
        self, groups: Sequence[list[int]], uses: Uses, elsewhere: Callable[[int, Uses], object]
    ) -> None:
        """Empty the lists in `groups`, and end the blocks at the starts that were in them.

        `elsewhere` is called for starts at which this arena has no block. O(log n) for each start.
        """
        blocks, barriers, by_size = self._blocks, self._barriers, self._by_size
        gap_at, gap_before, simple = self._gap_at, self._gap_before, not (uses or self.uses)
        for starts in groups:
            while starts:
                try:
                    start = starts.pop()
                except IndexError:  # another thread took the last one
                    break
                size = blocks.pop(start, 0)
                if not size:
                    elsewhere(start, uses)
                    continue
                self.live_bytes -= size
                sole = by_size.sole
                if sole is None or not simple or len(sole) == ROOM:
                    self._join(start, size, uses)
                    continue
                # `_join` without uses, written out: a free costs a microsecond here and two as calls.
                if (end := start + size) in gap_at and end not in barriers:
                    behind = gap_at.pop(end)
                    del sole[bisect_left(sole, behind << START_BITS | end)]
                    end += behind
                    size += behind
                if start in gap_before and start not in barriers:
                    before = gap_before.pop(start)
                    del sole[bisect_left(sole, start - before << START_BITS | before)]
                    size += start - before
                    start = before
                gap_at[start] = size
                gap_before[end] = start
                insort(sole, size << START_BITS | start)

    # ------------------------------------------------------------------ ranges lent and taken back

    def extend(self, start: int, size: int, *, barrier: bool = False, uses: Uses = None) -> None:
        """Lend [start, start + size) as free addresses; a barrier keeps it apart from neighbours."""
        if barrier:
            for edge in (start, start + size):
                self._barriers[edge] = self._barriers.get(edge, 0) + 1
        self.extent_bytes += size
        self._join(start, size, uses)

    def retract(self, gap: Range, start: int, size: int) -> None:
        """Take [start, start + size) back, all of it inside the free `gap`."""
        if start < gap.start or start + size > gap.end or self._gap_at.get(gap.start) != gap.size:
            raise InvariantError(f"cannot take [{start:#x}, +{size}) out of {gap}: not a gap of {self!r}")
        uses = self._remove_gap(gap.start, gap.size)
        if start > gap.start:
            self._add_gap(gap.start, start - gap.start, uses)
        if start + size < gap.end:
            self._add_gap(start + size, gap.end - start - size, uses)
        self.extent_bytes -= size
        for edge in (start, start + size):
            count = self._barriers.get(edge, 0)
            if count > 1:
                self._barriers[edge] = count - 1
            elif count:
                del self._barriers[edge]

    def mend(
        self,
        extents: Iterable[Range],
        *,
        blocks: Iterable[Range] | None = None,
        barrier: bool = False,
        uses: Uses = None,
    ) -> None:
        """Make the books anew from what was lent and from the blocks, after an exception in the middle.

        A request books its block last and a free takes it out first, each in one step, so the blocks
        are true wherever the rest was left. Blocks that lie in no extent are forgotten. O(n log n).

        Parameters
        ----------
        extents
            The ranges that are lent: with a barrier around each where `barrier` says so, and else as
            long as they go.
        blocks
            The blocks, where the owner knows better; None for those that are booked.
        uses
            Who may still touch any of the gaps.
        """
        booked = self._blocks if blocks is None else {block.start: block.size for block in blocks}
        lent, kept = sorted(extents), dict[int, int]()
        starts, at = sorted(booked), 0
        self._clear()
        for extent in lent:
            for edge in (extent.start, extent.end) if barrier else ():
                self._barriers[edge] = self._barriers.get(edge, 0) + 1
            free_from = extent.start
            while at < len(starts) and starts[at] < extent.end:
                start, end, at = starts[at], starts[at] + booked[starts[at]], at + 1
                if start < free_from or end > extent.end:
                    continue
                if start > free_from:
                    self._join(free_from, start - free_from, uses)
                kept[start] = booked[start]
                free_from = end
            if free_from < extent.end:
                self._join(free_from, extent.end - free_from, uses)
        self.extent_bytes = sum(extent.size for extent in lent)
        self.live_bytes = sum(kept.values())
        self._blocks = kept  # last: until then the old ones are there to begin again with

    # ------------------------------------------------------------------ questions

    @property
    def free_bytes(self) -> int:
        """Bytes in gaps."""
        return self.extent_bytes - self.live_bytes

    @property
    def block_count(self) -> int:
        """How many blocks are live."""
        return len(self._blocks)

    def size_at(self, start: int) -> int | None:
        """Return the size of the block at `start`, or None."""
        return self._blocks.get(start)

    def blocks(self) -> list[Range]:
        """Return the live blocks by address. O(n log n)."""
        return [Range(start, self._blocks[start]) for start in sorted(self._blocks)]

    def tables(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return copies of the blocks and of the gaps, start to size, in no order: the cheapest view."""
        return self._blocks.copy(), self._gap_at.copy()

    def check(self) -> None:
        """Prove the invariants in the module's docstring; `InvariantError` when one is broken."""
        blocks, gaps = self.blocks(), self.gaps()
        problems = self._gap_problems()
        problems += [
            f"{low} overlaps {high}" for low, high in pairwise(sorted(blocks + gaps)) if low.end > high.start
        ]
        equations = {
            "live": (self.live_bytes, sum(block.size for block in blocks)),
            "live + free == extent": (sum(item.size for item in blocks + gaps), self.extent_bytes),
        }
        problems += [
            f"{name}: {left} != {right}" for name, (left, right) in equations.items() if left != right
        ]
        problems += [
            f"{item} is not aligned" for item in blocks if item.start % ALIGNMENT or item.size % ALIGNMENT
        ]
        if problems:
            raise InvariantError("; ".join(problems) + f"; blocks {blocks}, gaps {gaps}")


def side_by_side(start: int, sizes: Iterable[int]) -> list[Range]:
    """Return ranges of `sizes`, one behind the other from `start` on.

    >>> side_by_side(0, (512, 1024))
    [Range(start=0, size=512), Range(start=512, size=1024)]
    """
    ranges = []
    for size in sizes:
        ranges.append(Range(start, size))
        start += size
    return ranges
