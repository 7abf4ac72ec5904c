"""The planner's input: intervals as columns.

An interval is a lifetime ``[start, end)`` in logical time with a size in bytes: a vertex of the
interval graph, whose edges are the overlaps of lifetimes. A million of them are seven NumPy arrays,
not a million objects, so that everything that is asked of all intervals at once is a sweep
(`smartpool.planner.sweeps`).

An interval may *rest*: for a part of its lifetime it keeps its offset and leaves its bytes, all of them or
those outside a window, to others. What it holds then is not one rectangle of time by bytes but several, its
*pieces*, which move together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smartpool.errors import PlanningError
from smartpool.planner.clash import find_clash
from smartpool.planner.sweeps import Int64s, component_of, overlap_counts, section_load, sections
from smartpool.values import encodable

__all__ = ["FREE", "Int64s", "IntervalSet", "Pieces"]

FREE: Final = -1
"""In a column of fixed offsets: the planner chooses."""

LARGEST_TOTAL: Final = 1 << 62
"""Sizes may not add up to more, so that no sum of the planner leaves an int64."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pieces:
    """Rectangles of time by bytes: at ``start <= t < end`` the interval `row` holds its bytes [low, high)."""

    row: Int64s
    start: Int64s
    end: Int64s
    low: Int64s
    high: Int64s

    def take(self, rows: ArrayLike) -> Pieces:
        """Return the pieces of these rows (indices or a mask), in that order."""
        return Pieces(**{name: getattr(self, name)[rows] for name in self.__slots__})


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
        names = _names(count, id)
        for column in (*columns.values(), names):
            column.flags.writeable = False
        _keep(self, **columns, id=names, rests=_rests(count, rests))
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
        return cls(start[by_time], end[by_time], size[start][by_time], id=id[start][by_time])

    @property
    def load(self) -> int:
        """The largest sum of sizes that are live at once: no plan can be lower."""
        _, load = self.load_over_time()
        return int(load.max(initial=0))

    def pieces(self) -> Pieces:
        """Return what is held when: one rectangle an interval, and more of those that rest; O(n log n)."""
        rows, zero = np.arange(len(self)), np.zeros(len(self), np.int64)
        if self.rests is None:
            return Pieces(row=rows, start=self.start, end=self.end, low=zero, high=self.size)
        rests = self.rests
        # Between rests an interval holds all: from its start or a rest's end to the next rest, or its end.
        begun_by, ended_by = np.append(rows, rests.row), np.append(rests.row, rows)
        begins, ends = np.append(self.start, rests.end), np.append(rests.start, self.end)
        by_begin, by_end = np.lexsort((begins, begun_by)), np.lexsort((ends, ended_by))
        row = begun_by[by_begin]
        whole = Pieces(
            row=row, start=begins[by_begin], end=ends[by_end], low=np.zeros_like(row), high=self.size[row]
        )
        both = Pieces(
            **{name: np.append(getattr(whole, name), getattr(rests, name)) for name in Pieces.__slots__}
        )
        held = both.take((both.start < both.end) & (both.low < both.high))
        return held.take(np.argsort(held.row, kind="stable"))

    def load_over_time(self) -> tuple[Int64s, Int64s]:
        """Return the cuts of time, and the load of each section between two of them, in O(n log n).

        Examples
        --------
        >>> times, load = IntervalSet([0, 2, 4], [3, 6, 8], [10, 20, 10]).load_over_time()
        >>> times.tolist(), load.tolist()
        ([0, 2, 3, 4, 6, 8], [10, 30, 20, 30, 10])
        """
        held = self.pieces()
        cut = sections(held.start, held.end)
        return cut.times, section_load(cut.first, cut.last, held.high - held.low, len(cut))

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
        whose = self.rests.row
        low, high = np.searchsorted(whose, chosen, "left"), np.searchsorted(whose, chosen, "right")
        old = [at for begin, end in zip(low.tolist(), high.tolist(), strict=True) for at in range(begin, end)]
        rests = self.rests.take(np.array(old, np.int64))
        new = np.repeat(np.arange(len(chosen)), high - low)
        return self._changed(**taken, rests=replace(rests, row=new))

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


def _rests(count: int, rests: Sequence[Sequence[Sequence[int]]] | None) -> Pieces | None:
    """Return rests as columns, by row and time; None where there are none."""
    if rests is None:
        return None
    if len(rests) != count:
        raise PlanningError(f"rests: expected {count} lists, as in start, got {len(rests)}")
    table = []
    for row, of_row in enumerate(rests):
        for rest in of_row:
            entry = tuple(rest) if np.ndim(rest) == 1 else ()
            if len(entry) not in (2, 4):
                raise PlanningError(
                    f"rests: expected (start, end) or (start, end, low, high), got {rest!r:.80}"
                )
            table.append((row, *entry, *((0, 0) if len(entry) == 2 else ())))
    columns = [_integers("rests", [entry[at] for entry in table]) for at in range(5)]
    kept = Pieces(**dict(zip(Pieces.__slots__, columns, strict=True)))
    kept = kept.take(kept.start != kept.end)
    return kept.take(np.lexsort((kept.start, kept.row))) if len(kept.row) else None


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
    if row := _first(alignment <= 0):
        raise PlanningError(
            f"{place(row - 1)}: expected an alignment of at least 1, got {alignment[row - 1]}"
        )
    if row := _first(fixed < FREE):
        raise PlanningError(f"{place(row - 1)}: expected a fixed offset of at least 0, got {fixed[row - 1]}")
    if row := _first((fixed != FREE) & (fixed % alignment != 0)):
        raise PlanningError(
            f"{place(row - 1)}: expected a fixed offset that is a multiple of the alignment "
            f"{alignment[row - 1]}, got {fixed[row - 1]}"
        )
    # Floats are exact enough to see the sum come near the limit, and cannot overflow.
    total = np.cumsum(
        size.astype(np.float64) + np.where(fixed > 0, fixed, 0) + (alignment.astype(np.float64) - 1)
    )
    if row := _first(total > LARGEST_TOTAL):
        raise PlanningError(
            f"{place(row - 1)}: expected sizes, fixed offsets and alignments that add up to less than 2**62 "
            f"bytes, got {total[row - 1]:.4g} up to this one, with its size {size[row - 1]}"
        )
    _check_rests(intervals, place)
    _check_fixed(intervals, place)


def _check_rests(intervals: IntervalSet, place: Callable[[int], str]) -> None:
    rests = intervals.rests
    if rests is None:
        return
    row = rests.row
    again = np.append(False, (row[1:] == row[:-1]) & (rests.start[1:] < rests.end[:-1]))
    for wrong, expected in (
        (rests.start > rests.end, "a rest that does not end before it starts"),
        (
            (rests.start < intervals.start[row]) | (rests.end > intervals.end[row]),
            "a rest within its lifetime",
        ),
        (again, "rests that do not overlap"),
        (
            (rests.low < 0) | (rests.high < rests.low) | (rests.high > intervals.size[row]),
            "a rest that keeps none but its own bytes",
        ),
    ):
        if at := _first(wrong):
            start, end, low, high = (int(getattr(rests, name)[at - 1]) for name in Pieces.__slots__[1:])
            raise PlanningError(
                f"{place(int(row[at - 1]))}: expected {expected}, "
                f"got one at [{start}, {end}) that keeps the bytes [{low}, {high})"
            )


def _check_fixed(intervals: IntervalSet, place: Callable[[int], str]) -> None:
    held = intervals.pieces()
    held = held.take(intervals.fixed[held.row] != FREE)
    low, high = (intervals.fixed[held.row] + edge for edge in (held.low, held.high))
    pair = find_clash(held.start, held.end, low, high)
    if pair is not None:
        both = sorted(pair, key=lambda at: int(held.row[at]))
        first, second = (int(row) for row in held.row[both])
        raise PlanningError(
            f"{place(second)}: its fixed offset collides with {place(first)}: both are live in "
            f"[{held.start[both].max()}, {held.end[both].min()}) "
            f"at the bytes [{low[both].max()}, {high[both].min()}); move one of them"
        )


def _first(wrong: NDArray[np.bool_]) -> int:
    """Return one more than the first row that is wrong, 0 when none is."""
    return int(wrong.argmax()) + 1 if wrong.any() else 0
