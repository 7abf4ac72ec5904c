"""A lazy core: what touches the hottest sections is solved exactly, everything else is swept around it.

Problem: in a real instance of 10^3 to 10^6 intervals only a few hundred are hard: those that are live when
the load is near its maximum. No search can take all the others along, and no greedy gets the hard ones
right.

Method: the *core* is what touches a hot section; at first the hot sections are those of the largest load.

1. An exact search fits the core into the target height (the load).
2. Time is cut in the valleys between the hot runs. What crosses a cut is placed first, then each window
   is swept outward from its peak, with core and crossers as reservations (`smartpool.planner.sweep_fit`).
3. Where an interval ends above the target, the hottest section that it touches and that is not hot yet
   becomes hot; back to 1.

Source: the idea of a lazily grown core is that of cutting planes; for storage allocation we know of no
earlier use. Bound: each round may heat twice as many sections as the one before, so there are few: the
real instances take one to six, with cores of 80 to 3400 intervals. Rejected: as many in every round (dozens
of rounds where steps overlap, each with a core solved anew); adding a fixed share of the sections (too
many for the search in flat instances, too few in spiky ones); making all sections hot that
a violating interval touches (long ones drag in half of time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from smartpool.planner.clock import Clock
from smartpool.planner.intervals import FREE
from smartpool.planner.problem import Problem
from smartpool.planner.sweep_fit import fill, outward
from smartpool.planner.sweeps import Int64s
from smartpool.planner.windows import windows

__all__ = ["CoreSolver", "around", "solve_core", "touches"]

CoreSolver = Callable[[Problem, int], "Int64s | None"]
"""Fits a problem without fixed offsets into a capacity, or gives up."""

VALLEY: Final = 0.9
"""A cut is made where the load falls below this share of its maximum."""

WORST: Final = 8
"""So many violations, the highest, make a section hot in the first round; then twice as many each."""


def solve_core(problem: Problem, target: int, fit: CoreSolver, clock: Clock) -> Iterator[Int64s]:
    """Yield ever other plans, the core exact in each, until one meets the target or the search gives up."""
    hot = problem.load >= problem.load.max(initial=0)
    worst = WORST
    while not clock.expired:
        rows = np.flatnonzero(touches(hot, problem.first, problem.last))
        core = _fit_core(problem, rows, target, fit)
        if core is None:
            return
        offsets = around(problem, core, hot, target, clock)
        yield offsets
        over = np.flatnonzero(offsets + problem.size > target)
        over = over[np.argsort(-(offsets + problem.size)[over])][:worst]
        if not len(over) or not _heat(problem, hot, over):
            return
        worst *= 2


def around(problem: Problem, core: Int64s, hot: np.ndarray, target: int, clock: Clock) -> Int64s:
    """Return offsets for all, with `core` (`FREE` elsewhere) kept, by sweeps from each hot run."""
    cuts = _valleys(problem.load, hot)
    offsets = core.copy()
    _place_crossers(problem, offsets, cuts, clock)
    for window, rows in windows(problem, cuts, offsets):
        offsets[rows] = outward(window, ceiling=target, clock=clock)
    return offsets


def _place_crossers(problem: Problem, offsets: Int64s, cuts: Int64s, clock: Clock) -> None:
    """Place what crosses cuts: first what crosses several, then, cut by cut, what crosses one alone."""
    first, last = problem.first, problem.last
    first_cut, crossings = np.searchsorted(cuts, first), np.searchsorted(cuts, last)
    crossings -= first_cut
    obstacles = np.flatnonzero(offsets != FREE)
    crossers = np.flatnonzero((crossings > 0) & (offsets == FREE))
    # A group for each cut, the longest first, after one of its own for what crosses several.
    group = np.where(crossings > 1, -1, first_cut)[crossers]
    order = np.lexsort((first[crossers] - last[crossers], group))
    for rows in np.split(crossers[order], np.flatnonzero(np.diff(group[order])) + 1):
        if len(rows):
            near = (first[obstacles] < last[rows].max()) & (last[obstacles] > first[rows].min())
            fill(problem, offsets, rows, obstacles[near], clock)
            obstacles = np.concatenate([obstacles, rows])


def _fit_core(problem: Problem, rows: Int64s, target: int, fit: CoreSolver) -> Int64s | None:
    """Return offsets with the core placed and the fixed ones, or None."""
    offsets = np.full(len(problem), FREE) if problem.fixed is None else problem.fixed.copy()
    floor = 0
    if problem.fixed is not None:
        # The search knows no obstacles. It need not where they are a floor under the whole core.
        rows = rows[problem.fixed[rows] == FREE]
        if not len(rows):
            return offsets
        low, high = problem.first[rows].min(), problem.last[rows].max()
        beside = np.flatnonzero((problem.fixed != FREE) & (problem.first < high) & (problem.last > low))
        if (problem.first[beside] > low).any() or (problem.last[beside] < high).any():
            return None
        floor = int((problem.fixed + problem.size)[beside].max(initial=0))
        step = problem.common_alignment
        floor = (floor + step - 1) // step * step
    found = fit(problem.take(rows).free(), target - floor)
    if found is None:
        return None
    offsets[rows] = found + floor
    return offsets


def touches(hot: np.ndarray, first: Int64s, last: Int64s) -> np.ndarray:
    """Return which lifetimes cover a hot section."""
    so_far = np.concatenate([[0], np.cumsum(hot)])
    result: np.ndarray = so_far[last] > so_far[first]
    return result


def _heat(problem: Problem, hot: np.ndarray, over: Int64s) -> bool:
    """Make hot the hottest cold section of each violation; say whether any was cold."""
    changed = False
    for row in over.tolist():
        span = slice(problem.first[row], problem.last[row])
        load = np.where(hot[span], -1, problem.load[span])
        at = int(load.argmax())
        if load[at] >= 0:
            hot[problem.first[row] + at] = True
            changed = True
    return changed


def _valleys(load: Int64s, hot: np.ndarray) -> Int64s:
    """Return the lowest section between each two hot runs where it is low enough to cut there."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hot, [False]]).astype(np.int8)))
    ceiling = VALLEY * load.max(initial=0)
    cuts = []
    for low, high in zip(edges[1:-1:2].tolist(), edges[2::2].tolist(), strict=True):
        at = low + int(load[low:high].argmin())
        if load[at] < ceiling:
            cuts.append(at)
    return np.array(cuts, np.int64)
