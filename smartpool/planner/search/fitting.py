"""`fit`: offsets below a given capacity, by exact search."""

from __future__ import annotations

from typing import Final

from smartpool.planner.clock import FOREVER, Clock
from smartpool.planner.problem import Problem
from smartpool.planner.search.restarts import HARD, Restarts
from smartpool.planner.sweeps import Int64s

EFFORT: Final = 3  # nodes of the smallest tree, for each of its bundles


def fit(problem: Problem, capacity: int, clock: Clock = FOREVER, *, seed: int = 0) -> Int64s | None:
    """Find offsets below a capacity by exact search.

    Parameters
    ----------
    problem
        What to place, nothing of it fixed.
    capacity
        What the plan may use, in the units of the problem.
    clock
        When to give up; without one the search ends only with an answer.
    seed
        The same seed visits the same nodes.

    Returns
    -------
    Int64s or None
        One offset an interval; None when neither a plan nor a proof was found in time.

    Raises
    ------
    ProvedInfeasible
        When no offsets fit.

    Examples
    --------
    >>> from smartpool.planner.intervals import IntervalSet
    >>> from smartpool.planner.problem import normalize
    >>> offsets = fit(normalize(IntervalSet([0, 1, 2], [2, 3, 4], [4, 4, 4])).problem, 2)
    >>> sorted(offsets.tolist()[:2]), int(offsets[0] - offsets[2])
    ([0, 1], 0)
    """
    return Restarts(HARD, seed, effort=EFFORT).search(problem, capacity, clock)
