"""A placement problem in the search's own units: time in sections, sizes in granules.

Problem: the search pays for every instant that it distinguishes and for every bit of a size. Neither
the clock of the input nor its bytes matter, so both are compressed, exactly:

- *Sections.* Two lifetimes overlap if and only if both are live just before some lifetime ends. So
  time is cut at the ends only, and an end is kept only when a lifetime began since the kept one
  before it: otherwise whoever is live there was live together before. What remains are the maximal
  cliques of the interval graph, in order (Fulkerson and Gross, Pacific J. Math. 15, 1965). A
  lifetime becomes a range of sections, and lifetimes share a section exactly if they overlap.
- *Granules.* In a canonical plan every offset is a sum of sizes, rounded up to alignments. All of
  them are multiples of the greatest common divisor of sizes and alignments, so the capacity can be
  rounded down to one. On the public instances this divides by 1024.

Bound: O(n log n). Rejected: cutting at starts as well (MiniMalloc), about twice as many sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from smartpool.planner.sweeps import Int64s


@dataclass(frozen=True, slots=True)
class Instance:
    """Buffers over sections. Every buffer covers at least one section and has a positive size.

    Attributes
    ----------
    first, last
        Buffer i covers the sections first[i] <= s < last[i].
    size, alignment
        In granules.
    sections
        Their number.
    unit
        Bytes in a granule.
    source
        The index of each buffer in the arrays that it came from.
    """

    first: Int64s
    last: Int64s
    size: Int64s
    alignment: Int64s
    sections: int
    unit: int
    source: Int64s

    @classmethod
    def compress(cls, start: Int64s, end: Int64s, size: Int64s, alignment: Int64s | None = None) -> Instance:
        """Compress time and sizes. Intervals that are empty in either are left out of `source`.

        Examples
        --------
        >>> a = np.array([0, 5, 2]); b = np.array([5, 9, 7])
        >>> instance = Instance.compress(a, b, np.array([512, 1024, 512]))
        >>> instance.first.tolist(), instance.last.tolist(), instance.size.tolist(), instance.unit
        ([0, 1, 0], [1, 2, 2], [1, 2, 1], 512)
        """
        source = np.flatnonzero((size > 0) & (end > start)).astype(np.int64)
        start, end, size = start[source], end[source], size[source]
        aligned = np.ones_like(size) if alignment is None else np.maximum(alignment[source], 1)
        unit = int(np.gcd.reduce(size)) if source.size else 1
        if alignment is not None and source.size and bool((aligned > 1).any()):
            unit = int(np.gcd.reduce(aligned, initial=unit))
        cuts = _clique_ends(start, end)
        return cls(
            first=np.searchsorted(cuts, start, side="right").astype(np.int64),
            last=np.searchsorted(cuts, end, side="right").astype(np.int64),
            size=size // unit,
            alignment=np.maximum(aligned // unit, 1),
            sections=len(cuts),
            unit=unit,
            source=source,
        )

    @property
    def load(self) -> Int64s:
        """The sum of sizes that cover each section."""
        change = np.zeros(self.sections + 1, dtype=np.int64)
        np.add.at(change, self.first, self.size)
        np.subtract.at(change, self.last, self.size)
        return np.cumsum(change[:-1])

    @property
    def key(self) -> tuple[int, bytes]:
        """The same for instances that differ by a shift in time only, their buffers in the same order."""
        return self.unit, np.stack([self.first, self.last, self.size, self.alignment]).tobytes()

    def select(self, chosen: Int64s) -> Instance:
        """Return the sub-instance of `chosen` buffers, its sections compressed anew, its unit kept."""
        part = Instance.compress(
            self.first[chosen], self.last[chosen], self.size[chosen], self.alignment[chosen]
        )
        return Instance(
            first=part.first,
            last=part.last,
            size=part.size,
            alignment=part.alignment,
            sections=part.sections,
            unit=part.unit * self.unit,
            source=chosen[part.source],
        )

    def components(self) -> Iterator[Instance]:
        """Yield the sub-instances that no buffer connects, in the order of time."""
        crossed = np.zeros(self.sections + 1, dtype=np.int64)
        np.add.at(crossed, self.first + 1, 1)
        np.subtract.at(crossed, self.last, 1)
        if not self.sections:
            return
        part = np.cumsum(np.cumsum(crossed)[:-1] == 0)[self.first]
        # Within a part in an order of its own, so that equal parts have equal columns.
        order = np.lexsort((self.alignment, self.size, self.last, self.first, part))
        for chosen in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            yield self.select(chosen)

    def to_bytes(self, offsets: list[int], count: int) -> Int64s:
        """Spread offsets in granules over an array of `count` offsets in bytes; the rest are zero."""
        result = np.zeros(count, dtype=np.int64)
        result[self.source] = np.array(offsets, dtype=np.int64) * self.unit
        return result


def _clique_ends(start: Int64s, end: Int64s) -> Int64s:
    """Return, sorted, the ends before which a maximal set of lifetimes is live together."""
    ends = np.unique(end)
    begun = np.searchsorted(np.sort(start), ends, side="left")
    return ends[np.diff(begun, prepend=0) > 0]
