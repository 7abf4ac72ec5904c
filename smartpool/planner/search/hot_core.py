"""The lazy hot core: exact where the load is near its maximum, first fit everywhere else.

Problem: a training step has 10^3 to 10^5 intervals, and the search of this package cannot place them all.
It need not: almost all are live where memory is far from full.

Method: call a section hot, and the buffers that touch a hot section the core. At first only the sections
of maximal load are hot. Fit the core into the target height, at first the load, by exact search. Put
the rest around it by first fit in decreasing size. When a buffer ends above the target, the worst section
that it touches, that of the highest load, becomes hot, and the core is solved anew. So the core grows
where first fit failed and nowhere else: on the public graphs it ends with 1 to 10 % of the buffers.

When the search fails on a core, within a number of nodes or by proof, the target rises to the middle
between what is known to be too low and the best plan; after a success it falls the same way.

Source: our own; it is lazy constraint generation, with first fit in the part of the subproblem's oracle.
Bound: each round costs one search and O(n) first fits, and there are at most as many rounds as sections.
Once there is a plan, a round ends soon after the first buffers that fail: later ones say the same.

Rejected: hot by a fixed share of the load (0.9 takes 20,000 buffers of one instance into the core, 0.99
none that matter of another); all the sections that a failing buffer touches (long ones make
everything hot).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from smartpool.planner.clock import FOREVER, Clock
from smartpool.planner.problem import Problem
from smartpool.planner.search.first_fit import Shelves
from smartpool.planner.search.restarts import CORES, ProvedInfeasible, Restarts
from smartpool.planner.sweeps import Int64s

EFFORT: Final = 5  # nodes of the smallest tree of a search, for each of its bundles
CORE_NODES: Final = 60  # nodes of one search for a core, for each of its buffers
LEAST_NODES: Final = 20_000  # ... and at least so many
FAILURES: Final = 256  # buffers above the target that end a round
MARGIN: Final = 500  # buffers after the first of those that end a round, beside as many as before it
CLOSE: Final = 1e-4  # targets nearer to the best plan than this share of it are not tried
REPAIRS: Final = 0.5  # placements in a round, for each buffer, that may go into changing the order
ATTEMPTS: Final = 20  # orders that are tried for one of them
POLL: Final = 64  # buffers between two looks at the clock


def hot_core(problem: Problem, clock: Clock = FOREVER, *, seed: int = 0) -> Int64s:
    """Plan a large problem, nothing of it fixed, with height equal to its load, or close to it.

    Parameters
    ----------
    clock
        When the best plan so far is returned. Without one the search ends at a height equal to the load, or
        when no target between is left to try.
    seed
        As in `fit`.

    Returns
    -------
    Int64s
        A valid plan, in any case.

    Examples
    --------
    >>> from smartpool.planner.intervals import IntervalSet
    >>> from smartpool.planner.problem import normalize
    >>> offsets = hot_core(normalize(IntervalSet([0, 1, 2], [2, 3, 4], [4, 4, 4])).problem)
    >>> sorted(offsets.tolist()[:2])
    [0, 1]
    """
    target = int(problem.load.max(initial=0))
    offsets = np.zeros(len(problem), dtype=np.int64)
    known: dict[tuple[bytes | None, ...], Int64s] = {}
    # The highest parts first: what they need the others may use as well.
    parts = [(rows, problem.take(rows)) for rows in problem.components()]
    for rows, part in sorted(parts, key=lambda pair: -pair[1].bound):
        key = part.key
        if key not in known:
            scaled, unit = part.in_units()
            planner = _Planner(scaled, clock, seed)
            known[key] = planner.plan(-(-target // unit)) * unit
            target = max(target, planner.best * unit)
        offsets[rows] = known[key]
    return offsets


class _Planner:
    """The best plan so far, what is hot, and the shelves of the present round; in units."""

    __slots__ = (
        "_clock",
        "_hot",
        "_load",
        "_offsets",
        "_order",
        "_problem",
        "_rank",
        "_repairs",
        "_restarts",
        "_shelves",
        "_size",
        "best",
    )

    def __init__(self, problem: Problem, clock: Clock, seed: int) -> None:
        self._problem = problem
        self._clock = clock
        self._restarts = Restarts(CORES, seed, effort=EFFORT)
        self._load = problem.load
        self._hot = self._load == self._load.max()
        self._size = problem.size.tolist()
        self._order = np.lexsort((problem.first - problem.last, -problem.size))
        self._rank = np.argsort(self._order)
        self._repairs = 0
        self._shelves = Shelves(problem)
        self._offsets = np.zeros(0, dtype=np.int64)
        self.best = np.iinfo(np.int64).max

    def plan(self, goal: int) -> Int64s:
        """Try the goal, then the middle between what failed and what was found, until both are close.

        A height below the goal is worth nothing more. It is the load of the highest part of the instance.
        """
        low = target = goal
        while True:
            if not self._reach(target):
                low = target + 1
            if not self._offsets.size:
                self._around(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), target)
            if self.best <= low or self.best - low <= CLOSE * self.best or self._clock.expired:
                return self._offsets
            target = (low + self.best) // 2

    def _reach(self, target: int) -> bool:
        """Grow the core until the rest fits around it below the target; say whether it did."""
        while not self._clock.expired:
            touched = np.concatenate([[0], np.cumsum(self._hot)])
            core = np.flatnonzero(touched[self._problem.last] > touched[self._problem.first])
            placed = self._fit(core, target)
            if placed is None:
                return False
            failures = self._around(core, placed, target)
            if not failures:
                return True
            self._heat(failures)
        return False

    def _fit(self, core: Int64s, target: int) -> Int64s | None:
        """Return offsets of the core below the target, or None."""
        nodes = max(LEAST_NODES, CORE_NODES * len(core))
        try:
            return self._restarts.search(self._problem.take(core), target, self._clock, nodes=nodes)
        except ProvedInfeasible:
            return None

    def _around(self, core: Int64s, placed: Int64s, target: int) -> list[int]:
        """Place the rest by first fit, keep the plan if it is the best, and return what ended too high.

        While there is no plan at all the round is finished, if need be without looking for gaps.
        """
        shelves = self._shelves
        shelves.clear()
        for index, offset in zip(core.tolist(), placed.tolist(), strict=True):
            shelves.place(index, offset)
        fixed = np.zeros(len(self._size), dtype=np.bool_)
        fixed[core] = True
        waiting = self._order[~fixed[self._order]]
        failures: list[int] = []
        until = len(waiting)
        self._repairs = int(REPAIRS * len(self._size))
        for number, index in enumerate(waiting.tolist()):
            if number >= until and self._offsets.size:
                return failures
            if number % POLL == 0 and self._clock.expired:
                if not self._offsets.size:
                    self._on_top(waiting[number:])
                return [*failures, index]
            offset = shelves.lowest(index)
            shelves.place(index, offset)
            if offset + self._size[index] > target and not self._repair(index, fixed, target):
                failures.append(index)
                until = min(until, number if len(failures) >= FAILURES else MARGIN + 2 * number)
        self._keep()
        return failures

    def _repair(self, index: int, fixed: np.ndarray, target: int) -> bool:
        """Bring a buffer below the target by placing it before those beside it; say whether it worked.

        Whatever then ends too high goes to the front in its turn, a few times.
        """
        shelves = self._shelves
        if self._repairs <= 0:
            return False
        shelves.remove(index)
        beside = shelves.placed_beside(index)
        movable = beside[~fixed[beside]]
        queue = [index, *movable[np.argsort(self._rank[movable])].tolist()]
        before = shelves.low[movable].tolist()
        for _ in range(ATTEMPTS):
            for each in queue:
                shelves.remove(each)
            failed = self._fill(queue, target)
            self._repairs -= len(queue) if failed < 0 else failed + 1
            if failed < 0:
                return True
            queue.insert(0, queue.pop(failed))
        for each in queue:
            shelves.remove(each)
        for each, offset in zip(movable.tolist(), before, strict=True):
            shelves.place(each, offset)
        shelves.place(index, shelves.lowest(index))
        return False

    def _fill(self, queue: list[int], target: int) -> int:
        """Place buffers in this order; return -1, or the position of one that ends above the target."""
        for position, index in enumerate(queue):
            offset = self._shelves.lowest(index)
            if offset + self._size[index] > target:
                return position
            self._shelves.place(index, offset)
        return -1

    def _keep(self) -> None:
        """Keep the present plan if it is lower than the best so far."""
        height = int((self._shelves.low + self._problem.size).max())
        if height < self.best:
            self.best, self._offsets = height, self._shelves.low.copy()

    def _on_top(self, rest: Int64s) -> None:
        """Place the rest above the skyline of what is placed, and keep that: quick, valid, and high."""
        problem, shelves = self._problem, self._shelves
        skyline = np.zeros(len(problem.load), dtype=np.int64)
        late = np.zeros(len(self._size), dtype=np.bool_)
        late[rest] = True
        for index in np.flatnonzero(~late).tolist():
            covered = skyline[problem.first[index] : problem.last[index]]
            np.maximum(covered, shelves.low[index] + self._size[index], out=covered)
        for index in rest.tolist():
            covered = skyline[problem.first[index] : problem.last[index]]
            offset = int(covered.max())
            offset += -offset % int(problem.alignments[index])
            shelves.place(index, offset)
            covered[:] = offset + self._size[index]
        self._keep()

    def _heat(self, failures: list[int]) -> None:
        """For each buffer, the highest first, that does not touch a hot section: heat its worst one."""
        failures.sort(key=lambda index: -int(self._shelves.low[index]) - self._size[index])
        for index in failures:
            part = slice(int(self._problem.first[index]), int(self._problem.last[index]))
            if not self._hot[part].any():
                self._hot[part.start + int(self._load[part].argmax())] = True
