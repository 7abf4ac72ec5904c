"""What intervals hold when: one rectangle of time by bytes each, and several of those that rest.

An interval may *rest*: for a part of its lifetime it keeps its offset and leaves its bytes, all of them or
those outside a window, to others. What it holds then are several rectangles, its *pieces*, which move
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smartpool.errors import PlanningError
from smartpool.planner.sweeps import Int64s

__all__ = ["Pieces", "check_rests", "checked_rests", "first_row", "held", "integers", "taken_rests"]


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


def held(start: Int64s, end: Int64s, size: Int64s, rests: Pieces | None) -> Pieces:
    """Return what intervals hold, by row; O(n log n).

    >>> column = np.array
    >>> rests = checked_rests(1, [[(2, 8, 0, 4)]])
    >>> parts = held(column([0]), column([10]), column([6]), rests)
    >>> parts.start.tolist(), parts.end.tolist(), parts.high.tolist()
    ([0, 8, 2], [2, 10, 8], [6, 6, 4])
    """
    rows = np.arange(len(start))
    if rests is None:
        return Pieces(row=rows, start=start, end=end, low=np.zeros_like(rows), high=size)
    # Between rests an interval holds all: from its start or a rest's end to the next rest, or its end.
    begun_by, ended_by = np.append(rows, rests.row), np.append(rests.row, rows)
    begins, ends = np.append(start, rests.end), np.append(rests.start, end)
    by_begin, by_end = np.lexsort((begins, begun_by)), np.lexsort((ends, ended_by))
    row = begun_by[by_begin]
    whole = (row, begins[by_begin], ends[by_end], np.zeros_like(row), size[row])
    kept = (getattr(rests, name) for name in Pieces.__slots__)
    columns = [np.append(*pair) for pair in zip(whole, kept, strict=True)]
    both = Pieces(**dict(zip(Pieces.__slots__, columns, strict=True)))
    real = both.take((both.start < both.end) & (both.low < both.high))
    return real.take(np.argsort(real.row, kind="stable"))


def checked_rests(count: int, rests: Sequence[Sequence[Sequence[int]]] | None) -> Pieces | None:
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
    columns = [integers("rests", [entry[at] for entry in table]) for at in range(5)]
    kept = Pieces(**dict(zip(Pieces.__slots__, columns, strict=True)))
    kept = kept.take(kept.start != kept.end)
    return kept.take(np.lexsort((kept.start, kept.row))) if len(kept.row) else None


def taken_rests(rests: Pieces, rows: Int64s) -> Pieces:
    """Return the rests of these rows, which are counted anew."""
    low, high = np.searchsorted(rests.row, rows, "left"), np.searchsorted(rests.row, rows, "right")
    taken = [at for begin, end in zip(low.tolist(), high.tolist(), strict=True) for at in range(begin, end)]
    return replace(rests.take(np.array(taken, np.int64)), row=np.repeat(np.arange(len(rows)), high - low))


def check_rests(
    start: Int64s, end: Int64s, size: Int64s, rests: Pieces | None, place: Callable[[int], str]
) -> None:
    """Raise `PlanningError` when a rest is none: outside of its lifetime or its bytes, or within another."""
    if rests is None:
        return
    row = rests.row
    again = np.append(False, (row[1:] == row[:-1]) & (rests.start[1:] < rests.end[:-1]))
    for wrong, expected in (
        (rests.start > rests.end, "a rest that does not end before it starts"),
        (
            (rests.start < start[row]) | (rests.end > end[row]),
            "a rest within its lifetime",
        ),
        (again, "rests that do not overlap"),
        (
            (rests.low < 0) | (rests.high < rests.low) | (rests.high > size[row]),
            "a rest that keeps none but its own bytes",
        ),
    ):
        if at := first_row(wrong):
            begin, until, low, high = (int(getattr(rests, name)[at - 1]) for name in Pieces.__slots__[1:])
            raise PlanningError(
                f"{place(int(row[at - 1]))}: expected {expected}, "
                f"got one at [{begin}, {until}) that keeps the bytes [{low}, {high})"
            )


def integers(name: str, values: ArrayLike) -> Int64s:
    """Return a column as integers of 64 bits; `PlanningError` when it is none."""
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


def first_row(wrong: NDArray[np.bool_]) -> int:
    """Return one more than the first row that is wrong, 0 when none is."""
    return int(wrong.argmax()) + 1 if wrong.any() else 0
