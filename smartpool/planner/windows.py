"""Windows of time for instances with many peaks: repeated steps that something outlives.

Problem: a thousand training steps in a row have a thousand peaks, each as high as the load. Best fit from
one of them has lost its way at the others, and they do not separate as components, since weights,
prefetched batches and late gradients cross from one step to the next.

Method: time is cut at the lowest section between each two neighbouring peaks that stand out. What
crosses a cut, little as the load is low there, is planned first, as a problem of its own, at the bottom.
Then each window is a problem of its own as well, with the crossers as fixed offsets: windows do not see one
another. The plan improves one window at a time, always the highest.

Bound: O(n log n) and the cost of the windows. What is given up: crossers are placed without a look at
the windows. So if they are many, the cuts are wrong, and the plan of the whole is better.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from smartpool.planner.intervals import FREE
from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s

__all__ = ["cuts_between_peaks", "window_rows", "windows"]

PEAK: Final = 0.8
"""A peak worth a window reaches this share of the load."""

PROMINENCE: Final = 0.5
"""And it falls by this share of itself before the next one."""


def cuts_between_peaks(load: Int64s, *, peak: float = PEAK, prominence: float = PROMINENCE) -> Int64s:
    """Return the sections at which to cut: the lowest between each two peaks that stand out.

    >>> cuts_between_peaks(np.array([1, 9, 2, 1, 3, 10, 9, 2])).tolist()
    [3]
    """
    if len(load) < 3:
        return np.zeros(0, np.int64)
    # Only the turns of the curve matter.
    slope = np.sign(np.diff(load))
    moving = np.flatnonzero(slope)
    turns = moving[np.flatnonzero(np.diff(slope[moving])) + 1]
    points = np.concatenate([[0], turns, [len(load) - 1]])
    floor = peak * int(load.max())
    cuts: list[int] = []
    top = -1
    low, low_at = 0, 0
    for at, value in zip(points.tolist(), load[points].tolist(), strict=True):
        if top < 0:
            if value >= floor:
                top, low, low_at = value, value, at
        elif value < low:
            low, low_at = value, at
        elif value >= floor and low <= (1 - prominence) * min(value, top):
            cuts.append(low_at)
            top, low, low_at = value, value, at
        elif value > top:
            top, low, low_at = value, value, at
    return np.array(cuts, np.int64)


def window_rows(problem: Problem, cuts: Int64s) -> tuple[Int64s, list[Int64s]]:
    """Return the rows that cross a cut, and for each window the rows that lie in it alone."""
    crossings = np.searchsorted(cuts, problem.last) - np.searchsorted(cuts, problem.first)
    crossers = np.flatnonzero(crossings > 0)
    inside = np.flatnonzero(crossings == 0)
    window = np.searchsorted(cuts, problem.first[inside])
    order = np.argsort(window, kind="stable")
    return crossers, np.split(inside[order], np.searchsorted(window[order], np.arange(1, len(cuts) + 1)))


def windows(problem: Problem, cuts: Int64s, offsets: Int64s) -> list[tuple[Problem, Int64s]]:
    """Return each window in which something is to be placed as a problem, with the rows that it stands for.

    Parameters
    ----------
    offsets
        Of the crossers and of what is fixed; `FREE` for the others. The windows keep them.
    """
    crossers, inside = window_rows(problem, cuts)
    first, last = problem.first[crossers], problem.last[crossers]
    edges = np.concatenate([[-1], cuts, [len(problem.load)]])
    known = problem.with_fixed(offsets)
    result = []
    for low, high, rows in zip(edges[:-1] + 1, edges[1:], inside, strict=True):
        beside = crossers[(first < high) & (last > low)]
        both = np.concatenate([beside, rows])
        if (offsets[rows] == FREE).any():
            result.append((known.clip(both, int(low), int(high)), both))
    return result
