"""Restarts over guesses: fit buffers into a capacity.

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
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import count, product
from typing import Final

import numpy as np

from smartpool.errors import SmartPoolError
from smartpool.planner.clock import Clock
from smartpool.planner.problem import Problem
from smartpool.planner.search.merging import Bundle, Merge, merge, singles
from smartpool.planner.search.skyline import Task
from smartpool.planner.search.tree import Outcome, Tree
from smartpool.planner.sweeps import Int64s

NO_END: Final = 1 << 62  # nodes
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


def _guesses(merges: tuple[Merge, ...], *, lazy: tuple[bool, ...]) -> list[Guess]:
    return [
        Guess(priority, reverse, how, each)
        for priority, reverse, how, each in product(Priority, (False, True), merges, lazy)
    ]


COMPLETE: Final = Guess(Priority.WIDTH, reverse=False, merge=Merge.NONE, lazy=False)
HARD: Final = (
    _guesses((Merge.ALL,), lazy=(False,)),
    _guesses((Merge.ALL,), lazy=(True,)),
    _guesses((Merge.QUIET,), lazy=(False,)),
    _guesses((Merge.QUIET,), lazy=(True,)),
    _guesses((Merge.QUIET,), lazy=(False,)),
    [*_guesses((Merge.STACKS,), lazy=(False,)), COMPLETE],
)
"""The quick ones first. Each tree on `QUIET` sees other bundles, so most trees are such."""

_CORES: Final = [
    guess
    for guess in _guesses((Merge.STACKS, Merge.ALL), lazy=(True, False))
    if guess.priority in {Priority.SIZE, Priority.AREA}
]
CORES: Final = (
    [guess for guess in _CORES if not guess.lazy],
    [*(guess for guess in _CORES if guess.lazy), COMPLETE],
)
"""For the cores of real instances: tight in a few places, with slack around them."""


class Restarts:
    """Searches that remember which guess was right.

    Parameters
    ----------
    tiers
        The guesses of a round; those of a tier are tried in random order, before those of the next.
    seed
        The same seed visits the same nodes.
    effort
        Nodes of the smallest tree, for each of its bundles.
    """

    __slots__ = ("_effort", "_guesses", "_rng")

    def __init__(self, tiers: tuple[list[Guess], ...], seed: int, *, effort: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - not for secrets
        self._guesses = [guess for tier in tiers for guess in self._rng.sample(tier, len(tier))]
        self._effort = effort

    def search(self, problem: Problem, capacity: int, clock: Clock, *, nodes: int = NO_END) -> Int64s | None:
        """Find offsets for every interval of a problem without fixed ones, or None when something ended it.

        Parts that no interval connects are solved one after another, equal ones once.

        Parameters
        ----------
        nodes
            Give up after so many nodes of all trees together. Unlike time, a bound that repeats itself.

        Raises
        ------
        ProvedInfeasible
            When no offsets fit.
        """
        load = int(problem.load.max(initial=0))
        if load > capacity:
            raise ProvedInfeasible(f"the load is {load} units, the capacity {capacity}")
        offsets = np.zeros(len(problem), dtype=np.int64)
        known: dict[tuple[bytes | None, ...], Int64s] = {}
        for rows in problem.components():
            part = problem.take(rows)
            key = part.key
            if key not in known:
                scaled, unit = part.in_units()
                found, spent = self._search_part(scaled, capacity // unit, clock, nodes)
                nodes -= spent
                if found is None:
                    return None
                known[key] = np.array(found, dtype=np.int64) * unit
            offsets[rows] = known[key]
        return offsets

    def _search_part(
        self, problem: Problem, capacity: int, clock: Clock, nodes: int
    ) -> tuple[list[int] | None, int]:
        """Search a connected problem; return the offsets, or None, and the nodes spent."""
        load = problem.load.tolist()
        weights = [1.0] * len(load)
        bundles = singles(problem)
        spent = 0
        for guess, budget in self._schedule():
            if spent >= nodes or clock.expired:
                break
            order = _order(merge(bundles, guess.merge, self._rng), guess.priority, load, self._rng)
            task = _task(order, len(load), capacity, reverse=guess.reverse)
            if guess.reverse:
                weights.reverse()
            tree = Tree(task, weights, lazy=guess.lazy)
            outcome = tree.search(min(nodes - spent, budget * len(order)), clock)
            spent += tree.nodes
            if guess.reverse:
                weights.reverse()
            if outcome is Outcome.FOUND:
                self._guesses.remove(guess)
                self._guesses.insert(0, guess)
                return _spread(order, tree.offsets, len(bundles)), spent
            if outcome is Outcome.EXHAUSTED and guess == COMPLETE:
                raise ProvedInfeasible(
                    f"nothing fits a capacity of {capacity} units: the search was exhausted"
                )
        return None, spent

    def _schedule(self) -> Iterator[tuple[Guess, int]]:
        """Yield guesses with the nodes that each may use for a bundle."""
        for step in count(1):
            for guess in tuple(self._guesses):
                yield guess, self._effort * luby(step)


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
