"""The planner as a whole: what must hold of every plan, whatever solver found it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from waiting import PATIENCE_S

from smartpool.errors import PlanningError
from smartpool.planner import IntervalSet, attempts, plan, portfolio, solve, validate


@st.composite
def interval_sets(draw, *, most=10, horizon=10, largest=12, aligned=False, fixed=False, empty=True):
    count = draw(st.integers(0, most))
    start = [draw(st.integers(0, horizon - 1)) for _ in range(count)]
    end = [draw(st.integers(begin if empty else begin + 1, horizon)) for begin in start]
    size = draw(st.lists(st.integers(0 if empty else 1, largest), min_size=count, max_size=count))
    alignment = [draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12])) for _ in range(count)] if aligned else None
    held = None
    if fixed and count:
        # Stacked from a floor, so that no two collide.
        held = [-1] * count
        top = draw(st.integers(0, 5))
        for row in draw(st.sets(st.integers(0, count - 1), max_size=3)):
            step = alignment[row] if alignment else 1
            top = held[row] = (top + step - 1) // step * step
            top += size[row]
    return IntervalSet.from_arrays(start, end, size, alignment=alignment, fixed=held)


def lowest_height(intervals):
    """Try all orders, each interval at the lowest offset that is left: some order gives the optimum."""
    rows = [row for row in range(len(intervals)) if intervals.start[row] < intervals.end[row]]
    best = None
    for order in itertools.permutations(rows):
        placed = []
        for row in order:
            others = sorted(
                (low, high)
                for low, high, other in placed
                if intervals.start[other] < intervals.end[row] and intervals.start[row] < intervals.end[other]
            )
            step, low = int(intervals.alignment[row]), 0
            for other_low, other_high in others:
                if other_low >= low + intervals.size[row]:
                    break
                low = max(low, -(-other_high // step) * step)
            placed.append((low, low + int(intervals.size[row]), row))
        height = max((high for low, high, _ in placed if high > low), default=0)
        best = height if best is None else min(best, height)
    return best or 0


@given(interval_sets(aligned=True, fixed=True))
@settings(max_examples=100)
def test_every_plan_is_valid_and_no_lower_than_the_load(intervals):
    result = solve(intervals, time_limit=0.05)
    assert validate(intervals, result.offsets) == result.height
    assert result.load == intervals.load <= result.height
    assert result.gap >= 0
    if result.height == result.load:
        assert result.proved_optimal


@given(interval_sets(most=5, horizon=6, largest=6))
@settings(max_examples=80)
def test_small_plans_are_as_low_as_brute_force_says(intervals):
    result = solve(intervals, time_limit=PATIENCE_S)
    assert result.height == lowest_height(intervals)
    assert result.proved_optimal


@given(interval_sets(most=4, horizon=5, largest=6, aligned=True))
@settings(max_examples=100)
@example(IntervalSet([0, 0], [1, 1], [3, 3], alignment=4))  # sizes whose divisor is no part of the alignment
def test_small_aligned_plans_are_as_low_as_brute_force_says(intervals):
    result = solve(intervals, time_limit=PATIENCE_S)
    lowest = lowest_height(intervals)
    assert result.height >= lowest
    if result.proved_optimal:
        assert result.height == lowest


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 70), st.integers(0, 62)), max_size=5
    )
)
@settings(max_examples=60)
def test_sizes_and_alignments_of_any_length_are_planned_or_refused(rows):
    start = [begin for begin, _, _, _ in rows]
    end = [begin + life for begin, life, _, _ in rows]
    try:
        intervals = IntervalSet(
            start,
            end,
            [(1 << bits) - 1 if bits < 63 else bits for _, _, bits, _ in rows],
            alignment=[(1 << bits) - (1 if bits > 40 else 0) for *_, bits in rows],
        )
    except PlanningError as error:
        assert "add up to less than 2**62" in str(error)  # noqa: PT017 - most are planned
        return
    result = solve(intervals, time_limit=0.05)
    assert validate(intervals, result.offsets) == result.height


def test_a_plan_above_the_load_is_proved_optimal():
    # The smallest instance of its kind: four intervals whose optimum is above their load.
    start, end, size = [0, 0, 1, 2, 3, 1], [2, 1, 3, 5, 5, 5], [2, 2, 1, 1, 2, 1]
    intervals = IntervalSet.from_arrays(start, end, size)
    result = solve(intervals, time_limit=PATIENCE_S)
    assert result.height == lowest_height(intervals)
    assert result.proved_optimal


@given(interval_sets(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_order_of_the_input_does_not_matter(intervals, random):
    order = list(range(len(intervals)))
    random.shuffle(order)
    shuffled = intervals.take(np.array(order, np.int64))
    result = solve(shuffled, time_limit=PATIENCE_S)
    assert validate(shuffled, result.offsets) == result.height
    assert result.height == solve(intervals, time_limit=PATIENCE_S).height


@given(interval_sets(most=8), st.integers(2, 1000))
@settings(max_examples=60)
def test_scaling_the_sizes_scales_the_plan(intervals, factor):
    scaled = IntervalSet.from_arrays(intervals.start, intervals.end, intervals.size * factor)
    assert (
        solve(scaled, time_limit=PATIENCE_S).height == factor * solve(intervals, time_limit=PATIENCE_S).height
    )


@given(interval_sets(most=7), interval_sets(most=7))
@settings(max_examples=60)
def test_instances_apart_in_time_share_the_memory(one, two):
    both = IntervalSet.from_arrays(
        np.concatenate([one.start, two.start + 100]),
        np.concatenate([one.end, two.end + 100]),
        np.concatenate([one.size, two.size]),
    )
    heights = [solve(part, time_limit=PATIENCE_S).height for part in (one, two)]
    assert solve(both, time_limit=PATIENCE_S).height == max(heights)


@given(interval_sets(most=10), st.integers(0, 3))
@settings(max_examples=40)
def test_plans_only_get_better_and_the_same_seed_gives_the_same(intervals, seed):
    heights = []
    first = solve(
        intervals, seed=seed, time_limit=PATIENCE_S, progress=lambda better: heights.append(better.height)
    )
    again = solve(intervals, seed=seed, time_limit=PATIENCE_S)
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] == first.height
    assert np.array_equal(first.offsets, again.offsets)


@given(interval_sets(empty=False))
@settings(max_examples=40)
def test_a_capacity_that_is_met_ends_the_search(intervals):
    assume(len(intervals))
    roomy = int(intervals.size.sum())
    assert solve(intervals, capacity=roomy, time_limit=PATIENCE_S).height <= roomy


def hard_instance():
    """Return a random instance whose plan nobody has seen proved optimal, or at its load."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, 60, 200)
    return IntervalSet.from_arrays(start, start + rng.integers(1, 30, 200), rng.integers(1, 1000, 200))


def test_a_time_limit_is_obeyed_and_leaves_a_valid_plan():
    intervals = hard_instance()
    result = solve(intervals, time_limit=0.3)
    assert validate(intervals, result.offsets) == result.height
    assert not result.proved_optimal  # or there was nothing to end


def test_no_time_at_all_gives_a_valid_plan():
    intervals = hard_instance()
    result = solve(intervals, time_limit=0.0)
    assert validate(intervals, result.offsets) == result.height


def test_stop_ends_the_search():
    calls = itertools.count()
    result = solve(hard_instance(), time_limit=PATIENCE_S, stop=lambda: next(calls) > 3)
    assert not result.proved_optimal
    assert result.seconds < PATIENCE_S


def test_interrupting_returns_the_best_plan(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(portfolio, "race", interrupted)
    intervals = hard_instance()
    result = solve(intervals)
    assert validate(intervals, result.offsets) == result.height


def test_plan_takes_arrays_or_an_interval_set():
    assert plan([0, 1], [2, 3], [4, 4]).height == plan(IntervalSet.from_arrays([0, 1], [2, 3], [4, 4])).height


def test_plan_says_what_is_wrong():
    with pytest.raises(PlanningError, match="end of at least the start"):
        plan([5], [3], [1])


def test_an_empty_instance_has_an_empty_plan():
    result = plan([], [], [])
    assert (result.height, result.load, result.gap, result.proved_optimal) == (0, 0, 0.0, True)


@pytest.mark.parametrize("seed", range(3))
def test_random_instances_of_some_size_are_planned_well(seed):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 3000, 1500)
    intervals = IntervalSet.from_arrays(
        start, start + rng.integers(1, 60, 1500), rng.integers(1, 1 << 20, 1500)
    )
    result = solve(intervals, time_limit=PATIENCE_S)
    assert validate(intervals, result.offsets) == result.height
    assert result.gap < 0.1


@pytest.mark.parametrize("live", [5, 40])
def test_large_instances_go_by_clusters_or_windows(monkeypatch, live):
    monkeypatch.setattr(attempts, "LARGE", 1000)
    rng = np.random.default_rng(live)
    start = rng.integers(0, 30_000, 6000)
    life = rng.integers(1, 10 * live, 6000)
    intervals = IntervalSet.from_arrays(start, start + life, rng.integers(1, 1 << 20, 6000))
    result = solve(intervals, time_limit=PATIENCE_S)
    assert validate(intervals, result.offsets) == result.height
    assert result.gap < 0.1


def test_steps_that_overlap_go_by_windows(monkeypatch):
    monkeypatch.setattr(attempts, "LARGE", 1000)
    monkeypatch.setattr(attempts, "HOT", 0.9)  # everything is hot: clusters do not apply
    rng = np.random.default_rng(0)
    start, end, size = [], [], []
    for step in range(24):
        # Nested lifetimes, as forward and backward passes make them; the next step begins before the end.
        depth = np.sort(rng.integers(1, 500, 60))
        start.append(step * 950 + 500 - depth)
        end.append(step * 950 + 500 + depth)
        size.append(rng.integers(1, 1000, 60))
    intervals = IntervalSet.from_arrays(np.concatenate(start), np.concatenate(end), np.concatenate(size))
    result = solve(intervals, time_limit=PATIENCE_S)
    assert validate(intervals, result.offsets) == result.height
    assert result.gap < 0.02


def tiling(rng, count, capacity, span, *, by_area):
    """Cut a rectangle of bytes by instants from edge to edge until it has so many pieces."""
    pieces = [(0, span, 0, capacity)]
    while len(pieces) < count:
        areas = np.array([float(end - start) * (high - low) for start, end, low, high in pieces])
        weights = areas / areas.sum() if by_area else None
        start, end, low, high = pieces.pop(int(rng.choice(len(pieces), p=weights)))
        if rng.random() < 0.5 and end - start > 1:
            cut = int(rng.integers(start + 1, end))
            pieces += [(start, cut, low, high), (cut, end, low, high)]
        elif high - low > 1:
            cut = int(rng.integers(low + 1, high))
            pieces += [(start, end, low, cut), (start, end, cut, high)]
        else:
            pieces.append((start, end, low, high))
    start, end, low, high = np.array(pieces)[rng.permutation(count)].T
    return IntervalSet(start, end, high - low)


@pytest.mark.parametrize("capacity", [500, 1 << 20])
@pytest.mark.parametrize("span", [200, 1000, 10**6])
@pytest.mark.parametrize("by_area", [True, False])
def test_perfect_tilings_of_the_whole_capacity_are_planned_at_it(by_area, span, capacity):
    for number in range(20):
        rng = np.random.default_rng(number)
        intervals = tiling(rng, int(rng.integers(100, 401)), capacity, span, by_area=by_area)
        for seed in range(3):
            result = solve(intervals, seed=seed, time_limit=PATIENCE_S)
            assert validate(intervals, result.offsets) == result.height == capacity, (number, seed)


@pytest.mark.parametrize("count", [800, 3000])
def test_perfect_tilings_are_planned_at_their_load_whatever_their_number(count):
    intervals = tiling(np.random.default_rng(count), count, 1 << 20, 10**6, by_area=True)
    result = solve(intervals, time_limit=PATIENCE_S)
    assert validate(intervals, result.offsets) == result.height == 1 << 20
