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
A round ends after `FAILURES` buffers above the target: later ones would only say the same.

Rejected: hot by a fixed share of the load (0.9 takes 20,000 buffers of one instance into the core, 0.99
none that matter of another); all the sections that a failing buffer touches (long ones make
everything hot).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from smartpool.planner.search.first_fit import Shelves
from smartpool.planner.search.instance import Instance
from smartpool.planner.search.limits import Limits, ProvedInfeasible
from smartpool.planner.search.restarts import search_instance
from smartpool.planner.sweeps import Int64s

CORE_NODES: Final = 60  # nodes of one search for a core, for each of its buffers
LEAST_NODES: Final = 20_000  # ... and at least so many
FAILURES: Final = 16  # buffers above the target that end a round
CLOSE: Final = 1e-4  # targets nearer to the best plan than this share of it are not tried
POLL: Final = 64  # buffers between two looks at the clock


def hot_core(
    start: Int64s,
    end: Int64s,
    size: Int64s,
    *,
    alignment: Int64s | None = None,
    deadline: float | None = None,
    seed: int = 0,
    stop: Callable[[], bool] | None = None,
) -> tuple[Int64s, int]:
    """Plan a large instance with height equal to its load, or close to it.

    Parameters
    ----------
    start, end, size, alignment
        As in `fit`.
    deadline
        A value of `time.monotonic`; the best plan so far is returned. Without one the search ends at a
        height equal to the load, or when no target between is left to try.
    seed, stop
        As in `fit`.

    Returns
    -------
    offsets, height
        A valid plan in bytes, in any case.

    Examples
    --------
    >>> import numpy as np
    >>> offsets, height = hot_core(np.array([0, 1, 2]), np.array([2, 3, 4]), np.array([4, 4, 4]))
    >>> offsets.tolist(), height
    ([0, 4, 0], 8)
    """
    instance = Instance.compress(start, end, size, alignment)
    if not instance.size.size:
        return np.zeros(len(size), dtype=np.int64), 0
    planner = _Planner(instance, Limits(deadline, stop), seed)
    offsets = planner.plan()
    return instance.to_bytes(offsets.tolist(), len(size)), planner.best * instance.unit


class _Planner:
    """The best plan so far, the target, and what is hot; in granules."""

    __slots__ = ("_hot", "_instance", "_limits", "_load", "_offsets", "_order", "_rows", "_seed", "best")

    def __init__(self, instance: Instance, limits: Limits, seed: int) -> None:
        self._instance = instance
        self._limits = limits
        self._seed = seed
        self._load = instance.load
        self._hot = self._load == self._load.max()
        width = instance.last - instance.first
        self._order = np.lexsort((-width, -instance.size))
        self._rows = list(
            zip(
                instance.first.tolist(),
                instance.last.tolist(),
                instance.size.tolist(),
                instance.alignment.tolist(),
                strict=True,
            )
        )
        self._offsets = np.zeros(0, dtype=np.int64)
        self.best = np.iinfo(np.int64).max

    def plan(self) -> Int64s:
        """Try the load, then the middle between what failed and what was found, until both are close."""
        low = target = int(self._load.max())
        while True:
            if not self._reach(target):
                low = target + 1
            if not self._offsets.size:
                self._around(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), target)
            if self.best <= low or self.best - low <= CLOSE * self.best or self._limits.expired():
                return self._offsets
            target = (low + self.best) // 2

    def _reach(self, target: int) -> bool:
        """Grow the core until the rest fits around it below the target; say whether it did."""
        while not self._limits.expired():
            touched = np.concatenate([[0], np.cumsum(self._hot)])
            core = np.flatnonzero(touched[self._instance.last] > touched[self._instance.first])
            placed = self._fit(core, target)
            if placed is None:
                return False
            failures = self._around(core, placed, target)
            if not failures:
                return True
            for index in failures:
                self._heat(index)
        return False

    def _fit(self, core: Int64s, target: int) -> Int64s | None:
        """Return offsets of the core below the target, or None."""
        part = self._instance.select(core)
        grain = part.unit // self._instance.unit
        nodes = max(LEAST_NODES, CORE_NODES * len(core))
        try:
            found = search_instance(part, target // grain, self._limits, self._seed, nodes=nodes)
        except ProvedInfeasible:
            return None
        return None if found is None else np.array(found, dtype=np.int64) * grain

    def _around(self, core: Int64s, placed: Int64s, target: int) -> list[int]:
        """Place the rest by first fit, keep the plan if it is the best, and return what ended too high.

        While there is no plan at all the round is finished, if need be without looking for gaps.
        """
        instance = self._instance
        offsets = np.zeros(len(self._rows), dtype=np.int64)
        offsets[core] = placed
        rows = np.stack([instance.first, instance.last, offsets, offsets + instance.size], axis=1)
        shelves = Shelves.holding(instance.sections, len(self._rows), rows[core])
        inside = np.zeros(len(self._rows), dtype=np.bool_)
        inside[core] = True
        waiting = self._order[~inside[self._order]]
        failures: list[int] = []
        for number, index in enumerate(waiting.tolist()):
            if len(failures) >= FAILURES and self._offsets.size:
                return failures
            if number % POLL == 0 and self._limits.expired():
                if not self._offsets.size:
                    self._keep(self._on_top(offsets, waiting[number:]))
                return [*failures, index]
            first, last, size, alignment = self._rows[index]
            offset = shelves.lowest(first, last, size, alignment)
            shelves.add(first, last, offset, offset + size)
            offsets[index] = offset
            if offset + size > target:
                failures.append(index)
        self._keep(offsets)
        return failures

    def _keep(self, offsets: Int64s) -> None:
        """Keep a plan if it is lower than the best so far."""
        height = int((offsets + self._instance.size).max())
        if height < self.best:
            self.best, self._offsets = height, offsets

    def _on_top(self, offsets: Int64s, rest: Int64s) -> Int64s:
        """Place the rest above the skyline of what is placed: quick, valid, and high."""
        skyline = np.zeros(self._instance.sections, dtype=np.int64)
        late = np.zeros(len(self._rows), dtype=np.bool_)
        late[rest] = True
        for index in np.flatnonzero(~late).tolist():
            first, last, size, _ = self._rows[index]
            np.maximum(skyline[first:last], offsets[index] + size, out=skyline[first:last])
        for index in rest.tolist():
            first, last, size, alignment = self._rows[index]
            floor = int(skyline[first:last].max())
            offsets[index] = floor + -floor % alignment
            skyline[first:last] = offsets[index] + size
        return offsets

    def _heat(self, index: int) -> None:
        """Make the section of the highest load hot that a buffer touches and that is not hot yet."""
        first, last, _, _ = self._rows[index]
        load = np.where(self._hot[first:last], -1, self._load[first:last])
        self._hot[first + int(load.argmax())] = True
