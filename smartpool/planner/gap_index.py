"""Free ranges of an address space while a sweep passes over time: best fit, and neighbours coalesced.

Problem: at one instant some ranges are live. Take a range of a given size out of the free ones, give it
back, keep free neighbours merged; a million times in a few seconds of plain Python.

Method: the free ranges stand in two dicts, by their lower and by their upper end (Knuth's boundary tags,
TAOCP 1, 2.5), and in sorted lists of ``size << shift | low``: the first entry from ``wanted << shift`` on is
the best fit, and among equals the lowest. The space has a *ceiling*, which a plan should not pass; what
does not fit below it goes above, where all from `top` on is free. Every operation is O(log n) comparisons
and one insertion into a list of at most a few thousand entries: the sizes are cut into classes at
quantiles so that no list grows long.

Which end of the free range is taken decides what the remainder can merge with later. `Side.OUTLIVING` leans
on the neighbour that lives longer, so that the remainder lies beside the one that goes first; floor and
ceiling live for ever. On random instances that and the ceiling halve what best fit wastes.

Rejected: a balanced tree (`bisect` on a list is C, a tree in Python is not); segregated lists without
order (good fit, not best fit); lazy deletion in heaps (dead entries keep neighbours from being found).

Invariant: the ranges in the index are disjoint, not empty, not adjacent, and end at or below `top`, which
is the ceiling or the end of a live range above it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import pairwise
from typing import Final

from smartpool.errors import InvariantError

__all__ = ["GapIndex", "Side"]

FOREVER: Final = 1 << 62


class Side(Enum):
    """Which end of a free range a newcomer takes."""

    LOW = "low"
    """Always the lower one."""

    OUTLIVING = "outliving"
    """The one whose neighbour lives longer."""

    NEAREST = "nearest"
    """The one whose neighbour ends at nearly the same time, better after than before."""


class GapIndex:
    """Free ranges below a ceiling, and what had to go above it.

    Parameters
    ----------
    live
        Disjoint live ranges ``(low, high, end of life)``.
    ceiling
        No range is taken above it while one below fits.
    shift
        Bits that hold every address.
    class_bounds
        Ascending sizes at which the lists are cut; none for one list.
    side
        Which end of a free range is taken.

    Examples
    --------
    >>> index = GapIndex([(0, 8, 5), (12, 20, 9)], ceiling=24, shift=8)
    >>> index.take(3, 7), index.take(2, 7), index.take(4, 7), index.top
    (9, 22, 24, 28)
    >>> index.give(0, 8); index.take(7, 9)
    0
    """

    __slots__ = (
        "_bounds",
        "_end_above",
        "_end_below",
        "_high_of",
        "_low_of",
        "_mask",
        "_nearest",
        "_runs",
        "_shift",
        "_sided",
        "ceiling",
        "top",
    )

    def __init__(
        self,
        live: Iterable[tuple[int, int, int]],
        *,
        ceiling: int,
        shift: int,
        class_bounds: Sequence[int] = (),
        side: Side = Side.OUTLIVING,
    ) -> None:
        self.ceiling = ceiling
        self._shift = shift
        self._mask = (1 << shift) - 1
        self._sided = side is not Side.LOW
        self._nearest = side is Side.NEAREST
        self._bounds = list(class_bounds)
        self._runs: list[list[int]] = [[] for _ in range(len(self._bounds) + 1)]
        self._high_of: dict[int, int] = {}
        self._low_of: dict[int, int] = {}
        # By the address at which it ends, and begins: the end of life of what is or was last there.
        self._end_below: dict[int, int] = {0: FOREVER}
        self._end_above: dict[int, int] = {ceiling: FOREVER}
        at = 0
        for low, high, end in sorted(live):
            if low > at:
                self._add(at, low)
            at = high
            self._end_below[high] = end
            self._end_above[low] = end
        if at < ceiling:
            self._add(at, ceiling)
        self.top = max(at, ceiling)

    def take(self, size: int, end: int) -> int:
        """Occupy the smallest free range that holds `size` until `end`; return the offset."""
        at = bisect_right(self._bounds, size)
        runs = self._runs
        run = runs[at]
        spot = bisect_left(run, size << self._shift)
        while spot == len(run):
            at += 1
            if at == len(runs):
                return self._take_top(size, end)
            run, spot = runs[at], 0
        low = run.pop(spot) & self._mask
        high = self._high_of.pop(low)
        rest = high - low - size
        if not rest:
            del self._low_of[high]
            self._end_above[low] = self._end_below[high] = end
            return low
        # The body of `_leans_high`, for the side that is taken most: a call would cost a tenth of all this.
        if self._sided and (
            self._leans_high(low, high, end)
            if self._nearest
            else self._end_above.get(high, 0) > self._end_below.get(low, 0)
        ):
            offset = high - size
            self._high_of[low] = offset
            self._low_of[offset] = low
            del self._low_of[high]
        else:
            offset, low = low, low + size
            self._high_of[low] = high
            self._low_of[high] = low
        insort(runs[bisect_right(self._bounds, rest)], rest << self._shift | low)
        self._end_above[offset] = self._end_below[offset + size] = end
        return offset

    def take_avoiding(self, size: int, end: int, alignment: int, blocked: Sequence[tuple[int, int]]) -> int:
        """Occupy the smallest free range with an aligned place for `size` that avoids `blocked`.

        Parameters
        ----------
        blocked
            Ranges ``(low, high)``, sorted, that are free now but not for as long as this is to live.
            They may overlap one another.
        """
        for low, high in self._candidates(size):
            offset = _lowest(low, high, size, alignment, blocked)
            if offset is None:
                continue
            if self._sided and self._leans_high(low, high, end):
                upper = (high - size) // alignment * alignment
                if upper > offset and _lowest(upper, high, size, alignment, blocked) == upper:
                    offset = upper
            self._cut(low, high, offset, offset + size)
            self._end_above[offset] = self._end_below[offset + size] = end
            return offset
        offset = _lowest(self._low_of.get(self.top, self.top), None, size, alignment, blocked)
        assert offset is not None
        self.occupy(offset, offset + size, end)
        return offset

    def occupy(self, low: int, high: int, end: int) -> None:
        """Make the free range ``[low, high)`` live until `end`."""
        self._end_above[low] = self._end_below[high] = end
        last = self._low_of.get(self.top, self.top)
        if low >= last and high > self.top:
            # Above the ceiling, or through it: the free range that ends there goes up to `low`.
            if last < self.top:
                self._cut(last, self.top, last, self.top)
            if low > last:
                self._add(last, low)
            self.top = high
            return
        found = self._high_of.get(low)
        if found is not None and high <= found:
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
        if high == self.top and high > self.ceiling:
            self.top = high = max(low, self.ceiling)
            if low >= high:
                return
        else:
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
        edges = [edge for gap in gaps for edge in gap]
        apart = all(one < two for one, two in pairwise(edges))
        mirrored = {high: low for low, high in gaps} == self._low_of
        inside = not edges or (edges[0] >= 0 and edges[-1] <= self.top)
        if listed != gaps or not mirrored or not apart or not inside or self.top < self.ceiling:
            raise InvariantError(f"gaps {gaps}, lists {listed}, by high end {self._low_of}, top {self.top}")

    def _take_top(self, size: int, end: int) -> int:
        """Occupy the range that ends at the top, and what is missing above it."""
        low = self._low_of.get(self.top, self.top)
        if low < self.top:
            self._cut(low, self.top, low, self.top)
        self.top = low + size
        self._end_above[low] = self._end_below[self.top] = end
        return low

    def _leans_high(self, low: int, high: int, end: int) -> bool:
        """Whether a newcomer that lives until `end` should take the upper end of ``[low, high)``."""
        below, above = self._end_below.get(low, 0), self._end_above.get(high, 0)
        if not self._nearest:
            return above > below
        # Outliving the neighbour by some time is worse than being outlived by it.
        return (above - end if above >= end else 4 * (end - above)) < (
            below - end if below >= end else 4 * (end - below)
        )

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
