"""Ever better plans of one part: which solver comes next, and with how much time.

Problem: no solver is best everywhere. Sweeps answer in microseconds an interval and are often exact;
the search is exact and knows no limit of time; repeated steps want windows.

Method: a part's plans come from a generator. The cheap solvers go first; then rounds with a geometrically
growing slice of time, in which each stronger solver gets its turn, so that the time lost on a solver that
fails is a constant factor of the time that the right one takes (the argument of Luby, Sinclair and
Zuckerman, "Optimal speedup of Las Vegas algorithms", 1993). In every round the search is asked for the
goal, then for a little more, up to what is known already: 0.05 % above the load is often easy where
the load itself is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from smartpool.planner.clock import Clock, OutOfTime
from smartpool.planner.core import around, solve_core, touches
from smartpool.planner.decompose import decompose
from smartpool.planner.eject import repair
from smartpool.planner.gap_index import Side
from smartpool.planner.intervals import FREE
from smartpool.planner.problem import Problem
from smartpool.planner.racing import Racer, race
from smartpool.planner.search import ProvedInfeasible, fit
from smartpool.planner.sweep_fit import STACKINGS, WAYS, outward
from smartpool.planner.sweeps import Int64s
from smartpool.planner.windows import cuts_between_peaks, window_rows, windows

__all__ = ["enter"]

RELAX: Final = (0.0, 0.0005, 0.004, 0.02, 0.08)
"""By how much the goal is missed on purpose, when it cannot be met in the time."""

SLICE_S: Final = 1.0
"""Of one search in the first round; each further round has `GROWTH` times as much."""

SLICE_S_EACH: Final = 4e-6
"""And at least this for each interval: a sweep costs half of it."""

LARGE: Final = 200_000
"""In parts of more intervals a sweep of all of them costs seconds."""

QUICK: Final = 2000
"""Parts of at most so many intervals are swept with every stacking at once."""

GROWTH: Final = 3.0

WHOLE: Final = 600
"""Parts of at most so many intervals are given to the search whole, before any core of them."""

FLAT: Final = 3.0
"""Slices of the search for a part whose load never falls: sweeps and cores can do nothing for it."""

EJECTION: Final = 10.0
"""Slices for ejection in a round: it makes many small gains."""

MENDING_S: Final = 2.0
"""For the repair of one sweep of a window."""

WINDOWS: Final = 20.0
"""Slices for all windows together."""

CROWDED: Final = 1000
"""With more live at once, on average, clusters are so wide that a plain sweep goes first."""

CLUSTERS: Final = 0.6
"""Of the time that is left, for clusters and the sweeps around them: enough remains for a plain sweep."""

RACING: Final = 0.4
"""Of that, for the clusters before the rest is placed around them."""

HOT: Final = 0.04
"""What is within this share of the largest load is hot, or within what was wasted, if less."""

MANY_CUTS: Final = 8
"""With so many deep valleys a large part is a series of steps."""

LEVELS: Final = 10
"""Rounds, of which the last has a slice of hours: what ends the race of a small part without a proof."""

NOISY: Final = 8
"""Perturbed stackings a round."""


def enter(problem: Problem, base: int, goal: int, clock: Clock, *, seed: int, depth: int = 0) -> Racer:
    """Return a racer with all its attempts before it.

    Parameters
    ----------
    problem, base, goal
        As in `Racer`.
    clock
        When its attempts end.
    seed
        Of whatever is random in them.
    depth
        0 for parts of the whole; parts of parts are not divided again.
    """
    racer = Racer(problem, base, goal)
    racer.attempts = _attempts(racer, clock, seed, depth)
    return racer


def _attempts(racer: Racer, clock: Clock, seed: int, depth: int) -> Iterator[None]:
    """Try one thing at each step; the racer keeps what is better."""
    problem = racer.problem
    rng = np.random.default_rng(seed)
    seconds = max(SLICE_S, SLICE_S_EACH * len(problem))
    cuts = cuts_between_peaks(problem.load) if depth == 0 else np.zeros(0, np.int64)
    large = len(problem) > LARGE
    try:
        live = int((problem.last - problem.first).sum()) // len(problem.load)
        if large and live <= CROWDED:
            # A sweep of all of it costs seconds, and what is swept around clusters or in windows is better.
            yield from _by_hot_clusters(racer, clock, WINDOWS * seconds, seed)
            if racer.offsets is None and len(cuts) >= MANY_CUTS:
                yield from _by_windows(racer, cuts, clock, WINDOWS * seconds, seed)
        if racer.offsets is None or len(problem) <= QUICK:
            yield from _by_sweeps(racer, WAYS if WHOLE < len(problem) <= QUICK else WAYS[:1], clock)
        if depth and len(problem) > QUICK:
            yield from _by_mended_sweeps(racer, clock)
        for level in range(LEVELS):
            if racer.height <= racer.bound:
                return
            passes, chance = 6 + 2 * level, int(rng.integers(1 << 30))
            search = _by_search(racer, RELAX[:1], clock, seconds, chance)
            ejection = _by_ejection(racer, clock, EJECTION * seconds, passes)
            inside = _by_windows(racer, cuts, clock, WINDOWS * seconds, chance)
            clusters = _by_hot_clusters(racer, clock, WINDOWS * seconds, chance)
            for step in (
                (clusters, inside, ejection, search) if large else (search, clusters, ejection, inside)
            ):
                yield from step
            yield from _by_search(racer, RELAX[1:], clock, seconds, chance)
            yield from _by_chance(racer, clock.slice(seconds), rng)
            seconds *= GROWTH
    except OutOfTime:
        return


def _by_sweeps(racer: Racer, ways: Sequence[tuple[str, Side]], clock: Clock) -> Iterator[None]:
    for stacking, side in ways:
        offsets = outward(racer.problem, stacking=stacking, side=side, clock=clock)
        racer.offer(offsets, "sweep from the peak")
        yield


def _by_mended_sweeps(racer: Racer, clock: Clock) -> Iterator[None]:
    """Sweep in other ways, and repair each: the lowest sweep is seldom the one that is mended best."""
    for stacking, side in WAYS:
        offsets = outward(racer.problem, stacking=stacking, side=side, clock=clock)
        yield from _by_ejection(racer, clock, MENDING_S, 5, offsets)


def _by_hot_clusters(racer: Racer, clock: Clock, seconds: float, seed: int) -> Iterator[None]:
    """Plan all hot stretches of time first, as problems of their own; sweep and mend the rest around them."""
    problem = racer.problem
    if problem.fixed is not None or len(problem) <= QUICK:
        return
    until = clock.part(CLUSTERS, most=seconds)
    share = HOT if racer.offsets is None else min(HOT, (racer.height - racer.goal) / racer.goal)
    hot = problem.load >= (1 - share) * problem.load.max()
    rows = np.flatnonzero(touches(hot, problem.first, problem.last))
    if len(rows) > len(problem) // 4:
        return
    core = np.full(len(problem), FREE)
    parts, placed = decompose(problem.take(rows))
    racing = until.part(RACING, most=seconds / 2)
    racers = [
        enter(part.problem, part.base, racer.goal - part.base, racing, seed=seed, depth=1) for part in parts
    ]
    for _ in race(racers, racing):
        pass
    if any(runner.offsets is None for runner in racers):
        return
    for part, solved in zip(parts, racers, strict=True):
        assert solved.offsets is not None
        for copy in part.copies:
            placed[copy] = part.base + solved.offsets
    core[rows] = placed
    try:
        offsets = around(problem, core, hot, racer.goal, until)
    except OutOfTime:
        clock.check()
        return
    racer.offer(offsets, "hot clusters")
    yield
    yield from _by_ejection(racer, until, seconds, 6, offsets)


def _by_search(
    racer: Racer, relaxed: Sequence[float], clock: Clock, seconds: float, seed: int
) -> Iterator[None]:
    """Ask the search for the goal, or a little more and then more, each for a slice of time."""
    flat = bool((racer.problem.load == racer.problem.load[0]).all())
    if relaxed[0] == 0 and racer.problem.fixed is None and (flat or len(racer.problem) <= WHOLE):
        yield from _by_whole_search(racer, clock, FLAT * seconds if flat else seconds, seed)
        if flat:  # all of it is the core
            return
    for relax in relaxed:
        capacity = racer.goal + int(racer.goal * relax)
        if racer.height <= capacity:
            return
        try:
            for offsets in solve_core(
                racer.problem,
                capacity,
                lambda part, limit: _core(part, limit, clock.slice(seconds), seed),
                clock,
            ):
                racer.offer(offsets, "core and sweeps")
                yield
        except ProvedInfeasible:
            racer.raise_bound(capacity + 1)
        except OutOfTime:
            clock.check()
        yield


def _by_whole_search(racer: Racer, clock: Clock, seconds: float, seed: int) -> Iterator[None]:
    """Search for the goal; once that is proved impossible, halve what is left between bound and height."""
    capacity = racer.goal
    while racer.height > racer.goal:
        try:
            found = fit(racer.problem, capacity, clock.slice(seconds), seed=seed)
        except ProvedInfeasible:
            racer.raise_bound(capacity + 1)
        else:
            if found is None:
                return
            racer.offer(found, "search")
        yield
        capacity = (racer.goal + racer.height - 1) // 2


def _by_ejection(
    racer: Racer, clock: Clock, seconds: float, passes: int, offsets: Int64s | None = None
) -> Iterator[None]:
    """Bring a plan down, the best one by default, step by step: what meets one is the start of the next."""
    if offsets is None:
        assert racer.offsets is not None
        offsets = racer.offsets
    clock = clock.slice(seconds)
    for relax in reversed(RELAX):
        level = racer.goal + int(racer.goal * relax)
        if racer.height <= level:
            continue
        for repaired in repair(racer.problem, offsets, goal=level, clock=clock, rounds=passes):
            offsets = repaired
            racer.offer(offsets, "ejection")
            yield


def _by_windows(racer: Racer, cuts: Int64s, clock: Clock, seconds: float, seed: int) -> Iterator[None]:
    """Place what crosses the cuts, then race the windows between them."""
    problem = racer.problem
    if not len(cuts):
        return
    clock = clock.slice(seconds)
    offsets = np.full(len(problem), FREE) if problem.fixed is None else problem.fixed.copy()
    crossers, _ = window_rows(problem, cuts)
    try:
        if len(crossers):
            offsets[crossers] = outward(
                problem.take(crossers), side=Side.LOW, stacking="lifetime", clock=clock
            )
        inside = windows(problem, cuts, offsets)
        racers = [enter(part, 0, racer.goal, clock, seed=seed, depth=1) for part, _ in inside]
        for _ in race(racers, clock):
            whole = offsets.copy()
            for window, (_, rows) in zip(racers, inside, strict=True):
                if window.offsets is None:
                    return
                whole[rows] = window.offsets
            racer.offer(whole, "windows")
            yield
    except OutOfTime:
        return


def _by_chance(racer: Racer, clock: Clock, rng: np.random.Generator) -> Iterator[None]:
    """Sweep with perturbed stackings."""
    try:
        for _ in range(NOISY):
            stacking, side = WAYS[int(rng.integers(len(WAYS)))]
            ceiling = racer.goal + int((racer.height - racer.goal) * rng.random())
            offsets = outward(
                racer.problem, ceiling=ceiling, stacking=stacking, side=side, noise=rng, clock=clock
            )
            racer.offer(offsets, "perturbed sweep")
            yield
    except OutOfTime:
        return


def _core(problem: Problem, capacity: int, clock: Clock, seed: int) -> Int64s | None:
    """Fit a core: by a sweep if one happens to, else by the search."""
    for stacking, side in WAYS[: len(STACKINGS)]:
        offsets = outward(problem, ceiling=capacity, stacking=stacking, side=side, clock=clock)
        if int((offsets + problem.size).max()) <= capacity:
            return offsets
    return fit(problem, capacity, clock, seed=seed)
