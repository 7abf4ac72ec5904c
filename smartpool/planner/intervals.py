"""The planner's input: intervals as columns.

An interval is a lifetime ``[start, end)`` in logical time with a size in bytes: a vertex of the
interval graph, whose edges are the overlaps of lifetimes. A million of them are seven NumPy arrays,
not a million objects, so that everything that is asked of all intervals at once is a sweep
(`smartpool.planner.sweeps`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smartpool.errors import PlanningError
from smartpool.planner.clash import find_clash
from smartpool.planner.sweeps import Int64s, component_of, overlap_counts, section_load, sections

__all__ = ["FREE", "Int64s", "IntervalSet"]

FREE: Final = -1
"""In a column of fixed offsets: the planner chooses."""

LARGEST_TOTAL: Final = 1 << 62
"""Sizes may not add up to more, so that no sum of the planner leaves an int64."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IntervalSet:
    """Intervals as columns of equal length; build it with `from_arrays`, which checks.

    Parameters
    ----------
    start, end
        Lifetimes, half-open, in any integer unit: an interval is live at ``start <= t < end``. One
        that ends where it starts is never live and may lie anywhere.
    size
        Bytes, at least 0.
    alignment
        Powers of two of which the offset must be a multiple.
    priority
        Larger is more important. A plan always holds all intervals; priority breaks ties in favour
        of low offsets, and decides in `WeightedIntervalGraphColoring` who keeps its place.
    fixed
        Offsets that are given, `FREE` where the planner chooses.
    id
        Names, of any type; row numbers by default.

    Examples
    --------
    >>> intervals = IntervalSet.from_arrays([0, 2, 4], [3, 6, 8], [10, 20, 10])
    >>> len(intervals), intervals.load
    (3, 30)
    """

    start: Int64s
    end: Int64s
    size: Int64s
    alignment: Int64s
    priority: Int64s
    fixed: Int64s
    id: NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def from_arrays(
        cls,
        start: ArrayLike,
        end: ArrayLike,
        size: ArrayLike,
        *,
        alignment: ArrayLike | None = None,
        priority: ArrayLike | None = None,
        fixed: ArrayLike | None = None,
        id: ArrayLike | None = None,  # noqa: A002  the column's name
        place: Callable[[int], str] | None = None,
    ) -> IntervalSet:
        """Return the intervals of these columns, copied and checked, in O(n log n).

        Parameters
        ----------
        start, end, size
            Integers, one an interval.
        alignment, priority, fixed
            One for all, or one an interval; 1, 0 and `FREE` by default.
        id
            Names for reports; row numbers by default.
        place
            Names row ``i`` in an error message: ``"line 7"``. By default by its id.

        Raises
        ------
        PlanningError
            When a column is not of integers or has another length, a lifetime ends before it starts,
            a size is negative, an alignment is no power of two, a fixed offset is misaligned, or two
            fixed intervals collide. The message names the first interval that is wrong.
        """
        columns = {"start": _integers("start", start)}
        count = len(columns["start"])
        for name, values, default in (
            ("end", end, 0),
            ("size", size, 0),
            ("alignment", alignment, 1),
            ("priority", priority, 0),
            ("fixed", fixed, FREE),
        ):
            column = np.array(default) if values is None else _integers(name, values)
            if column.shape not in {(), (count,)}:
                raise PlanningError(f"{name}: expected {count} values, as in start, got shape {column.shape}")
            columns[name] = np.ascontiguousarray(np.broadcast_to(column, count)).astype(np.int64)
        names = np.arange(count) if id is None else np.array(id)
        if names.shape != (count,):
            raise PlanningError(f"id: expected {count} values, as in start, got shape {names.shape}")
        for column in (*columns.values(), names):
            column.flags.writeable = False
        intervals = cls(**columns, id=names)
        _check(intervals, place or (lambda row: f"interval {names[row]}"))
        return intervals

    @classmethod
    def from_events(
        cls,
        op: ArrayLike,
        id: ArrayLike,  # noqa: A002  the column's name
        size: ArrayLike,
    ) -> IntervalSet:
        """Return the lifetimes of a trace: one event a tick, 0 allocates and 1 frees.

        What is never freed lives to the end of the trace. An id may be used again after its free.

        Raises
        ------
        PlanningError
            When a free names what is not live, or an allocation reuses a live id.

        Examples
        --------
        >>> trace = IntervalSet.from_events([0, 0, 1, 0], [7, 8, 7, 7], [10, 20, 10, 30])
        >>> trace.start.tolist(), trace.end.tolist(), trace.size.tolist()
        ([0, 1, 3], [2, 4, 4], [10, 20, 30])
        """
        op, id, size = _integers("op", op), _integers("id", id), _integers("size", size)  # noqa: A001
        if not len(op) == len(id) == len(size):
            raise PlanningError(f"expected three equal lengths, got {len(op)}, {len(id)} and {len(size)}")
        # By id, and in order of time within an id, events must alternate: allocate, free, allocate...
        order = np.argsort(id, kind="stable")
        allocates, same = op[order] == 0, np.diff(id[order], prepend=id[order[:1]] - 1) == 0
        wrong = order[allocates == (same & np.roll(allocates, 1))]
        if len(wrong):
            row = int(wrong.min())
            what = "allocates what is live" if op[row] == 0 else "frees what is not live"
            raise PlanningError(f"event {row} {what}: id {id[row]}; expected allocate and free in turn")
        opened = np.flatnonzero(allocates)
        after = np.append(order, len(op))[opened + 1]
        freed = np.append(same, False)[opened + 1]
        start = order[opened]
        by_time = np.argsort(start)
        end = np.where(freed, after, len(op))
        return cls.from_arrays(start[by_time], end[by_time], size[start][by_time], id=id[start][by_time])

    @property
    def load(self) -> int:
        """The largest sum of sizes that are live at once: no plan can be lower."""
        _, load = self.load_over_time()
        return int(load.max(initial=0))

    def load_over_time(self) -> tuple[Int64s, Int64s]:
        """Return the cuts of time, and the load of each section between two of them, in O(n log n).

        Examples
        --------
        >>> times, load = IntervalSet.from_arrays([0, 2, 4], [3, 6, 8], [10, 20, 10]).load_over_time()
        >>> times.tolist(), load.tolist()
        ([0, 2, 3, 4, 6, 8], [10, 30, 20, 30, 10])
        """
        cut = sections(self.start, self.end)
        return cut.times, section_load(cut.first, cut.last, self.size, len(cut))

    def overlap_counts(self) -> Int64s:
        """Return with how many others each interval overlaps: its degree in the graph; O(n log n)."""
        return overlap_counts(self.start, self.end)

    def components(self) -> Int64s:
        """Return the number of each interval's connected component, in order of time; O(n log n)."""
        return component_of(self.start, self.end)

    def without_fixed(self) -> IntervalSet:
        """Return the same intervals, all of them free to move."""
        return replace(self, fixed=np.full(len(self), FREE))

    def take(self, rows: ArrayLike) -> IntervalSet:
        """Return the intervals of these rows (indices or a mask), in that order."""
        rows = np.asarray(rows)
        return IntervalSet(**{name: getattr(self, name)[rows] for name in self.__slots__})


def _integers(name: str, values: ArrayLike) -> Int64s:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise PlanningError(f"{name}: expected integers, got {array.dtype}; convert them first")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise PlanningError(f"{name}: expected integers below 2**63, got {array.max()}")
    if array.ndim > 1:
        raise PlanningError(f"{name}: expected one dimension, got shape {array.shape}")
    return array.astype(np.int64)


def _check(intervals: IntervalSet, place: Callable[[int], str]) -> None:
    start, end, size = intervals.start, intervals.end, intervals.size
    alignment, fixed = intervals.alignment, intervals.fixed
    if row := _first(end < start):
        raise PlanningError(
            f"{place(row - 1)}: expected an end of at least the start {start[row - 1]}, got {end[row - 1]}"
        )
    if row := _first(size < 0):
        raise PlanningError(f"{place(row - 1)}: expected a size of at least 0, got {size[row - 1]}")
    if row := _first((alignment <= 0) | (alignment & (alignment - 1) != 0)):
        raise PlanningError(
            f"{place(row - 1)}: expected an alignment that is a power of two, got {alignment[row - 1]}"
        )
    if row := _first(fixed < FREE):
        raise PlanningError(f"{place(row - 1)}: expected a fixed offset of at least 0, got {fixed[row - 1]}")
    if row := _first((fixed != FREE) & (fixed & (alignment - 1) != 0)):
        raise PlanningError(
            f"{place(row - 1)}: expected a fixed offset that is a multiple of the alignment "
            f"{alignment[row - 1]}, got {fixed[row - 1]}"
        )
    # Floats are exact enough to see the sum come near the limit, and cannot overflow.
    if size.sum(dtype=np.float64) + np.where(fixed > 0, fixed, 0).sum(dtype=np.float64) > LARGEST_TOTAL:
        raise PlanningError("expected sizes and fixed offsets that add up to less than 2**62 bytes")
    _check_fixed(intervals, place)


def _check_fixed(intervals: IntervalSet, place: Callable[[int], str]) -> None:
    rows = np.flatnonzero(intervals.fixed != FREE)
    low = intervals.fixed[rows]
    pair = find_clash(intervals.start[rows], intervals.end[rows], low, low + intervals.size[rows])
    if pair is not None:
        first, second = sorted(int(rows[row]) for row in pair)
        both = [first, second]
        fixed, top = intervals.fixed[both], intervals.fixed[both] + intervals.size[both]
        raise PlanningError(
            f"{place(second)}: its fixed offset collides with {place(first)}: both are live in "
            f"[{intervals.start[both].max()}, {intervals.end[both].min()}) "
            f"at the bytes [{fixed.max()}, {top.min()}); move one of them"
        )


def _first(wrong: NDArray[np.bool_]) -> int:
    """Return one more than the first row that is wrong, 0 when none is."""
    return int(wrong.argmax()) + 1 if wrong.any() else 0
