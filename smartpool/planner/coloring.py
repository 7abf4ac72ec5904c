"""Lifetimes as they happen: a weighted interval graph that grows with time, and its colours.

The planner proper sees all of time at once. A pool sees intervals open and close, and wants to know, now:
where would each go, what overlaps what, how scattered is the present, what pattern is in the past, and how
good could it all have been? `WeightedIntervalGraphColoring` keeps the graph and answers from it. It reads no
clock: time is whatever integers the caller counts, or the number of events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from smartpool.errors import InvariantError, PlanningError
from smartpool.free_ranges import free_ranges, interval_fragmentation
from smartpool.planner.clash import find_clash
from smartpool.planner.gap_index import GapIndex, Side
from smartpool.planner.intervals import FREE, IntervalSet
from smartpool.planner.patterns import AccessPatterns, summarize
from smartpool.planner.plans import Plan
from smartpool.planner.portfolio import solve
from smartpool.planner.problem import normalize
from smartpool.planner.sweep_fit import fill
from smartpool.planner.sweeps import Int64s

__all__ = ["WeightedIntervalGraphColoring", "color_by_weight"]

HISTORY: Final = 1 << 16

SHIFT: Final = 64
"""Bits of an address in the gap index."""


@dataclass(frozen=True, slots=True)
class _Interval:
    id: int
    start: int
    size: int
    priority: int
    offset: int
    end: int = -1


class WeightedIntervalGraphColoring:
    """A weighted interval graph of lifetimes that open and close as time passes.

    An interval's colour is its offset: intervals that are live at once get ranges that do not overlap. A
    new one gets the smallest free range that holds it (best fit), unless the caller places intervals by
    itself and says where.

    Parameters
    ----------
    alignment
        Every offset is a multiple of it.
    history
        How many closed intervals are remembered.

    Examples
    --------
    >>> graph = WeightedIntervalGraphColoring()
    >>> first, second = graph.open(100), graph.open(50)
    >>> graph.offset_of(second), graph.load, graph.overlapping(second)
    (100, 150, (0,))
    >>> graph.close(first)
    >>> graph.offset_of(graph.open(80)), graph.height, graph.free_ranges()
    (0, 150, ((80, 20),))
    >>> graph.color().height
    150
    """

    def __init__(self, *, alignment: int = 1, history: int = HISTORY) -> None:
        if alignment <= 0:
            raise PlanningError(f"alignment: expected at least 1, got {alignment}")
        if history < 0:
            raise PlanningError(f"history: expected at least 0, got {history}")
        self._alignment = alignment
        self._live: dict[int, _Interval] = {}
        self._closed: deque[_Interval] = deque(maxlen=history)
        self._index = GapIndex((), ceiling=0, shift=SHIFT, side=Side.LOW)
        self._placed_outside: bool | None = None
        self._next_id = 0
        self.now = 0
        self.load = 0
        self.peak_load = 0
        self.height = 0

    def __repr__(self) -> str:
        return f"<WeightedIntervalGraphColoring: {len(self._live)} live, height {self.height}>"

    def __len__(self) -> int:
        """Return how many intervals are live."""
        return len(self._live)

    def open(self, size: int, *, at: int | None = None, priority: int = 0, address: int | None = None) -> int:
        """Begin an interval and return its id; O(log n).

        Parameters
        ----------
        size
            Bytes: its weight.
        at
            When, at least `now`; by default one later than the last event.
        priority
            Larger is more important: `color` by weight places it lower.
        address
            Where the caller has placed it. Either every interval comes with its address or none does.

        Raises
        ------
        PlanningError
            When time runs backwards, the size is negative, or addresses come for some only.
        """
        if size < 0:
            raise PlanningError(f"size: expected at least 0 bytes, got {size}")
        outside = address is not None
        if self._placed_outside not in {None, outside}:
            raise PlanningError("address: expected one for every interval or for none, got a mixture")
        self._advance(at)
        self._placed_outside = outside
        if address is not None:
            offset = address
        elif size == 0:
            offset = 0
        else:
            offset = self._index.take_avoiding(size, 0, self._alignment, ())
        interval = _Interval(self._next_id, self.now, size, priority, offset)
        self._next_id += 1
        self._live[interval.id] = interval
        self.load += size
        self.peak_load = max(self.peak_load, self.load)
        self.height = max(self.height, offset + size)
        return interval.id

    def close(self, id: int, *, at: int | None = None) -> None:  # noqa: A002  the word for it
        """End a live interval; its range merges with free neighbours. O(log n)."""
        if id not in self._live:
            raise PlanningError(f"id: expected a live interval, got {id}")
        self._advance(at)
        interval = self._live.pop(id)
        self.load -= interval.size
        if not self._placed_outside and interval.size:
            self._index.give(interval.offset, interval.offset + interval.size)
        self._closed.append(
            _Interval(id, interval.start, interval.size, interval.priority, interval.offset, self.now)
        )

    def offset_of(self, id: int) -> int:  # noqa: A002  the word for it
        """Return where a live interval lies."""
        if id not in self._live:
            raise PlanningError(f"id: expected a live interval, got {id}")
        return self._live[id].offset

    def intervals(self) -> IntervalSet:
        """Return what is remembered, by start; what is live ends one after `now`. O(n log n)."""
        known = sorted([*self._closed, *self._live.values()], key=lambda interval: interval.id)
        return IntervalSet.from_arrays(
            [interval.start for interval in known],
            [self.now + 1 if interval.end < 0 else interval.end for interval in known],
            [interval.size for interval in known],
            alignment=self._alignment,
            priority=[interval.priority for interval in known],
            id=[interval.id for interval in known],
        )

    def overlapping(self, id: int) -> tuple[int, ...]:  # noqa: A002  the word for it
        """Return the ids of the remembered intervals that are neighbours of this one in the graph; O(n)."""
        intervals = self.intervals()
        row = np.flatnonzero(intervals.id == id)
        if not len(row):
            raise PlanningError(f"id: expected a remembered interval, got {id}")
        start, end = intervals.start[row[0]], intervals.end[row[0]]
        meets = (intervals.start < end) & (intervals.end > start) & (intervals.start < intervals.end)
        return tuple(intervals.id[meets & (intervals.id != id) & (start < end)].tolist())

    def live_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return ``(offset, size)`` of the live ranges, neighbours coalesced, ascending; O(n log n)."""
        live = sorted((interval.offset, interval.size) for interval in self._live.values() if interval.size)
        ends = [*(low for low, _ in self.free_ranges()), *(low + size for low, size in live[-1:])]
        begins = [*(low for low, _ in live[:1]), *(low + size for low, size in self.free_ranges())]
        return tuple((low, high - low) for low, high in zip(begins, ends, strict=True))

    def free_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return ``(offset, size)`` of the free ranges between live ones, coalesced, ascending."""
        return tuple(free_ranges(*self._present()))

    def fragmentation(self) -> float:
        """Return how scattered the present is, in [0, 1); see `interval_fragmentation`."""
        return interval_fragmentation(*self._present())

    def patterns(self) -> AccessPatterns:
        """Return what the remembered past says about the future; O(n log n)."""
        intervals = self.intervals()
        return summarize(intervals.start, intervals.end, intervals.size)

    def color(
        self,
        *,
        by_weight: bool = False,
        time_limit: float | None = None,
        seed: int = 0,
        progress: Callable[[Plan], None] | None = None,
    ) -> Plan:
        """Colour all that is remembered anew, with hindsight.

        Parameters
        ----------
        by_weight
            Place by priority, then size, each as low as it goes: important intervals keep the lowest
            offsets whatever comes later. Otherwise the lowest plan is sought, whoever lies where.
        time_limit, seed, progress
            As in `smartpool.plan`.
        """
        intervals = self.intervals()
        if by_weight:
            return color_by_weight(intervals)
        return solve(intervals, time_limit=time_limit, seed=seed, progress=progress)

    def check(self) -> None:
        """Raise `InvariantError` unless live ranges are disjoint and the sums are right."""
        offset, size = self._present()
        zero = np.zeros(len(offset), np.int64)
        clash = find_clash(zero, zero + 1, offset, offset + size)
        if clash is not None:
            raise InvariantError(
                f"live intervals overlap: {[list(self._live.values())[row] for row in clash]}"
            )
        if self.load != int(size.sum()) or not self.load <= self.peak_load:
            raise InvariantError(f"load {self.load}, live bytes {int(size.sum())}, peak {self.peak_load}")
        if not self._placed_outside:
            self._index.check()
            holes = {(low, high - low) for low, high in self._index.gaps() if low > 0}
            lowest = int(offset[size > 0].min(initial=1 << SHIFT - 2))
            known = {(low, width) for low, width in holes if low > lowest}
            if known != set(self.free_ranges()):
                raise InvariantError(f"free ranges {self.free_ranges()}, in the index {sorted(known)}")

    def _present(self) -> tuple[Int64s, Int64s]:
        live = self._live.values()
        offset = np.fromiter((interval.offset for interval in live), np.int64, len(live))
        return offset, np.fromiter((interval.size for interval in live), np.int64, len(live))

    def _advance(self, at: int | None) -> None:
        if at is not None and at < self.now:
            raise PlanningError(f"at: expected a time of at least {self.now}, the last event, got {at}")
        self.now = self.now + 1 if at is None else at


def color_by_weight(intervals: IntervalSet) -> Plan:
    """Place intervals by priority, then size, then lifetime, each at the lowest offset that is left.

    The classic greedy for weighted colouring: nothing placed later can displace what is more important.
    O(n) vectorised for each interval.

    Examples
    --------
    >>> intervals = IntervalSet.from_arrays([0, 0, 0], [9, 9, 9], [10, 20, 30], priority=[5, 0, 0])
    >>> color_by_weight(intervals).offsets.tolist()
    [0, 40, 10]
    """
    normalized = normalize(intervals)
    problem, rows = normalized.problem, normalized.rows
    offsets = np.full(len(problem), FREE) if problem.fixed is None else problem.fixed.copy()
    before, free = np.flatnonzero(offsets != FREE), np.flatnonzero(offsets == FREE)
    order = np.lexsort(
        ((problem.first - problem.last)[free], -problem.size[free], -intervals.priority[rows[free]])
    )
    fill(problem, offsets, free[order], before)
    height = int((offsets + problem.size).max(initial=0)) * normalized.unit
    load = intervals.load
    return Plan(
        offsets=normalized.expand(offsets, intervals),
        height=height,
        load=load,
        method="by weight",
        seconds=0.0,
        proved_optimal=height == load,
    )
