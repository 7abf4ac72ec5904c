"""Each solver by itself: valid plans, what it keeps, and what it promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.planner import IntervalSet, color_by_weight, validate
from smartpool.planner.clock import Clock, OutOfTime
from smartpool.planner.core import around, solve_core
from smartpool.planner.decompose import decompose
from smartpool.planner.eject import repair
from smartpool.planner.gap_index import Side
from smartpool.planner.intervals import FREE
from smartpool.planner.problem import normalize
from smartpool.planner.size_classes import color_classes
from smartpool.planner.sweep_fit import EVENTS_AT_ONCE, STACKINGS, WAYS, outward
from smartpool.planner.windows import cuts_between_peaks, window_rows, windows

CLOCK = Clock()


@st.composite
def interval_sets(draw, *, most=25, horizon=20, largest=12):
    count = draw(st.integers(0, most))
    start = [draw(st.integers(0, horizon - 1)) for _ in range(count)]
    end = [draw(st.integers(begin + 1, horizon)) for begin in start]
    size = draw(st.lists(st.integers(1, largest), min_size=count, max_size=count))
    alignment = None
    if draw(st.booleans()):
        alignment = [draw(st.sampled_from([1, 2, 4, 8])) for _ in range(count)]
    held = [-1] * count
    top = 0
    if count and draw(st.booleans()):
        for row in draw(st.sets(st.integers(0, count - 1), max_size=4)):
            step = alignment[row] if alignment else 1
            top = held[row] = (top + step - 1) // step * step
            top += size[row] + draw(st.integers(0, 4))
    return IntervalSet.from_arrays(start, end, size, alignment=alignment, fixed=held)


def checked(intervals, normalized, offsets):
    """Return the height in the solvers' units, after validating."""
    height = validate(intervals, normalized.expand(offsets, intervals))
    assert height % normalized.unit == 0
    return height // normalized.unit


def random_problem(seed, count=300, live=20):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 10 * count, count)
    intervals = IntervalSet.from_arrays(
        start, start + rng.integers(1, 20 * live, count), rng.integers(1, 1000, count)
    )
    return intervals, normalize(intervals)


@given(interval_sets())
def test_size_classes_are_valid(intervals):
    normalized = normalize(intervals)
    checked(intervals, normalized, color_classes(normalized.problem))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), min_size=1, max_size=60))
def test_one_size_is_colored_exactly(lifetimes):
    start, life = np.array(lifetimes, np.int64).T
    intervals = IntervalSet.from_arrays(start, start + life, np.full(len(start), 7))
    normalized = normalize(intervals)
    assert checked(intervals, normalized, color_classes(normalized.problem)) == normalized.problem.bound


@given(interval_sets(), st.sampled_from(WAYS), st.integers(0, 40))
@settings(max_examples=200)
def test_sweeps_are_valid_under_any_ceiling(intervals, way, ceiling):
    normalized = normalize(intervals)
    stacking, side = way
    offsets = (
        outward(normalized.problem, ceiling=ceiling, stacking=stacking, side=side)
        if len(normalized.problem)
        else np.zeros(0, np.int64)
    )
    checked(intervals, normalized, offsets)


@given(interval_sets())
def test_a_sweep_is_exact_at_the_peak(intervals):
    normalized = normalize(intervals.without_fixed())
    problem = normalized.problem
    if not len(problem) or problem.alignment is not None:
        return
    offsets = outward(problem)
    peak = int(problem.load.argmax())
    live = (problem.first <= peak) & (problem.last > peak)
    assert (offsets + problem.size)[live].max() == problem.bound


def test_a_sweep_gives_up_when_time_is_over():
    _, normalized = random_problem(0, count=EVENTS_AT_ONCE)
    with pytest.raises(OutOfTime):
        outward(normalized.problem, clock=Clock(stop=lambda: True))


@given(interval_sets(), st.data())
def test_the_rest_goes_around_a_core(intervals, data):
    normalized = normalize(intervals.without_fixed())
    problem = normalized.problem
    if not len(problem):
        return
    hot = np.array(data.draw(st.lists(st.booleans(), min_size=len(problem.load), max_size=len(problem.load))))
    so_far = np.concatenate([[0], np.cumsum(hot)])
    core_rows = np.flatnonzero(so_far[problem.last] > so_far[problem.first])
    core = np.full(len(problem), FREE)
    if len(core_rows):
        core[core_rows] = outward(problem.take(core_rows))
    offsets = around(problem, core, hot, problem.bound, CLOCK)
    assert np.array_equal(offsets[core_rows], core[core_rows])
    checked(intervals.without_fixed(), normalized, offsets)


@given(interval_sets())
def test_a_lazy_core_is_valid_with_any_solver_for_it(intervals):
    normalized = normalize(intervals)
    if not len(normalized.problem):
        return
    plans = solve_core(normalized.problem, normalized.problem.bound, lambda part, _: outward(part), CLOCK)
    for offsets in itertools.islice(plans, 20):
        checked(intervals, normalized, offsets)


@given(interval_sets(), st.floats(0, 1))
def test_ejection_is_valid_and_never_adds_to_what_is_too_high(intervals, share):
    normalized = normalize(intervals)
    problem = normalized.problem
    if not len(problem):
        return
    offsets = color_classes(problem)
    height = int((offsets + problem.size).max())
    goal = problem.bound + int(share * (height - problem.bound))
    for repaired in repair(problem, offsets, goal=goal, clock=CLOCK, rounds=3):
        assert checked(intervals, normalized, repaired) <= height


def test_ejection_brings_random_instances_near_their_load():
    intervals, normalized = random_problem(3, count=800, live=20)
    problem = normalized.problem
    offsets = outward(problem, stacking="start", side=Side.LOW)
    goal = int(problem.bound * 1.03)
    assert checked(intervals, normalized, offsets) > goal
    *_, repaired = repair(problem, offsets, goal=goal, clock=CLOCK)
    over, still = ((plan + problem.size > goal).sum() for plan in (offsets, repaired))
    assert checked(intervals, normalized, repaired) <= goal or still < over / 2


@given(interval_sets())
def test_parts_put_together_are_the_whole(intervals):
    normalized = normalize(intervals)
    parts, offsets = decompose(normalized.problem)
    for part in parts:
        for rows in part.copies:
            offsets[rows] = part.base + outward(part.problem)
    checked(intervals, normalized, offsets)


def test_equal_repetitions_are_one_part():
    intervals, _ = random_problem(1, count=50, live=5)
    span = int(intervals.end.max())
    repeated = IntervalSet.from_arrays(
        np.concatenate([intervals.start + at * span for at in range(4)]),
        np.concatenate([intervals.end + at * span for at in range(4)]),
        np.tile(intervals.size, 4),
    )
    parts, _ = decompose(normalize(repeated).problem)
    assert all(len(part.copies) == 4 for part in parts)


@given(interval_sets(), st.sets(st.integers(0, 18), max_size=4))
def test_windows_are_independent(intervals, cut):
    intervals = intervals.without_fixed()
    normalized = normalize(intervals)
    problem = normalized.problem
    cuts = np.array(sorted(at for at in cut if at < len(problem.load)), np.int64)
    crossers, inside = window_rows(problem, cuts)
    assert sorted([*crossers.tolist(), *(row for rows in inside for row in rows.tolist())]) == list(
        range(len(problem))
    )
    offsets = np.full(len(problem), FREE)
    if len(crossers):
        offsets[crossers] = outward(problem.take(crossers))
    for window, rows in windows(problem, cuts, offsets):
        placed = outward(window)
        assert np.array_equal(placed[offsets[rows] != FREE], offsets[rows][offsets[rows] != FREE])
        offsets[rows] = placed
    checked(intervals, normalized, offsets)


@given(st.lists(st.integers(1, 100), max_size=40))
def test_cuts_lie_in_valleys(load):
    load = np.array(load, np.int64)
    cuts = cuts_between_peaks(load, peak=0.8, prominence=0.5).tolist()
    edges = [0, *cuts, len(load)]
    for at, (begin, end) in zip(cuts, itertools.pairwise(edges), strict=False):
        assert load[at] <= load[begin:end].max() / 2
        assert load[begin:end].max() >= 0.8 * load.max()


@given(interval_sets())
def test_coloring_by_weight_is_valid_and_puts_the_first_at_the_bottom(intervals):
    result = color_by_weight(intervals)
    assert validate(intervals, result.offsets) == result.height
    if len(intervals) and (intervals.fixed == FREE).all():
        assert 0 in result.offsets[intervals.size == intervals.size.max()]


def test_every_stacking_is_known():
    assert {stacking for stacking, _ in WAYS} == set(STACKINGS)
