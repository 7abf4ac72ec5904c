"""`fit`: offsets below a capacity, by restarts of a tree search over guesses.

Problem: one tree finds a plan at once or hardly ever; its run times have heavy tails.

Method: many small trees. Each guesses an order of buffers (by width, area, size or the load that they
meet), whether time runs backwards, and how far buffers are merged. Node budgets follow Luby, Sinclair
and Zuckerman's sequence ("Optimal speedup of Las Vegas algorithms", Information Processing Letters 47,
1993), one round of guesses at each step of it. The dead ends that sections caused are kept from tree
to tree: what was hard stays first. From the second round on the orders are shaken a little.

Among the guesses is a complete one: nothing merged, floors raised wherever slack allows. When it is
exhausted, nothing fits, and that is a proof.

Bound: none; anytime. See docs/planner-search.md for what each part is worth.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from smartpool.errors import SmartPoolError
from smartpool.planner.clock import FOREVER, Clock
from smartpool.planner.decompose import decompose
from smartpool.planner.problem import Problem
from smartpool.planner.search.merging import Bundle, Merge, merge, singles
from smartpool.planner.search.skyline import Task
from smartpool.planner.search.tree import Outcome, Tree
from smartpool.planner.sweeps import Int64s

EFFORT: Final = 3  # nodes of the smallest tree, for each of its bundles
SHAKE: Final = 0.1  # how much a key varies from the second round on


class ProvedInfeasible(SmartPoolError):  # noqa: N818 - a verdict, not a mistake
    """No offsets fit the capacity: the load exceeds it, or a complete search was exhausted.

    Not raised when a search merely ended without an answer; then the answer is None.
    """


class Priority(Enum):
    """What makes a buffer come early."""

    WIDTH = "width"
    AREA = "area"
    SIZE = "size"
    LOAD = "load"


@dataclass(frozen=True, slots=True)
class Guess:
    """How one tree sees the instance."""

    priority: Priority
    reverse: bool
    merge: Merge
    lazy: bool


def _guesses(how: Merge, *, lazy: bool) -> list[Guess]:
    return [Guess(priority, reverse, how, lazy) for priority in Priority for reverse in (False, True)]


COMPLETE: Final = Guess(Priority.WIDTH, reverse=False, merge=Merge.NONE, lazy=False)
GUESSES: Final = (
    _guesses(Merge.ALL, lazy=False),
    _guesses(Merge.ALL, lazy=True),
    _guesses(Merge.QUIET, lazy=False),
    _guesses(Merge.QUIET, lazy=True),
    _guesses(Merge.QUIET, lazy=False),
    [*_guesses(Merge.STACKS, lazy=False), COMPLETE],
)
"""The quick ones first. Each tree on `QUIET` sees other bundles, so most trees are such."""


def fit(problem: Problem, capacity: int, clock: Clock = FOREVER, *, seed: int = 0) -> Int64s | None:
    """Find offsets below a capacity by exact search.

    Parts that no interval connects are searched one after another, equal ones once; the guess that was
    right for one part is the first for the next.

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
    load = int(problem.load.max(initial=0))
    if load > capacity:
        raise ProvedInfeasible(f"the load is {load} units, the capacity {capacity}")
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    guesses = [guess for tier in GUESSES for guess in rng.sample(tier, len(tier))]
    parts, offsets = decompose(problem)
    for part in parts:
        scaled, unit = part.problem.in_units()
        found = _fit_part(scaled, (capacity - part.base) // unit, clock, guesses, rng)
        if found is None:
            return None
        for rows in part.copies:
            offsets[rows] = part.base + np.array(found, np.int64) * unit
    return offsets


def _fit_part(
    problem: Problem, capacity: int, clock: Clock, guesses: list[Guess], rng: random.Random
) -> list[int] | None:
    """Search a connected problem; move the guess that was right to the front."""
    load = problem.load.tolist()
    weights = [1.0] * len(load)
    bundles = singles(problem)
    step = 0
    while True:
        step += 1
        for guess in tuple(guesses):
            if clock.expired:
                return None
            order = _order(merge(bundles, guess.merge, rng), guess.priority, load, rng)
            task = _task(order, len(load), capacity, reverse=guess.reverse)
            if guess.reverse:
                weights.reverse()
            tree = Tree(task, weights, lazy=guess.lazy)
            outcome = tree.search(EFFORT * luby(step) * len(order), clock)
            if guess.reverse:
                weights.reverse()
            if outcome is Outcome.FOUND:
                guesses.remove(guess)
                guesses.insert(0, guess)
                return _spread(order, tree.offsets, len(bundles))
            if outcome is Outcome.EXHAUSTED and guess == COMPLETE:
                raise ProvedInfeasible(
                    f"nothing fits a capacity of {capacity} units: the search was exhausted"
                )


def luby(step: int) -> int:
    """Return the step-th term of 1, 1, 2, 1, 1, 2, 4, 1, ...

    >>> [luby(step) for step in range(1, 16)]
    [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]
    """
    while (step + 1) & step:
        step -= (1 << (step.bit_length() - 1)) - 1
    return (step + 1) >> 1


def _order(bundles: list[Bundle], priority: Priority, load: list[int], rng: random.Random) -> list[Bundle]:
    """Sort bundles by falling priority; equal ones by chance."""

    def key(bundle: Bundle) -> tuple[float, int, float]:
        width = bundle.last - bundle.first
        value = {
            Priority.WIDTH: width,
            Priority.AREA: width * bundle.size,
            Priority.SIZE: bundle.size,
            Priority.LOAD: max(load[bundle.first : bundle.last]),
        }[priority]
        return (-value * (1 + SHAKE * (rng.random() - 0.5)), -bundle.size, rng.random())

    return sorted(bundles, key=key)


def _task(order: list[Bundle], sections: int, capacity: int, *, reverse: bool) -> Task:
    """Lay bundles out for a tree, backwards in time where asked."""
    first = [bundle.first for bundle in order]
    last = [bundle.last for bundle in order]
    if reverse:
        first, last = [sections - end for end in last], [sections - begin for begin in first]
    size, alignment = [bundle.size for bundle in order], [bundle.alignment for bundle in order]
    return Task(first, last, size, alignment, sections, capacity)


def _spread(order: list[Bundle], placed: list[int], count: int) -> list[int]:
    """Return offsets of buffers from those of bundles."""
    offsets = [0] * count
    for bundle, offset in zip(order, placed, strict=True):
        bundle.spread(offset, offsets)
    return offsets
