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

from smartpool.planner.search.instance import Instance
from smartpool.planner.search.limits import Limits, ProvedInfeasible
from smartpool.planner.search.merging import Bundle, Merge, merge, singles
from smartpool.planner.search.tree import Outcome, Task, Tree

NODES_EACH: Final = 3  # nodes of the smallest tree, for each of its bundles
SHAKE: Final = 0.1  # how much a key varies from the second round on


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


GUESSES: Final = (
    *(
        Guess(priority, reverse, how, lazy=True)
        for priority, reverse, how in product(Priority, (False, True), (Merge.CHAINS, Merge.ALL))
    ),
    *(
        Guess(priority, reverse, Merge.STACKS, lazy=True)
        for priority, reverse in product(Priority, (False, True))
    ),
    Guess(Priority.WIDTH, reverse=False, merge=Merge.NONE, lazy=False),
)


def search_instance(
    instance: Instance, capacity: int, limits: Limits, seed: int, *, nodes: int | None = None
) -> list[int] | None:
    """Find offsets in granules for every buffer of the instance, or None when the limits end it.

    Parameters
    ----------
    capacity
        In granules.
    nodes
        Give up after so many nodes of all trees together. Unlike time, a bound that repeats itself.

    Raises
    ------
    ProvedInfeasible
        When no offsets fit.
    """
    if not instance.size.size:
        return []
    load = instance.load.tolist()
    if max(load) > capacity:
        raise ProvedInfeasible(
            f"the load is {max(load) * instance.unit} bytes, the capacity {capacity * instance.unit}"
        )
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    weights = [1.0] * instance.sections
    bundles = singles(instance)
    left = nodes if nodes is not None else 1 << 62
    for guess, budget in _schedule(rng):
        if left <= 0 or limits.expired():
            return None
        order = _order(merge(bundles, guess.merge, rng), guess.priority, load, rng)
        task = _task(order, instance.sections, capacity, reverse=guess.reverse)
        if guess.reverse:
            weights.reverse()
        tree = Tree(task, weights, lazy=guess.lazy)
        outcome = tree.search(min(left, budget * len(order)), limits)
        left -= tree.nodes
        if guess.reverse:
            weights.reverse()
        if outcome is Outcome.FOUND:
            return _spread(order, tree.offsets, len(bundles))
        if outcome is Outcome.EXHAUSTED and guess.merge is Merge.NONE and not guess.lazy:
            raise ProvedInfeasible(
                f"no offsets fit {capacity * instance.unit} bytes: the search was exhausted"
            )
    return None


def _schedule(rng: random.Random) -> Iterator[tuple[Guess, int]]:
    """Yield guesses, in a random order, with the nodes that each may use for a bundle."""
    guesses = list(GUESSES)
    rng.shuffle(guesses)
    for step in count(1):
        for guess in guesses:
            yield guess, NODES_EACH * luby(step)


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
