"""`hot_core`: valid in any case, equal to the load where that is possible, repeatable, obedient."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE_S

from smartpool.planner import IntervalSet
from smartpool.planner.clash import find_clash
from smartpool.planner.clock import Clock
from smartpool.planner.problem import normalize
from smartpool.planner.search import fit
from smartpool.planner.search import hot_core as plan_problem


def hot_core(start, end, size, *, alignment=None, deadline=None, stop=None, seed=0):
    """Plan columns of bytes; return offsets and height."""
    intervals = IntervalSet(start, end, size, alignment=alignment)
    normalized = normalize(intervals)
    offsets = plan_problem(normalized.problem, Clock(deadline, stop), seed=seed)
    height = int((offsets + normalized.problem.size).max(initial=0)) * normalized.unit
    return normalized.expand(offsets, intervals), height


def maximum(start, end, size):
    """Return the largest load."""
    return max((int(size[(start <= now) & (end > now)].sum()) for now in np.unique(start)), default=0)


def assert_plan(start, end, size, offsets, height, alignment=None):
    real = (size > 0) & (end > start)
    assert find_clash(start[real], end[real], offsets[real], (offsets + size)[real]) is None
    assert (offsets >= 0).all()
    assert height == int((offsets + size)[real].max(initial=0))
    if alignment is not None:
        assert (offsets % alignment == 0).all()


def like_a_step(seed, count):
    """Return lifetimes as in a training step: nested, a few long, sizes of some classes."""
    rng = np.random.default_rng(seed)
    middle = count // 2
    start = rng.integers(0, count, count)
    mirrored = np.where(start < middle, count - start, start + 1)
    end = np.where(rng.random(count) < 0.4, mirrored, start + rng.integers(1, 6, count))
    end = np.maximum(end, start + 1)
    size = rng.choice([512, 1024, 4096, 65536, 262144, 300032], count)
    return start, end, size


@given(st.integers(0, 2**32), st.integers(1, 60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_plan_is_valid_and_the_same_seed_gives_the_same(seed, count, aligned):
    start, end, size = like_a_step(seed, count)
    alignment = np.where(np.arange(count) % 3 == 0, 2048, 512) if aligned else None
    first, second = (hot_core(start, end, size, alignment=alignment, seed=seed) for _ in range(2))
    assert_plan(start, end, size, *first, alignment)
    assert (first[0] == second[0]).all()
    assert first[1] >= maximum(start, end, size)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_a_thousand_intervals_is_planned_at_its_load(seed):
    start, end, size = like_a_step(seed, 1000)
    offsets, height = hot_core(start, end, size, deadline=time.monotonic() + PATIENCE_S, seed=seed)
    assert_plan(start, end, size, offsets, height)
    assert height == maximum(start, end, size)


def test_above_the_load_when_no_plan_is_that_low():
    start, end = np.array([0, 1, 0, 2, 1, 3, 4, 2, 6]), np.array([1, 2, 3, 3, 4, 6, 6, 7, 7])
    size = np.array([3, 2, 1, 1, 1, 2, 1, 1, 3])
    offsets, height = hot_core(start, end, size)
    assert_plan(start, end, size, offsets, height)
    assert (maximum(start, end, size), height) == (4, 5)
    assert fit(normalize(IntervalSet(start, end, size)).problem, 5) is not None


@pytest.mark.parametrize("late", [{"deadline": 0.0}, {"stop": lambda: True}])
def test_without_time_there_is_a_plan_all_the_same(late):
    start, end, size = like_a_step(1, 500)
    assert_plan(start, end, size, *hot_core(start, end, size, **late))


def test_stopped_in_the_midst_of_first_fit():
    start, end, size = like_a_step(2, 900)
    for patience in (3, 6, 9, 12, 15):
        calls = iter(range(10**9))
        offsets, height = hot_core(start, end, size, stop=lambda: next(calls) > patience)  # noqa: B023
        assert_plan(start, end, size, offsets, height)


def test_nothing_to_plan():
    none = np.zeros(0, dtype=np.int64)
    offsets, height = hot_core(none, none, none)
    assert (offsets.tolist(), height) == ([], 0)
    offsets, height = hot_core(np.array([1, 2]), np.array([1, 4]), np.array([5, 0]))
    assert (offsets.tolist(), height) == ([0, 0], 0)
