"""The planner's front door: one call, the solvers that fit the instance, the best plan in the time.

Method: normalise (`problem`), answer at once (`size_classes`), decompose (`decompose`), then race the parts
(`attempts`) until the height meets the lower bound, the capacity that was asked for, the time limit, or
Ctrl-C. The best plan so far is always at hand, and never gets worse.

What proves a plan optimal: its height is the largest load, or the search has shown for the highest part
that a lower one does not exist.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from smartpool.errors import InvalidRequestError
from smartpool.planner.attempts import enter
from smartpool.planner.clock import Clock, OutOfTime
from smartpool.planner.decompose import Part, decompose
from smartpool.planner.intervals import FREE, LARGEST_TOTAL, IntervalSet
from smartpool.planner.plans import Plan
from smartpool.planner.problem import Normalized, Problem, normalize
from smartpool.planner.racing import Racer, race
from smartpool.planner.resting import improve_resting
from smartpool.planner.size_classes import color_classes
from smartpool.planner.sweeps import Int64s
from smartpool.planner.validate import validate
from smartpool.units import parse_size

__all__ = ["default_time_limit", "plan", "solve"]

AWAKE: Final = 0.3
"""The share of the time for a plan as if nothing rested, where something does."""


def default_time_limit(count: int) -> float:
    """Return the seconds that `plan` takes at most for so many intervals, unless told otherwise."""
    return 10.0 + 50e-6 * count


def plan(
    start: ArrayLike | IntervalSet,
    end: ArrayLike | None = None,
    size: ArrayLike | None = None,
    *,
    alignment: ArrayLike | None = None,
    fixed: ArrayLike | None = None,
    rests: Sequence[Sequence[Sequence[int]]] | None = None,
    capacity: int | str | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    progress: Callable[[Plan], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Plan:
    """Give every interval an offset, so that what is live at once does not overlap.

    Parameters
    ----------
    start, end, size
        Lifetimes, half-open, and bytes; or an `IntervalSet` alone.
    alignment, fixed, rests
        As in `IntervalSet`.
    capacity
        Bytes at hand, as an integer or a size such as ``"80GiB"``: any plan that fits is good enough.
        Without it the aim is the lowest plan.
    time_limit
        Seconds; by default 10, and 50 us for each interval. The best plan so far is returned then.
    seed
        The same seed and input give the same plan, where time does not cut the solvers short.
    progress
        Called with each better plan.
    stop
        Called now and then; once it returns True the best plan so far is returned.

    Returns
    -------
    Plan
        Never worse than what any solver found. Ctrl-C also returns it. With a capacity it says in
        `Plan.fits` whether it fits; one that does not is returned all the same, as a lower one may not exist.

    Raises
    ------
    PlanningError
        When the intervals are malformed; see `IntervalSet`.
    InvalidRequestError
        When another argument is wrong, or missing.

    Notes
    -----
    O(n log n) to the first plan: one to four seconds for a million intervals, ten to a good one.

    Examples
    --------
    >>> result = plan([0, 2, 4], [3, 6, 8], [10, 20, 10])
    >>> result.height, result.offsets.tolist(), result.proved_optimal
    (30, [20, 0, 20], True)
    """
    if isinstance(start, IntervalSet):
        if any(column is not None for column in (end, size, alignment, fixed, rests)):
            raise InvalidRequestError(
                "expected an IntervalSet alone, got columns beside it; put them into it, or pass columns"
            )
        intervals = start
    elif end is None or size is None:
        missing = "end" if end is None else "size"
        hint = "; of rows, pass the columns: plan(*zip(*rows))" if np.ndim(start) == 2 else ""
        raise InvalidRequestError(
            f"expected start, end and size, or an IntervalSet alone, got no {missing}{hint}"
        )
    else:
        intervals = IntervalSet(start, end, size, alignment=alignment, fixed=fixed, rests=rests)
    return solve(intervals, capacity=capacity, time_limit=time_limit, seed=seed, progress=progress, stop=stop)


def solve(
    intervals: IntervalSet,
    *,
    capacity: int | str | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    progress: Callable[[Plan], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Plan:
    """Plan an `IntervalSet`; see `plan`."""
    if isinstance(capacity, str):
        capacity = parse_size(capacity)
    _check_arguments(intervals, capacity, time_limit, seed, progress, stop)
    began = time.perf_counter()
    limit = default_time_limit(len(intervals)) if time_limit is None else time_limit
    clock = Clock.for_seconds(limit, stop)
    awake = intervals.without_rests()
    normalized = normalize(awake)
    best = _Best(awake, normalized, began, progress, capacity)
    problem = normalized.problem
    best.offer(color_classes(problem, most=LARGEST_TOTAL // normalized.unit), "size classes")
    goal = problem.bound if capacity is None else max(problem.bound, capacity // normalized.unit)
    if best.height > problem.bound:
        with suppress(KeyboardInterrupt, OutOfTime):
            _run(problem, best, goal, clock if awake is intervals else clock.part(AWAKE, most=limit), seed)
    found = best.plan()
    return found if awake is intervals else _with_rests(intervals, found, clock, seed, progress)


def _with_rests(
    intervals: IntervalSet, awake: Plan, clock: Clock, seed: int, progress: Callable[[Plan], None] | None
) -> Plan:
    """Bring a plan of intervals as if they never rested down to where their rests allow."""
    began = time.perf_counter() - awake.seconds
    load, fixed = intervals.load, intervals.fixed
    bound = max(load, int(np.where(fixed == FREE, 0, fixed + intervals.size).max(initial=0)))
    found = replace(awake, load=load, proved_optimal=awake.height <= bound)
    with suppress(KeyboardInterrupt):
        goal = max(bound, awake.capacity or 0)
        for offsets in improve_resting(intervals, awake.offsets, goal=goal, clock=clock, seed=seed):
            height = validate(intervals, offsets)
            found = replace(
                found,
                offsets=offsets,
                height=height,
                method="in turn around rests",
                seconds=time.perf_counter() - began,
                proved_optimal=height <= bound,
            )
            if progress is not None:
                progress(found)
    return found


def _check_arguments(  # noqa: PLR0917 - one call
    intervals: object, capacity: object, time_limit: object, seed: object, progress: object, stop: object
) -> None:
    """Raise `InvalidRequestError` for what `plan` and `solve` cannot use."""
    for name, value, good, expected in (
        ("intervals", intervals, isinstance(intervals, IntervalSet), "an IntervalSet"),
        (
            "capacity",
            capacity,
            capacity is None or _is_count(capacity),
            "bytes as an integer of at least 0, or text",
        ),
        ("time_limit", time_limit, time_limit is None or _is_duration(time_limit), "seconds of at least 0"),
        ("seed", seed, _is_count(seed), "an integer of at least 0"),
        ("progress", progress, progress is None or callable(progress), "a function of a Plan"),
        ("stop", stop, stop is None or callable(stop), "a function of no arguments"),
    ):
        if not good:
            raise InvalidRequestError(
                f"{name}: expected {expected}, got {value!r:.80} of type {type(value).__name__}"
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _is_duration(value: object) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and 0 <= value < math.inf  # type: ignore[operator]


def _run(problem: Problem, best: _Best, goal: int, clock: Clock, seed: int) -> None:
    parts, peeled = decompose(problem)
    racers = [enter(part.problem, part.base, goal - part.base, clock, seed=seed) for part in parts]
    if not racers:
        best.offer(peeled, "stack")
        return
    try:
        for _ in race(racers, clock):
            if best.progress is not None:
                _put_together(parts, racers, peeled, best)
    finally:
        # Whatever ended the race, Ctrl-C included: what the parts have reached counts.
        _put_together(parts, racers, peeled, best)


def _put_together(parts: list[Part], racers: list[Racer], peeled: Int64s, best: _Best) -> None:
    if any(racer.offsets is None for racer in racers):
        return
    best.bound = max(racer.base + racer.bound for racer in racers)
    best.offer(_assemble(parts, racers, peeled), max(racers, key=lambda racer: racer.top).method)


def _assemble(parts: list[Part], racers: list[Racer], peeled: Int64s) -> Int64s:
    offsets = peeled.copy()
    for part, racer in zip(parts, racers, strict=True):
        assert racer.offsets is not None
        for rows in part.copies:
            offsets[rows] = part.base + racer.offsets
    return offsets


@dataclass(slots=True, eq=False)
class _Best:
    """The best plan so far, in the solvers' units."""

    intervals: IntervalSet
    normalized: Normalized
    began: float
    progress: Callable[[Plan], None] | None
    capacity: int | None = None
    offsets: Int64s | None = None
    height: int = 0
    method: str = ""
    bound: int = 0

    def offer(self, offsets: Int64s, method: str) -> None:
        """Keep a plan if it is the best so far, and tell."""
        height = int((offsets + self.normalized.problem.size).max(initial=0))
        if self.offsets is not None and height >= self.height:
            return
        self.offsets, self.height, self.method = offsets, height, method
        if self.progress is not None:
            self.progress(self.plan())

    def plan(self) -> Plan:
        """Return the plan in bytes and in the order of the input."""
        assert self.offsets is not None
        unit = self.normalized.unit
        problem = self.normalized.problem
        return Plan(
            offsets=self.normalized.expand(self.offsets, self.intervals),
            height=self.height * unit,
            load=int(problem.load.max(initial=0)) * unit,
            method=self.method,
            seconds=time.perf_counter() - self.began,
            proved_optimal=self.height <= max(self.bound, problem.bound),
            capacity=self.capacity,
        )
