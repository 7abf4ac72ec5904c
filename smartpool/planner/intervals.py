"""The planner's input: intervals as columns.

An interval is a lifetime ``[start, end)`` in logical time with a size in bytes: a vertex of the
interval graph, whose edges are the overlaps of lifetimes. A million of them are seven NumPy arrays,
not a million objects, so that everything that is asked of all intervals at once is a sweep
(`smartpool.planner.sweeps`).

An interval may rest: `smartpool.planner.pieces`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smartpool.errors import PlanningError
from smartpool.planner.clash import find_clash
from smartpool.planner.pieces import (
    Pieces,
    check_rests,
    checked_rests,
    first_row,
    held,
    integers,
    taken_rests,
)
from smartpool.planner.sweeps import Int64s, component_of, overlap_counts, section_load, sections
from smartpool.values import encodable

__all__ = ["FREE", "Int64s", "IntervalSet"]

FREE: Final = -1
"""In a column of fixed offsets: the planner chooses."""

LARGEST_TOTAL: Final = 1 << 62
"""Sizes may not add up to more, so that no sum of the planner leaves an int64."""


@dataclass(frozen=True, slots=True, eq=False, init=False)
class IntervalSet:
    """Intervals as columns of equal length, copied and checked, in O(n log n).

    Parameters
    ----------
    start, end
        Lifetimes, half-open, in any integer unit: an interval is live at ``start <= t < end``. One
        that ends where it starts is never live and may lie anywhere.
    size
        Bytes, at least 0.
    alignment
        Of which the offset must be a multiple, at least 1. One for all, or one an interval; 1 by default.
    priority
        Larger is more important; 0 by default. A plan always holds all intervals; priority breaks ties in
        favour of low offsets, and decides in `WeightedIntervalGraphColoring` who keeps its place.
    fixed
        Offsets that are given, `FREE` where the planner chooses, which is the default.
    rests
        For each interval its rests, as ``(start, end)`` or, where it keeps the bytes [low, high) of its own,
        as ``(start, end, low, high)``; None where nothing ever rests.
    id
        Names for reports, of any type; row numbers by default.
    place
        Names row ``i`` in an error message: ``"line 7"``. By default by its id.

    Raises
    ------
    PlanningError
        When a column is not of integers or has another length, a lifetime ends before it starts,
        a size is negative, an alignment below 1, a rest lies outside its interval, a fixed offset is
        misaligned, or two fixed intervals collide. The message names the first interval that is wrong.

    Examples
    --------
    >>> intervals = IntervalSet([0, 2, 4], [3, 6, 8], [10, 20, 10])
    >>> len(intervals), intervals.load
    (3, 30)
    >>> IntervalSet([0, 2], [10, 8], [8, 8], rests=[[(2, 8)], []]).load
    8
    """

    start: Int64s
    end: Int64s
    size: Int64s
    alignment: Int64s
    priority: Int64s
    fixed: Int64s
    id: NDArray[np.generic]
    rests: Pieces | None

    def __init__(
        self,
        start: ArrayLike,
        end: ArrayLike,
        size: ArrayLike,
        *,
        alignment: ArrayLike | None = None,
        priority: ArrayLike | None = None,
        fixed: ArrayLike | None = None,
        rests: Sequence[Sequence[Sequence[int]]] | None = None,
        id: ArrayLike | None = None,  # noqa: A002  the column's name
        place: Callable[[int], str] | None = None,
    ) -> None:
        columns = {"start": integers("start", start)}
        count = len(columns["start"])
        for name, values, default in (
            ("end", end, 0),
            ("size", size, 0),
            ("alignment", alignment, 1),
            ("priority", priority, 0),
            ("fixed", fixed, FREE),
        ):
            column = np.array(default) if values is None else integers(name, values)
            if column.shape not in {(), (count,)}:
                raise PlanningError(f"{name}: expected {count} values, as in start, got shape {column.shape}")
            columns[name] = np.ascontiguousarray(np.broadcast_to(column, count)).astype(np.int64)
        names = _names(count, id)
        for column in (*columns.values(), names):
            column.flags.writeable = False
        _keep(self, **columns, id=names, rests=checked_rests(count, rests))
        _check(self, place or (lambda row: f"interval {names[row]}"))

    def __len__(self) -> int:
        return len(self.start)

    def __repr__(self) -> str:
        return f"<{len(self)} intervals, load {self.load} bytes>"

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
    ) -> IntervalSet:
        """Return ``IntervalSet(start, end, size, ...)``."""
        return cls(start, end, size, alignment=alignment, priority=priority, fixed=fixed, id=id)

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
        op, id, size = integers("op", op), integers("id", id), integers("size", size)  # noqa: A001
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
        return cls(start[by_time], end[by_time], size[start][by_time], id=id[start][by_time])

    @property
    def load(self) -> int:
        """The largest sum of sizes that are live at once: no plan can be lower."""
        _, load = self.load_over_time()
        return int(load.max(initial=0))

    def pieces(self) -> Pieces:
        """Return what is held when: one rectangle an interval, and more of those that rest; O(n log n)."""
        return held(self.start, self.end, self.size, self.rests)

    def load_over_time(self) -> tuple[Int64s, Int64s]:
        """Return the cuts of time, and the load of each section between two of them, in O(n log n).

        Examples
        --------
        >>> times, load = IntervalSet([0, 2, 4], [3, 6, 8], [10, 20, 10]).load_over_time()
        >>> times.tolist(), load.tolist()
        ([0, 2, 3, 4, 6, 8], [10, 30, 20, 30, 10])
        """
        parts = self.pieces()
        cut = sections(parts.start, parts.end)
        return cut.times, section_load(cut.first, cut.last, parts.high - parts.low, len(cut))

    def overlap_counts(self) -> Int64s:
        """Return with how many others each lifetime overlaps: its degree in the graph; O(n log n)."""
        return overlap_counts(self.start, self.end)

    def components(self) -> Int64s:
        """Return the number of each interval's connected component, in order of time; O(n log n)."""
        return component_of(self.start, self.end)

    def without_fixed(self) -> IntervalSet:
        """Return the same intervals, all of them free to move."""
        return self._changed(fixed=np.full(len(self), FREE))

    def without_rests(self) -> IntervalSet:
        """Return the same intervals, live from their start to their end. A plan of these is one of those."""
        return self if self.rests is None else self._changed(rests=None)

    def with_fixed(self, fixed: Int64s, place: Callable[[int], str] | None = None) -> IntervalSet:
        """Return the same intervals with these offsets given, checked as the constructor checks them."""
        made = self._changed(fixed=fixed)
        _check(made, place or (lambda row: f"interval {self.id[row]}"))
        return made

    def take(self, rows: ArrayLike) -> IntervalSet:
        """Return the intervals of these rows (indices or a mask), in that order."""
        chosen = np.arange(len(self))[np.asarray(rows)]
        taken = {name: getattr(self, name)[chosen] for name in self.__slots__ if name != "rests"}
        if self.rests is None:
            return self._changed(**taken)
        return self._changed(**taken, rests=taken_rests(self.rests, chosen))

    def _changed(self, **columns: object) -> IntervalSet:
        """Return a copy with other columns, which are right already."""
        made = object.__new__(IntervalSet)
        _keep(made, **{name: getattr(self, name) for name in self.__slots__} | columns)
        return made


def _keep(intervals: IntervalSet, **columns: object) -> None:
    for name, column in columns.items():
        object.__setattr__(intervals, name, column)


def _names(count: int, id: ArrayLike | None) -> NDArray[np.generic]:  # noqa: A002  the column's name
    if id is None:
        return np.arange(count)
    names = np.array(id)
    if names.shape != (count,):
        raise PlanningError(f"id: expected {count} values, as in start, got shape {names.shape}")
    if names.dtype.kind == "U":
        names = np.array([encodable(name) for name in names.tolist()], dtype=np.str_)
    return names


def _check(intervals: IntervalSet, place: Callable[[int], str]) -> None:
    start, end, size = intervals.start, intervals.end, intervals.size
    alignment, fixed = intervals.alignment, intervals.fixed
    if row := first_row(end < start):
        raise PlanningError(
            f"{place(row - 1)}: expected an end of at least the start {start[row - 1]}, got {end[row - 1]}"
        )
    if row := first_row(size < 0):
        raise PlanningError(f"{place(row - 1)}: expected a size of at least 0, got {size[row - 1]}")
    if row := first_row(alignment <= 0):
        raise PlanningError(
            f"{place(row - 1)}: expected an alignment of at least 1, got {alignment[row - 1]}"
        )
    if row := first_row(fixed < FREE):
        raise PlanningError(f"{place(row - 1)}: expected a fixed offset of at least 0, got {fixed[row - 1]}")
    if row := first_row((fixed != FREE) & (fixed % alignment != 0)):
        raise PlanningError(
            f"{place(row - 1)}: expected a fixed offset that is a multiple of the alignment "
            f"{alignment[row - 1]}, got {fixed[row - 1]}"
        )
    # Floats are exact enough to see the sum come near the limit, and cannot overflow.
    total = np.cumsum(
        size.astype(np.float64) + np.where(fixed > 0, fixed, 0) + (alignment.astype(np.float64) - 1)
    )
    if row := first_row(total > LARGEST_TOTAL):
        raise PlanningError(
            f"{place(row - 1)}: expected sizes, fixed offsets and alignments that add up to less than 2**62 "
            f"bytes, got {total[row - 1]:.4g} up to this one, with its size {size[row - 1]}"
        )
    check_rests(start, end, size, intervals.rests, place)
    _check_fixed(intervals, place)


def _check_fixed(intervals: IntervalSet, place: Callable[[int], str]) -> None:
    parts = intervals.pieces()
    parts = parts.take(intervals.fixed[parts.row] != FREE)
    low, high = (intervals.fixed[parts.row] + edge for edge in (parts.low, parts.high))
    pair = find_clash(parts.start, parts.end, low, high)
    if pair is not None:
        both = sorted(pair, key=lambda at: int(parts.row[at]))
        first, second = (int(row) for row in parts.row[both])
        raise PlanningError(
            f"{place(second)}: its fixed offset collides with {place(first)}: both are live in "
            f"[{parts.start[both].max()}, {parts.end[both].min()}) "
            f"at the bytes [{low[both].max()}, {high[both].min()}); move one of them"
        )
