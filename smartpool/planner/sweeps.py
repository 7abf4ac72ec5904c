"""Questions to all intervals at once, each answered by one sweep over sorted ends: O(n log n).

Time is cut at every start and end into *sections*, in which nothing changes. An interval covers the
sections ``first <= k < last``; what holds of lifetimes holds of these numbers, and they are dense.
An end comes before a start at the same instant, as lifetimes are half-open.

Everything here is vectorised, and works on bare columns; `IntervalSet` offers the same as methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Int64s",
    "Sections",
    "component_of",
    "first_fit",
    "overlap_counts",
    "section_load",
    "sections",
]


Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sections:
    """Time cut at every start and end.

    Parameters
    ----------
    times
        The cuts, ascending: section ``k`` is ``[times[k], times[k + 1])``.
    first, last
        For each interval the sections ``first <= k < last`` that it covers.
    """

    times: Int64s
    first: Int64s
    last: Int64s

    def __len__(self) -> int:
        return max(0, len(self.times) - 1)


def sections(start: Int64s, end: Int64s) -> Sections:
    """Cut time at every start and end.

    >>> cut = sections(np.array([0, 20, 40]), np.array([30, 60, 80]))
    >>> cut.times.tolist(), cut.first.tolist(), cut.last.tolist()
    ([0, 20, 30, 40, 60, 80], [0, 1, 3], [2, 4, 5])
    """
    times, ranks = np.unique(np.concatenate([start, end]), return_inverse=True)
    ranks = ranks.reshape(-1).astype(np.int64, copy=False)
    return Sections(times, ranks[: len(start)], ranks[len(start) :])


def section_load(first: Int64s, last: Int64s, size: Int64s, count: int) -> Int64s:
    """Return the load of each of `count` sections: a sum of differences, exact in int64."""
    order_first, order_last = np.argsort(first, kind="stable"), np.argsort(last, kind="stable")
    begun = np.concatenate([[0], np.cumsum(size[order_first])])
    ended = np.concatenate([[0], np.cumsum(size[order_last])])
    cuts = np.arange(count)
    opened = np.searchsorted(first[order_first], cuts, side="right")
    closed = np.searchsorted(last[order_last], cuts, side="right")
    load: Int64s = begun[opened] - ended[closed]
    return load


def overlap_counts(start: Int64s, end: Int64s) -> Int64s:
    """Return, for each interval, with how many others its lifetime overlaps: its degree in the graph.

    Examples
    --------
    >>> overlap_counts(np.array([0, 2, 4, 9]), np.array([3, 6, 8, 9])).tolist()
    [1, 2, 1, 0]
    """
    lives = start < end
    starts, ends = np.sort(start[lives]), np.sort(end[lives])
    counts = np.zeros(len(start), np.int64)
    begun_before = np.searchsorted(starts, end[lives], side="left")
    over_by = np.searchsorted(ends, start[lives], side="right")
    counts[lives] = begun_before - over_by - 1
    return counts


def component_of(start: Int64s, end: Int64s) -> Int64s:
    """Return the number of each interval's connected component, in order of time.

    Two intervals are in one component when a chain of overlaps joins them: no instant between
    them is covered by none. Intervals that are never live count as points of their own.

    Examples
    --------
    >>> component_of(np.array([0, 5, 2, 8]), np.array([3, 8, 5, 9])).tolist()
    [0, 1, 0, 2]
    """
    if not len(start):
        return np.zeros(0, np.int64)
    order = np.lexsort((end, start))
    reach = np.maximum.accumulate(end[order])
    begins = np.concatenate([[False], start[order][1:] >= reach[:-1]])
    component = np.empty(len(start), np.int64)
    component[order] = np.cumsum(begins)
    return component


def first_fit(low: Int64s, high: Int64s, size: int, alignment: int = 1) -> int:
    """Return the lowest aligned offset, at least 0, at which `size` bytes avoid the ranges ``[low, high)``.

    Parameters
    ----------
    low, high
        What is taken, in ascending order of `low`; ranges may overlap.

    Examples
    --------
    >>> low, high = np.array([0, 8]), np.array([5, 12])
    >>> first_fit(low, high, 3), first_fit(low, high, 3, alignment=4)
    (5, 12)
    """
    reach = np.empty(1 + len(low), np.int64)
    reach[0], reach[1:] = 0, high
    np.maximum.accumulate(reach, out=reach)
    if alignment > 1:
        reach = (reach + alignment - 1) // alignment * alignment
    fits = np.flatnonzero(low - reach[:-1] >= size)
    return int(reach[fits[0]] if len(fits) else reach[-1])
