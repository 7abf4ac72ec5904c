"""An arena: blocks and gaps in a set of address ranges, placed by best fit.

Problem: dynamic storage allocation with sizes in bytes and no moves: find a free range for each
request, join free neighbours at once, and lend or take back address ranges while blocks are live.
Method: best fit by size, lowest address first among equals; boundary tags (Knuth, *The Art of
Computer Programming* 1, section 2.5) kept in dictionaries, since a dictionary look-up is the
cheapest thing that interpreted Python can do; the gaps also stand in one ordered index under the
key ``size << 64 | start``.
Bound: O(log n) for each request and each free, with n gaps. Best fit wastes at most about 20 %
on published traces (Wilson and others, *Dynamic Storage Allocation*, 1995) where memory is one
fixed range; the elastic pool around this arena gets the rest back by remapping.
Rejected: size classes (internal fragmentation of up to 12-25 %), buddies (the same), next fit
(leaves large gaps torn), TLSF's two-level bitmaps (constant time, but good fit only, and no
faster here, where the ordered index costs 0.5 us).

Invariants, proved by `check()`::

    live_bytes + free_bytes == extent_bytes
    no two blocks overlap, no two gaps touch (except across a barrier)
    the index and both boundary tags name the same gaps

A *barrier* is an address across which gaps are never joined and blocks never laid: the seam
between two ranges that must be given back each as a whole.

*Uses* say which streams may still touch a gap: a mapping from stream to a position in that
stream. An arena stores, joins (the later position wins) and hands them out; it does not read
them. None, the usual case, stands for whatever the owner of the arena takes as its default.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

from smartpool.errors import InvariantError
from smartpool.memory.ordered import ROOM, OrderedIntegers

__all__ = ["ALIGNMENT", "Arena", "Range", "Uses", "join_uses"]

ALIGNMENT: Final = 512
"""Bytes: every block starts on a multiple of it and is a multiple of it long."""

_START_BITS: Final = 64
_START_MASK: Final = (1 << _START_BITS) - 1
_ALIGNED_ATTEMPTS: Final = 8

Uses: TypeAlias = Mapping[int, int] | None


class Range(NamedTuple):
    """A range of addresses [start, start + size)."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.start + self.size


class Arena:
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

    __slots__ = (
        "_barriers",
        "_blocks",
        "_by_size",
        "_gap_at",
        "_gap_before",
        "extent_bytes",
        "live_bytes",
        "roomy",
        "trifle",
        "uses",
    )

    def __init__(self) -> None:
        self.extent_bytes = 0
        self.live_bytes = 0
        self.roomy, self.trifle = 1.0, 0.0
        self._blocks: dict[int, int] = {}  # start -> size
        self._gap_at: dict[int, int] = {}  # start -> size
        self._gap_before: dict[int, int] = {}  # end -> start
        self._by_size = OrderedIntegers()  # size << 64 | start
        self.uses: dict[int, Mapping[int, int]] = {}  # start of a gap -> who may still touch it
        self._barriers: dict[int, int] = {}  # address -> number of ranges that begin or end there

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
        index = bisect_left(sole, size << _START_BITS)
        if index == len(sole):
            return None
        key = sole[index]
        gap = key >> _START_BITS
        if largest is not None and gap > largest and self.precious(gap):
            return None
        del sole[index]
        start = key & _START_MASK
        del self._gap_at[start]
        rest = start + size
        if gap == size:
            del self._gap_before[rest]
        else:
            gap -= size
            self._gap_at[rest] = gap
            self._gap_before[rest + gap] = rest
            insort(sole, gap << _START_BITS | rest, 0, index)  # there is room: one was taken out
        self._blocks[start] = size
        self.live_bytes += size
        return start

    def precious(self, size: int) -> bool:
        """Return whether a gap of `size` bytes is worth some care. O(1).

        It is not while the free share of the arena is `roomy`, nor when it is a `trifle` of what is free.
        """
        free = self.extent_bytes - self.live_bytes
        return free < self.roomy * self.extent_bytes and size > self.trifle * free

    def find(self, size: int, alignment: int = ALIGNMENT) -> Range | None:
        """Return the smallest gap that fits, the lowest among equals, or None. O(log n)."""
        key = self._by_size.ceiling(size << _START_BITS)
        if key is None or alignment <= ALIGNMENT:
            return None if key is None else Range(key & _START_MASK, key >> _START_BITS)
        for attempt, candidate in enumerate(self._by_size.from_(key)):
            gap = Range(candidate & _START_MASK, candidate >> _START_BITS)
            if (gap.start + alignment - 1 & -alignment) + size <= gap.end:
                return gap
            if attempt == _ALIGNED_ATTEMPTS:
                break
        key = self._by_size.ceiling(size + alignment - ALIGNMENT << _START_BITS)  # starts are multiples
        return None if key is None else Range(key & _START_MASK, key >> _START_BITS)

    def fitting(self, size: int) -> Iterator[Range]:
        """Yield the gaps of at least `size` bytes, smallest first."""
        for key in self._by_size.from_(size << _START_BITS):
            yield Range(key & _START_MASK, key >> _START_BITS)

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
                    del sole[bisect_left(sole, behind << _START_BITS | end)]
                    end += behind
                    size += behind
                if start in gap_before and start not in barriers:
                    before = gap_before.pop(start)
                    del sole[bisect_left(sole, start - before << _START_BITS | before)]
                    size += start - before
                    start = before
                gap_at[start] = size
                gap_before[end] = start
                insort(sole, size << _START_BITS | start)

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

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every gap: from now on their streams count as users of it. O(gaps)."""
        for start in self._gap_at:
            self.uses[start] = join_uses(self.uses.get(start), uses) or uses

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
        self._gap_at, self._gap_before, self._by_size = {}, {}, OrderedIntegers()
        self.uses, self._barriers = {}, {}
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
    def largest_gap(self) -> Range | None:
        """The largest gap, or None. O(1)."""
        key = self._by_size.last()
        return None if key is None else Range(key & _START_MASK, key >> _START_BITS)

    @property
    def block_count(self) -> int:
        """How many blocks are live."""
        return len(self._blocks)

    @property
    def gap_count(self) -> int:
        """How many gaps there are."""
        return len(self._gap_at)

    def size_at(self, start: int) -> int | None:
        """Return the size of the block at `start`, or None."""
        return self._blocks.get(start)

    def gap_at(self, start: int) -> Range | None:
        """Return the gap that starts at `start`, or None."""
        size = self._gap_at.get(start)
        return None if size is None else Range(start, size)

    def gap_before(self, end: int) -> Range | None:
        """Return the gap that ends at `end`, or None."""
        start = self._gap_before.get(end)
        return None if start is None else Range(start, end - start)

    def gap_around(self, address: int) -> Range | None:
        """Return the gap that covers `address`, or None. O(gaps): for rare questions."""
        for start, size in self._gap_at.items():
            if start <= address < start + size:
                return Range(start, size)
        return None

    def uses_of(self, gap: Range) -> Uses:
        """Return which streams may still touch `gap`."""
        return self.uses.get(gap.start)

    def blocks(self) -> list[Range]:
        """Return the live blocks by address. O(n log n)."""
        return [Range(start, self._blocks[start]) for start in sorted(self._blocks)]

    def gaps(self) -> list[Range]:
        """Return the gaps by address. O(n log n)."""
        return [Range(start, self._gap_at[start]) for start in sorted(self._gap_at)]

    def tables(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return copies of the blocks and of the gaps, start to size, in no order: the cheapest view."""
        return self._blocks.copy(), self._gap_at.copy()

    def gaps_by_size(self) -> Iterator[Range]:
        """Yield the gaps, largest first. The arena must not change meanwhile."""
        for key in reversed(self._by_size):
            yield Range(key & _START_MASK, key >> _START_BITS)

    def check(self) -> None:
        """Prove the invariants in the module's docstring; `InvariantError` when one is broken."""
        blocks, gaps = self.blocks(), self.gaps()
        self._by_size.check()
        problems = [
            f"{low} overlaps {high}" for low, high in pairwise(sorted(blocks + gaps)) if low.end > high.start
        ]
        problems += [
            f"gaps {low} and {high} touch"
            for low, high in pairwise(gaps)
            if low.end == high.start and high.start not in self._barriers
        ]
        equations = {
            "live": (self.live_bytes, sum(block.size for block in blocks)),
            "live + free == extent": (sum(item.size for item in blocks + gaps), self.extent_bytes),
            "index": (sorted(gaps), sorted(self.gaps_by_size())),
            "gaps by end": ({gap.end: gap.start for gap in gaps}, self._gap_before),
            "uses belong to gaps": (set(self.uses) - set(self._gap_at), set()),
        }
        problems += [
            f"{name}: {left} != {right}" for name, (left, right) in equations.items() if left != right
        ]
        problems += [
            f"{item} is not aligned" for item in blocks if item.start % ALIGNMENT or item.size % ALIGNMENT
        ]
        if problems:
            raise InvariantError("; ".join(problems) + f"; blocks {blocks}, gaps {gaps}")

    # ------------------------------------------------------------------ gaps

    def _join(self, start: int, size: int, uses: Uses) -> None:
        """Add a gap and join it with the gaps on both sides."""
        end = start + size
        gap_at, gap_before, by_size, barriers = self._gap_at, self._gap_before, self._by_size, self._barriers
        if end in gap_at and end not in barriers:
            behind = gap_at.pop(end)
            by_size.remove(behind << _START_BITS | end)
            if self.uses:
                uses = join_uses(uses, self.uses.pop(end, None))
            end += behind
        if start in gap_before and start not in barriers:
            before = gap_before.pop(start)
            by_size.remove(start - before << _START_BITS | before)
            if self.uses:
                uses = join_uses(uses, self.uses.pop(before, None))
            start = before
        gap_at[start] = end - start
        gap_before[end] = start
        by_size.add(end - start << _START_BITS | start)
        if uses is not None:
            self.uses[start] = uses

    def _add_gap(self, start: int, size: int, uses: Uses) -> None:
        self._gap_at[start] = size
        self._gap_before[start + size] = start
        self._by_size.add(size << _START_BITS | start)
        if uses is not None:
            self.uses[start] = uses

    def _remove_gap(self, start: int, size: int) -> Uses:
        self._by_size.remove(size << _START_BITS | start)
        del self._gap_at[start], self._gap_before[start + size]
        return self.uses.pop(start, None)


def join_uses(one: Uses, other: Uses) -> Uses:
    """Return the uses of two ranges together: for each stream the later position.

    None adds nothing: an owner for whom it stands for something must `Arena.mark` the gaps before
    it begins to give uses.

    >>> join_uses({1: 5}, {1: 3, 2: 9})
    {1: 5, 2: 9}
    """
    if not one or not other or one is other:
        return one or other
    joined = dict(one)
    for stream, position in other.items():
        if joined.get(stream, -1) < position:
            joined[stream] = position
    return joined
