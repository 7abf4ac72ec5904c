"""Repair a plan by its order: what ends too high is placed earlier, and all behind it anew.

Problem: a plan is nearly good; a few intervals end above the goal.

Method: the plan is read as an order (by offset), from which first fit rebuilds it or a lower one. Each
interval in turn takes the lowest offset that the ones before it leave. When one would end above the goal
it moves earlier in the order, by one place the first time, by twice as many at each failure of the
same interval, and placing resumes from there. This is the core of "squeaky wheel optimisation" (Joslin
and Clements, JAIR 1999), here on prefixes: what stands before the new place keeps its offsets.

Bound: O(k) vectorised for each interval placed, with k placed before it; for parts of up to `LARGEST`
intervals. Deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from smartpool.planner.clock import Clock
from smartpool.planner.intervals import FREE
from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s, first_fit

__all__ = ["improve"]

LARGEST: Final = 4000
"""Beyond so many intervals a pass takes longer than all other solvers together."""


def improve(problem: Problem, offsets: Int64s, *, goal: int, clock: Clock) -> Iterator[Int64s]:
    """Yield ever lower plans made from one, until the goal is met or the clock runs out.

    Parameters
    ----------
    problem
        What is planned.
    offsets
        A valid plan of it.
    goal
        The height to reach. The way there goes through lower limits than the height so far.
    """
    size = problem.size
    if len(problem) > LARGEST:
        return
    height = int((offsets + size).max(initial=0))
    while height > goal and not clock.expired:
        # Half of the way at a time: a plan on the way is kept, should the goal be too low.
        limit = goal + (height - goal) // 2
        better = _rebuild(problem, offsets, limit, clock)
        if better is None:
            return
        offsets = better
        height = int((offsets + size).max(initial=0))
        yield offsets


def _rebuild(problem: Problem, offsets: Int64s, limit: int, clock: Clock) -> Int64s | None:
    """Return a plan of at most `limit`, or None when the clock ran out first."""
    held = np.zeros(len(problem), bool) if problem.fixed is None else problem.fixed != FREE
    order = np.flatnonzero(~held)
    order = order[np.lexsort((-problem.size[order], offsets[order]))].tolist()
    fixed = np.flatnonzero(held)
    rows = np.concatenate([fixed, np.array(order, np.int64)])
    before = len(fixed)
    first, last = problem.first[rows], problem.last[rows]
    low = offsets[rows].copy()
    high = low + problem.size[rows]
    steps = np.ones(len(rows), np.int64) if problem.alignment is None else problem.alignment[rows]
    back = np.zeros(len(problem), np.int64)
    at = before
    while at < len(rows):
        if at % 64 == 0 and clock.expired:
            return None
        size = int(high[at] - low[at])
        meets = np.flatnonzero((first[:at] < last[at]) & (last[:at] > first[at]))
        meets = meets[np.argsort(low[meets])]
        offset = first_fit(low[meets], high[meets], size, int(steps[at]))
        low[at], high[at] = offset, offset + size
        if offset + size <= limit:
            at += 1
            continue
        if clock.expired or at == before:
            return None
        row = rows[at]
        back[row] = min(at - before, 2 * back[row] or 1)
        to = at - int(back[row])
        for column in (rows, first, last, low, high, steps):
            column[to : at + 1] = np.roll(column[to : at + 1], 1)
        at = to
    result = np.empty(len(problem), np.int64)
    result[rows] = low
    return result
