"""Gaps: free ranges of addresses, joined with their neighbours at once, found by size.

Problem: of many free ranges, find the smallest that fits, take a part of it, and when a range comes
back, find its free neighbours, all in interpreted Python.
Method: boundary tags (Knuth, *The Art of Computer Programming* 1, section 2.5) kept in dictionaries,
since a dictionary look-up is the cheapest thing that interpreted Python can do; the gaps also stand in
one ordered index under the key ``size << 64 | start``.
Bound: O(log n) for a search, a take and a join.
Rejected, all measured: keys of one machine word (units of 512 bytes: bisection compares objects through
pointers, and takes the same 90 ns); TLSF's two-level bitmaps (finding the class takes 145 ns, and a gap
must then be found in it); an index that is mended late (what is saved by not taking joined gaps out
is paid in stale entries); the latest remainder kept out of the index, as dlmalloc's designated victim
(one search in three would profit, at the price of a comparison for each); joining the blocks of one
flush in order of address (half of them touch, and sorting takes what that saves).

A *barrier* is an address across which gaps are never joined: the seam between two ranges that must be
given back each as a whole.

*Uses* say which streams may still touch a gap: a mapping from stream to a position in that
stream. Gaps store, join (the later position wins) and hand them out; they do not read them. None, the
usual case, stands for whatever the owner takes as its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

from smartpool.memory.ordered import OrderedIntegers

__all__ = ["ALIGNMENT", "START_BITS", "START_MASK", "Gaps", "Range", "Uses", "join_uses"]

ALIGNMENT: Final = 512
"""Bytes: every block starts on a multiple of it and is a multiple of it long."""

START_BITS: Final = 64
"""Bits of a key that hold the start; those above hold the size."""

START_MASK: Final = (1 << START_BITS) - 1

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


class Gaps:
    """Free ranges, by where they start and end, and by size.

    Attributes
    ----------
    uses
        Start of a gap to the streams that may still touch it. A gap of which nothing is known is not in it.
    """

    __slots__ = ("_barriers", "_by_size", "_gap_at", "_gap_before", "uses")

    def __init__(self) -> None:
        self._gap_at: dict[int, int] = {}  # start -> size
        self._gap_before: dict[int, int] = {}  # end -> start
        self._by_size = OrderedIntegers()  # size << 64 | start
        self.uses: dict[int, Mapping[int, int]] = {}
        self._barriers: dict[int, int] = {}  # address -> number of ranges that begin or end there

    def find(self, size: int, alignment: int = ALIGNMENT) -> Range | None:
        """Return the smallest gap that fits, the lowest among equals, or None. O(log n)."""
        key = self._by_size.ceiling(size << START_BITS)
        if key is None or alignment <= ALIGNMENT:
            return None if key is None else Range(key & START_MASK, key >> START_BITS)
        for attempt, candidate in enumerate(self._by_size.from_(key)):
            gap = Range(candidate & START_MASK, candidate >> START_BITS)
            if (gap.start + alignment - 1 & -alignment) + size <= gap.end:
                return gap
            if attempt == _ALIGNED_ATTEMPTS:
                break
        key = self._by_size.ceiling(size + alignment - ALIGNMENT << START_BITS)  # starts are multiples
        return None if key is None else Range(key & START_MASK, key >> START_BITS)

    def fitting(self, size: int) -> Iterator[Range]:
        """Yield the gaps of at least `size` bytes, smallest first."""
        for key in self._by_size.from_(size << START_BITS):
            yield Range(key & START_MASK, key >> START_BITS)

    def gaps_by_size(self) -> Iterator[Range]:
        """Yield the gaps, largest first. The arena must not change meanwhile."""
        for key in reversed(self._by_size):
            yield Range(key & START_MASK, key >> START_BITS)

    @property
    def largest_gap(self) -> Range | None:
        """The largest gap, or None. O(1)."""
        key = self._by_size.last()
        return None if key is None else Range(key & START_MASK, key >> START_BITS)

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

    def gaps(self) -> list[Range]:
        """Return the gaps by address. O(n log n)."""
        return [Range(start, self._gap_at[start]) for start in sorted(self._gap_at)]

    @property
    def gap_count(self) -> int:
        """How many gaps there are."""
        return len(self._gap_at)

    def uses_of(self, gap: Range) -> Uses:
        """Return which streams may still touch `gap`."""
        return self.uses.get(gap.start)

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every gap: from now on their streams count as users of it. O(gaps)."""
        for start in self._gap_at:
            self.uses[start] = join_uses(self.uses.get(start), uses) or uses

    def _clear(self) -> None:
        """Forget all gaps and barriers."""
        self._gap_at, self._gap_before, self._by_size = {}, {}, OrderedIntegers()
        self.uses, self._barriers = {}, {}

    def _join(self, start: int, size: int, uses: Uses) -> None:
        """Add a gap and join it with the gaps on both sides."""
        end = start + size
        gap_at, gap_before, by_size, barriers = self._gap_at, self._gap_before, self._by_size, self._barriers
        if end in gap_at and end not in barriers:
            behind = gap_at.pop(end)
            by_size.remove(behind << START_BITS | end)
            if self.uses:
                uses = join_uses(uses, self.uses.pop(end, None))
            end += behind
        if start in gap_before and start not in barriers:
            before = gap_before.pop(start)
            by_size.remove(start - before << START_BITS | before)
            if self.uses:
                uses = join_uses(uses, self.uses.pop(before, None))
            start = before
        gap_at[start] = end - start
        gap_before[end] = start
        by_size.add(end - start << START_BITS | start)
        if uses is not None:
            self.uses[start] = uses

    def _add_gap(self, start: int, size: int, uses: Uses) -> None:
        self._gap_at[start] = size
        self._gap_before[start + size] = start
        self._by_size.add(size << START_BITS | start)
        if uses is not None:
            self.uses[start] = uses

    def _remove_gap(self, start: int, size: int) -> Uses:
        self._by_size.remove(size << START_BITS | start)
        del self._gap_at[start], self._gap_before[start + size]
        return self.uses.pop(start, None)

    def _gap_problems(self) -> list[str]:
        """Return what is wrong with the gaps among themselves. O(n log n)."""
        self._by_size.check()
        gaps = self.gaps()
        problems = [
            f"gaps {low} and {high} touch"
            for low, high in pairwise(gaps)
            if low.end == high.start and high.start not in self._barriers
        ]
        equations = {
            "index": (sorted(gaps), sorted(self.gaps_by_size())),
            "gaps by end": ({gap.end: gap.start for gap in gaps}, self._gap_before),
            "uses belong to gaps": (set(self.uses) - set(self._gap_at), set()),
        }
        return problems + [
            f"{name}: {left} != {right}" for name, (left, right) in equations.items() if left != right
        ]


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
