"""Is a plan valid? It reads columns, and shares nothing with the solvers but the type of its input."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from smartpool.errors import PlanningError
from smartpool.planner.clash import find_clash
from smartpool.planner.intervals import FREE, IntervalSet

__all__ = ["validate"]


def validate(intervals: IntervalSet, offsets: ArrayLike) -> int:
    """Check a plan and return its height: the end of the highest interval that is ever live.

    Parameters
    ----------
    intervals
        What was planned.
    offsets
        Where the plan puts each interval.

    Raises
    ------
    PlanningError
        When an offset is missing, negative, misaligned or not the fixed one, or two intervals that
        are live at once share a byte. The message names the intervals.

    Examples
    --------
    >>> intervals = IntervalSet.from_arrays([0, 2], [3, 6], [10, 20])
    >>> validate(intervals, [0, 10])
    30
    >>> validate(intervals, [0, 9])
    Traceback (most recent call last):
    smartpool.errors.PlanningError: intervals 0 and 1 are both live at time 2 and share bytes [9, 10)
    """
    placed = np.asarray(offsets)
    if placed.shape != (len(intervals),):
        raise PlanningError(f"expected {len(intervals)} offsets, one an interval, got shape {placed.shape}")
    if not len(intervals):
        return 0
    if placed.dtype.kind not in "iu":
        raise PlanningError(f"expected integer offsets, got {placed.dtype}")
    names = intervals.id
    for wrong, what in (
        (placed < 0, "has an offset below 0"),
        (placed % intervals.alignment != 0, "has an offset that is not a multiple of its alignment"),
        ((intervals.fixed != FREE) & (placed != intervals.fixed), "is not at its fixed offset"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise PlanningError(f"interval {names[row]} {what}: {placed[row]}")
    held = intervals.pieces()
    low, high = placed[held.row] + held.low, placed[held.row] + held.high
    clash = find_clash(held.start, held.end, low, high)
    if clash is not None:
        both = sorted(clash, key=lambda at: int(held.row[at]))
        one, two = held.row[both]
        raise PlanningError(
            f"intervals {names[one]} and {names[two]} are both live at time {held.start[both].max()} "
            f"and share bytes [{low[both].max()}, {high[both].min()})"
        )
    real = (intervals.size > 0) & (intervals.start < intervals.end)
    return int((placed + intervals.size)[real].max(initial=0))
