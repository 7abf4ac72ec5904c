"""An arena: blocks in a set of address ranges, placed by first fit into the gaps between them.

Problem: dynamic storage allocation with sizes in bytes and no moves: find a free range for each
request, join free neighbors, and lend or take back address ranges while blocks are live.
Method: first fit by address; the free side is `smartpool.heap.gaps`.
Bound: that of the gaps, for each request and each free (`smartpool.heap.large_gaps`).
Rejected: size classes (internal fragmentation of up to 12-25 %), buddies (the same), best fit and next
fit (see `smartpool.heap.gaps`).

Invariants, proved by `check()`::

    live_bytes + free_bytes == extent_bytes
    no two blocks overlap, no two gaps touch (except across a barrier)
    small gaps by start, by end and by power of two are the same gaps; large ones are in order
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from smartpool.errors import InvariantError
from smartpool.heap.gaps import ALIGNMENT, APART, Gaps, Range, Uses, join_uses
from smartpool.heap.large_gaps import LEAF

__all__ = ["ALIGNMENT", "Arena", "Range", "Uses", "join_uses", "side_by_side"]


class Arena(Gaps):
    """Blocks and gaps in the address ranges that `extend` lent.

    Parameters
    ----------
    apart
        The size in bytes from which on a gap is large.

    Examples
    --------
    >>> arena = Arena()
    >>> arena.extend(0, 4096)
    Range(start=0, size=4096)
    >>> first, second = arena.allocate(1024), arena.allocate(1024)
    >>> arena.free(first), arena.largest_gap
    (1024, Range(start=2048, size=2048))
    >>> arena.free(second), arena.largest_gap
    (1024, Range(start=0, size=4096))
    """

    __slots__ = ("_blocks", "extent_bytes", "live_bytes")

    def __init__(self, apart: int = APART) -> None:
        super().__init__(apart)
        self.extent_bytes = 0
        self.live_bytes = 0
        self._blocks: dict[int, int] = {}  # start -> size

    def __repr__(self) -> str:
        return (
            f"<Arena: {len(self._blocks)} blocks of {self.live_bytes} bytes, "
            f"{self.gap_count} gaps of {self.free_bytes} bytes>"
        )

    def __contains__(self, start: int) -> bool:
        """Return whether a block starts at `start`."""
        return start in self._blocks

    # ------------------------------------------------------------------ requests

    def allocate(self, size: int, alignment: int = ALIGNMENT) -> int | None:
        """Place a block of `size` bytes (a positive multiple of 512) and return its start.

        First fit, at the low end of the gap. None when no gap fits; nothing has changed then. The
        gap's uses are forgotten: ask `find` and `uses_of` first where they matter.
        """
        if alignment > ALIGNMENT or self.uses:
            found = self.find(size, alignment)
            return None if found is None else self.place(found, size, alignment)
        start = self.take(size)
        if start is not None:
            self._blocks[start] = size
            self.live_bytes += size
        return start

    def serve(self, size: int, freed: list[int], elsewhere: Callable[[int, Uses], object]) -> int | None:
        """End the blocks at the starts in `freed`, then `allocate`: a large request, on one stream.

        As `free_all` and `allocate` without uses, written out, at a third of their time.
        """
        blocks, apart, large = self._blocks, self._apart, self._large
        starts, sizes = large.starts, large.sizes
        if starts is None or sizes is None or self.uses or self._barriers or len(starts) + len(freed) > LEAF:
            self.free_all((freed,), None, elsewhere)
            return self.allocate(size)
        at, before, powers = self._at, self._before, self._powers
        while freed:
            try:
                start = freed.pop()
            except IndexError:  # another thread took the last one
                break
            have = blocks.pop(start, 0)
            if not have:
                elsewhere(start, None)
                if large.starts is not starts:  # many gaps came at once: they are in leaves now
                    self.free_all((freed,), None, elsewhere)
                    return self.allocate(size)
                continue
            self.live_bytes -= have
            end = start + have
            if end in at:
                have = at.pop(end)
                del powers[have.bit_length()][end]
                end += have
                del before[end]
            if start in before:
                start = before.pop(start)
                have = at.pop(start)
                del powers[have.bit_length()][start]
            place = bisect_left(starts, start)
            if place and starts[place - 1] + sizes[place - 1] == start:
                if place < len(starts) and starts[place] == end:
                    sizes[place - 1] += end - start + sizes[place]
                    del starts[place], sizes[place]
                else:
                    sizes[place - 1] += end - start
            elif place < len(starts) and starts[place] == end:
                starts[place] = start
                sizes[place] += end - start
            elif (have := end - start) >= apart:
                starts.insert(place, start)
                sizes.insert(place, have)
            else:
                at[start] = have
                before[end] = start
                powers[have.bit_length()][start] = have
        if size < apart and (found := self._find_small(size)) is not None:
            start = found
            have = at.pop(start)
            del powers[have.bit_length()][start]
            end = start + have
            rest = start + size
            if end == rest:
                del before[end]
            else:
                have -= size
                at[rest] = have
                before[end] = rest
                powers[have.bit_length()][rest] = have
        else:
            for have in sizes:
                if have >= size:
                    break
            else:
                return None
            place = sizes.index(have)
            start = starts[place]
            rest = start + size
            have -= size
            if have >= apart:
                starts[place] = rest
                sizes[place] = have
            else:
                del starts[place], sizes[place]
                if have:
                    at[rest] = have
                    before[rest + have] = rest
                    powers[have.bit_length()][rest] = have
        blocks[start] = size
        self.live_bytes += size
        return start

    def place(self, gap: Range, size: int, alignment: int = ALIGNMENT) -> int:
        """Lay a block of `size` bytes into `gap`, which fits it, as low as possible."""
        start = gap.start + alignment - 1 & -alignment
        self.place_at(gap, start, size)
        return start

    def place_at(self, gap: Range, start: int, size: int) -> None:
        """Lay a block onto [start, start + size), all of it inside `gap`."""
        self.cut_out(gap, start, size)
        self._blocks[start] = size
        self.live_bytes += size

    def free(self, start: int, uses: Uses = None) -> int:
        """End the block at `start`, join the gap with its neighbours, and return the block's size.

        `KeyError` when no block starts there; nothing has changed then.
        """
        size = self._blocks.pop(start)
        self.live_bytes -= size
        self.join(start, size, uses)
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

        `elsewhere` is called for starts at which this arena has no block.
        """
        blocks = self._blocks
        for freed in groups:
            while freed:
                try:
                    start = freed.pop()
                except IndexError:  # another thread took the last one
                    break
                size = blocks.pop(start, 0)
                if not size:
                    elsewhere(start, uses)
                    continue
                self.live_bytes -= size
                if uses is None and not self.uses and not self._barriers:
                    self.join_unused(start, size)
                else:
                    self.join(start, size, uses)

    # ------------------------------------------------------------------ ranges lent and taken back

    def extend(self, start: int, size: int, *, barrier: bool = False, uses: Uses = None) -> Range:
        """Lend [start, start + size) as free, and return the gap; a barrier keeps it apart from neighbors."""
        if barrier:
            self._bar(start, start + size)
        self.extent_bytes += size
        return self.join(start, size, uses)

    def _bar(self, *edges: int) -> None:
        for edge in edges:
            self._barriers[edge] = self._barriers.get(edge, 0) + 1

    def extend_for(self, start: int, size: int, block: int) -> int:
        """Lend [start, start + size), and lay a block of `block` bytes at the low end of the gap that has it.

        As `extend` and `place` without uses, written out, at a fifth of their time.
        """
        large, end = self._large, start + size
        starts, sizes = large.starts, large.sizes
        apart = self.uses or self._barriers or start in self._before or end in self._at
        if starts is None or sizes is None or apart or len(starts) >= LEAF:
            return self.place(self.extend(start, size), block)
        self.extent_bytes += size
        place = bisect_left(starts, start)
        if place < len(starts) and starts[place] == end:
            del starts[place]
            end += sizes.pop(place)
        if place and starts[place - 1] + sizes[place - 1] == start:
            place -= 1
            start -= sizes.pop(place)
            del starts[place]
        rest = start + block
        left = end - rest
        if left >= self._apart:
            starts.insert(place, rest)
            sizes.insert(place, left)
        elif left:
            self._add_gap(rest, left, None)
        self._blocks[start] = block
        self.live_bytes += block
        return start

    def room_before(self, end: int) -> int:
        """Return the bytes of the gap that ends at `end`, or 0."""
        starts, sizes = self._large.starts, self._large.sizes
        if starts is None or sizes is None or end in self._before:
            gap = self.gap_before(end)
            return 0 if gap is None else gap.size
        place = bisect_left(starts, end)
        return sizes[place - 1] if place and starts[place - 1] + sizes[place - 1] == end else 0

    def retract(self, gap: Range, start: int, size: int) -> None:
        """Take [start, start + size) back, all of it inside the free `gap`."""
        if self.gap_at(gap.start) != gap:
            raise InvariantError(f"cannot take [{start:#x}, +{size}) out of {gap}: not a gap of {self!r}")
        self.cut_out(gap, start, size)
        self.extent_bytes -= size
        for edge in (start, start + size):
            count = self._barriers.get(edge, 0)
            if count > 1:
                self._barriers[edge] = count - 1
            elif count:
                del self._barriers[edge]

    def mend(self, extents: Iterable[Range], *, barrier: bool = False, uses: Uses = None) -> None:
        """Make the books anew from what was lent and from the blocks, after an exception in the middle.

        A request books its block last and a free takes it out first, each in one step, so the blocks
        are true wherever the rest was left. Blocks that lie in no extent are forgotten. O(n log n).

        Parameters
        ----------
        extents
            The ranges that are lent: with a barrier around each where `barrier` says so, and else as
            long as they go.
        uses
            Who may still touch any of the gaps.
        """
        lent, booked, kept = sorted(extents), self._blocks, dict[int, int]()
        starts, at = sorted(booked), 0
        self._clear()
        for extent in lent:
            if barrier:
                self._bar(extent.start, extent.end)
            free_from = extent.start
            while at < len(starts) and starts[at] < extent.end:
                start, end, at = starts[at], starts[at] + booked[starts[at]], at + 1
                if start < free_from or end > extent.end:
                    continue
                if start > free_from:
                    self.join(free_from, start - free_from, uses)
                kept[start] = booked[start]
                free_from = end
            if free_from < extent.end:
                self.join(free_from, extent.end - free_from, uses)
        self.extent_bytes = sum(extent.size for extent in lent)
        self.live_bytes = sum(kept.values())
        self._blocks = kept  # last: until then the old ones are there to begin again with

    # ------------------------------------------------------------------ questions

    @property
    def free_bytes(self) -> int:
        """Bytes in gaps."""
        return self.extent_bytes - self.live_bytes

    def size_at(self, start: int) -> int | None:
        """Return the size of the block at `start`, or None."""
        return self._blocks.get(start)

    def blocks(self) -> list[Range]:
        """Return the live blocks by address. O(n log n)."""
        return [Range(start, self._blocks[start]) for start in sorted(self._blocks)]

    def tables(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return copies of the blocks and of the gaps, start to size, in no order: the cheapest view."""
        return self._blocks.copy(), self._at | dict(self._large)

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
