"""Free ranges of an address space while a sweep passes over time: best fit, and neighbours coalesced.

Problem: at one instant some ranges are live. Take a range of a given size out of the free ones, give it
back, keep free neighbours merged; a million times in a few seconds of plain Python.

Method: the free ranges below `top` stand in two dicts, by their lower and by their upper end (Knuth's
boundary tags, TAOCP 1, 2.5), and in sorted lists of ``size << shift | low``: the first entry from
``wanted << shift`` on is the best fit, and among equals the lowest. Above `top` all is free. Every
operation is O(log n) comparisons and one insertion into a list of at most a few thousand entries:
the sizes are cut into classes at quantiles so that no list grows long.

Rejected: a balanced tree (ten times the cost of `bisect` in Python); segregated lists without order
(good fit instead of best fit: 1 to 3 % more height on random instances for a third less time); lazy
deletion in heaps (dead entries keep neighbours from being found).

Invariant: the ranges in the index are disjoint, not empty, not adjacent, and lie below `top`, and the
range that ends at `top` is live.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence

from smartpool.errors import InvariantError

__all__ = ["GapIndex"]


class GapIndex:
    """Free ranges below `top`, and the unbounded one above it.

    Parameters
    ----------
    live
        Disjoint live ranges ``(low, high)``.
    shift
        Bits that hold every address.
    class_bounds
        Ascending sizes at which the lists are cut; none for one list.

    Examples
    --------
    >>> index = GapIndex([(0, 8), (12, 20)], shift=8)
    >>> index.take(3), index.take(2), index.top
    (8, 20, 22)
    >>> index.give(0, 8); index.take(7)
    0
    """

    __slots__ = ("_bounds", "_high_of", "_low_of", "_mask", "_runs", "_shift", "top")

    def __init__(
        self, live: Iterable[tuple[int, int]], *, shift: int, class_bounds: Sequence[int] = ()
    ) -> None:
        self._shift = shift
        self._mask = (1 << shift) - 1
        self._bounds = list(class_bounds)
        self._runs: list[list[int]] = [[] for _ in range(len(self._bounds) + 1)]
        self._high_of: dict[int, int] = {}
        self._low_of: dict[int, int] = {}
        self.top = 0
        for low, high in sorted(live):
            if low > self.top:
                self._add(self.top, low)
            self.top = high

    def take(self, size: int) -> int:
        """Occupy the smallest free range that holds `size`, at its low end; return its offset."""
        at = bisect_right(self._bounds, size)
        runs = self._runs
        run = runs[at]
        spot = bisect_left(run, size << self._shift)
        while spot == len(run):
            at += 1
            if at == len(runs):
                low = self.top
                self.top = low + size
                return low
            run, spot = runs[at], 0
        low = run.pop(spot) & self._mask
        high = self._high_of.pop(low)
        rest = low + size
        if rest < high:
            self._high_of[rest] = high
            self._low_of[high] = rest
            size = high - rest
            insort(runs[bisect_right(self._bounds, size)], size << self._shift | rest)
        else:
            del self._low_of[high]
        return low

    def take_avoiding(self, size: int, alignment: int, blocked: Sequence[tuple[int, int]]) -> int:
        """Occupy the smallest free range with an aligned place for `size` that avoids `blocked`.

        Parameters
        ----------
        blocked
            Ranges ``(low, high)``, sorted, that are free now but not for as long as this is to live.
            They may overlap one another.
        """
        for low, high in self._candidates(size):
            offset = _lowest(low, high, size, alignment, blocked)
            if offset is not None:
                self._cut(low, high, offset, offset + size)
                return offset
        offset = _lowest(self.top, None, size, alignment, blocked)
        assert offset is not None
        self.occupy(offset, offset + size)
        return offset

    def occupy(self, low: int, high: int) -> None:
        """Make the free range ``[low, high)`` live."""
        if low >= self.top:
            if low > self.top:
                self._add(self.top, low)
            self.top = high
            return
        found = self._high_of.get(low)
        if found is not None:
            self._cut(low, found, low, high)
            return
        # Reservations come seldom, so the range that holds one is looked for, not indexed.
        for gap_low, gap_high in self._high_of.items():
            if gap_low <= low and high <= gap_high:
                self._cut(gap_low, gap_high, low, high)
                return
        raise InvariantError(f"expected [{low}, {high}) to be free; the free ranges are {self.gaps()}")

    def give(self, low: int, high: int) -> None:
        """Free the live range ``[low, high)``, merging it with free neighbours."""
        below = self._low_of.pop(low, None)
        if below is not None:
            del self._high_of[below]
            size = low - below
            run = self._runs[bisect_right(self._bounds, size)]
            del run[bisect_left(run, size << self._shift | below)]
            low = below
        if high == self.top:
            self.top = low
            return
        above = self._high_of.pop(high, None)
        if above is not None:
            del self._low_of[above]
            size = above - high
            run = self._runs[bisect_right(self._bounds, size)]
            del run[bisect_left(run, size << self._shift | high)]
            high = above
        self._high_of[low] = high
        self._low_of[high] = low
        size = high - low
        insort(self._runs[bisect_right(self._bounds, size)], size << self._shift | low)

    def gaps(self) -> list[tuple[int, int]]:
        """Return the free ranges below `top`, ascending."""
        return sorted(self._high_of.items())

    def check(self) -> None:
        """Raise `InvariantError` unless the invariant of the module holds."""
        listed = sorted(
            (key & self._mask, (key & self._mask) + (key >> self._shift)) for run in self._runs for key in run
        )
        gaps = self.gaps()
        ends = [0, *(edge for gap in gaps for edge in gap), self.top]
        apart = all(one < two for one, two in zip(ends[1:], ends[2:], strict=False))
        mirrored = {high: low for low, high in gaps} == self._low_of
        if listed != gaps or not mirrored or (gaps and not apart):
            raise InvariantError(f"gaps {gaps}, lists {listed}, by high end {self._low_of}, top {self.top}")

    def _candidates(self, size: int) -> Iterable[tuple[int, int]]:
        at = bisect_right(self._bounds, size)
        spot = bisect_left(self._runs[at], size << self._shift)
        for run in self._runs[at:]:
            for key in run[spot:]:
                low = key & self._mask
                yield low, self._high_of[low]
            spot = 0

    def _cut(self, low: int, high: int, cut_low: int, cut_high: int) -> None:
        """Take ``[cut_low, cut_high)`` out of the free range ``[low, high)``."""
        size = high - low
        run = self._runs[bisect_right(self._bounds, size)]
        del run[bisect_left(run, size << self._shift | low)]
        del self._high_of[low], self._low_of[high]
        if low < cut_low:
            self._add(low, cut_low)
        if cut_high < high:
            self._add(cut_high, high)

    def _add(self, low: int, high: int) -> None:
        self._high_of[low] = high
        self._low_of[high] = low
        size = high - low
        insort(self._runs[bisect_right(self._bounds, size)], size << self._shift | low)


def _lowest(
    low: int, high: int | None, size: int, alignment: int, blocked: Sequence[tuple[int, int]]
) -> int | None:
    """Return the lowest aligned offset in ``[low, high)`` at which `size` avoids `blocked`."""
    offset = (low + alignment - 1) // alignment * alignment
    for barred_low, barred_high in blocked:
        if barred_high <= offset:
            continue
        if barred_low >= offset + size:
            break
        offset = (barred_high + alignment - 1) // alignment * alignment
    return offset if high is None or offset + size <= high else None
