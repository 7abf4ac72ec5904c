"""`fit`: right, valid, repeatable, and obedient."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE_S

from smartpool.planner import IntervalSet
from smartpool.planner.clock import Clock
from smartpool.planner.problem import normalize
from smartpool.planner.search import ProvedInfeasible
from smartpool.planner.search import fit as fit_problem
from smartpool.planner.search.restarts import luby


def fit(start, end, size, capacity, *, alignment=None, deadline=None, stop=None, seed=0):
    """Fit columns of bytes."""
    intervals = IntervalSet(start, end, size, alignment=alignment)
    normalized = normalize(intervals)
    clock = Clock(deadline, stop)
    offsets = fit_problem(normalized.problem, capacity // normalized.unit, clock, seed=seed)
    return None if offsets is None else normalized.expand(offsets, intervals)


@st.composite
def columns(draw, most=6, span=6, largest=4):
    """Draw a tiny instance, empty lifetimes and sizes included."""
    count = draw(st.integers(0, most))
    start = [draw(st.integers(0, span - 1)) for _ in range(count)]
    end = [begin + draw(st.integers(0, span - begin)) for begin in start]
    size = [draw(st.integers(0, largest)) for _ in range(count)]
    alignment = draw(st.none() | st.lists(st.sampled_from([1, 2, 3, 4]), min_size=count, max_size=count))
    as_array = [np.array(column, dtype=np.int64) for column in (start, end, size)]
    return (*as_array, None if alignment is None else np.array(alignment, dtype=np.int64))


def overlaps(start, end, size, offsets, i, j):
    """Say whether two buffers share an instant and a byte."""
    together = max(start[i], start[j]) < min(end[i], end[j])
    return together and max(offsets[i], offsets[j]) < min(offsets[i] + size[i], offsets[j] + size[j])


def assert_valid(start, end, size, alignment, offsets, capacity):
    assert offsets.dtype == np.int64
    assert len(offsets) == len(size)
    assert (offsets >= 0).all()
    assert (offsets + size <= capacity).all() or not len(size)
    if alignment is not None:
        assert (offsets % alignment == 0).all()
    for i, j in itertools.combinations(range(len(size)), 2):
        assert not overlaps(start, end, size, offsets, i, j), (i, j)


def fits_by_force(start, end, size, alignment, capacity):
    """Try all offsets of all buffers, one after another."""
    real = [i for i in range(len(size)) if size[i] and end[i] > start[i]]
    offsets = [0] * len(size)

    def place(depth):
        if depth == len(real):
            return True
        i = real[depth]
        for offset in range(0, capacity - size[i] + 1, 1 if alignment is None else int(alignment[i])):
            offsets[i] = offset
            if not any(overlaps(start, end, size, offsets, i, j) for j in real[:depth]) and place(depth + 1):
                return True
        return False

    return place(0)


@given(columns(), st.integers(0, 9), st.integers(0, 3))
@settings(max_examples=400)
def test_agrees_with_brute_force(instance, capacity, seed):
    start, end, size, alignment = instance
    try:
        offsets = fit(start, end, size, capacity, alignment=alignment, seed=seed)
    except ProvedInfeasible:
        assert not fits_by_force(start, end, size, alignment, capacity)
    else:
        real = (size > 0) & (end > start)
        kept = [column[real] for column in (start, end, size)]
        aligned = None if alignment is None else alignment[real]
        assert_valid(*kept, aligned, offsets[real], capacity)
        assert (offsets[~real] == 0).all()


@given(columns(most=12, span=8, largest=9), st.integers(0, 2**32))
@settings(max_examples=60)
def test_the_same_seed_gives_the_same_offsets(instance, seed):
    start, end, size, alignment = instance
    first, second = (fit(start, end, size, 200, alignment=alignment, seed=seed) for _ in range(2))
    assert (first == second).all()


@given(columns(most=14, span=10, largest=9))
@settings(max_examples=60)
def test_a_capacity_that_holds_all_at_once_is_always_met(instance):
    start, end, size, alignment = instance
    capacity = int(size.sum()) + 4 * len(size)
    assert_valid(start, end, size, alignment, fit(start, end, size, capacity, alignment=alignment), capacity)


@given(st.integers(0, 40), st.integers(4, 24), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_random_tilings_of_the_whole_capacity_fit(cuts, bound, seed):
    rng = np.random.default_rng(seed)
    pieces = [(0, 100, 0, 100)]
    for _ in range(cuts):
        start, end, low, high = pieces.pop(int(rng.integers(len(pieces))))
        if rng.random() < 0.5 and end - start > 1:
            cut = int(rng.integers(start + 1, end))
            pieces += [(start, cut, low, high), (cut, end, low, high)]
        elif high - low > 1:
            cut = int(rng.integers(low + 1, high))
            pieces += [(start, end, low, cut), (start, end, cut, high)]
        else:
            pieces.append((start, end, low, high))
    table = np.array(pieces, dtype=np.int64)
    start, end, size = table[:, 0], table[:, 1], (table[:, 3] - table[:, 2]) * bound
    offsets = fit(start, end, size, 100 * bound, deadline=time.monotonic() + PATIENCE_S, seed=seed)
    assert_valid(start, end, size, None, offsets, 100 * bound)


def hard_instance():
    """Return a tiling of buffers with few sizes on few instants: many plans almost fit."""
    rng = np.random.default_rng(7)
    pieces = [(0, 60, 0, 240)]
    while len(pieces) < 500:
        start, end, low, high = pieces.pop(int(rng.integers(len(pieces))))
        if rng.random() < 0.5 and end - start > 1:
            cut = int(rng.integers(start + 1, end))
            pieces += [(start, cut, low, high), (cut, end, low, high)]
        elif high - low > 1:
            cut = int(rng.integers(low + 1, high))
            pieces += [(start, end, low, cut), (start, end, cut, high)]
        else:
            pieces.append((start, end, low, high))
    table = np.array(pieces, dtype=np.int64)
    return table[:, 0], table[:, 1], table[:, 3] - table[:, 2]


def test_a_past_deadline_ends_the_search_without_an_answer():
    start, end, size = hard_instance()
    assert fit(start, end, size, 240, deadline=time.monotonic() - 1) is None


def test_stop_ends_the_search_soon():
    start, end, size = hard_instance()
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        return calls > 3

    assert fit(start, end, size, 240, stop=stop) is None
    assert calls <= 5  # a tree may ask and end; then the restarts ask once more


def test_a_load_above_the_capacity_is_a_proof():
    two = np.array([0, 0]), np.array([2, 2]), np.array([3, 4])
    with pytest.raises(ProvedInfeasible, match="the load is 7 units, the capacity 6"):
        fit(*two, 6)


# Found by random search among instances whose load is the same at every instant.
NO_PLAN_AT_THE_LOAD = [
    (4, [0, 1, 0, 2, 1, 3, 4, 2, 6], [1, 2, 3, 3, 4, 6, 6, 7, 7], [3, 2, 1, 1, 1, 2, 1, 1, 3]),
    (6, [0, 0, 1, 3, 1, 3, 4, 5], [1, 3, 4, 4, 5, 5, 6, 6], [3, 3, 2, 1, 1, 2, 3, 3]),
    (
        6,
        [0, 0, 1, 2, 3, 2, 3, 3, 4, 5, 6],
        [1, 2, 3, 4, 4, 5, 5, 6, 6, 8, 8],
        [3, 3, 3, 1, 1, 2, 1, 1, 2, 3, 3],
    ),
]


@pytest.mark.parametrize(("load", "start", "end", "size"), NO_PLAN_AT_THE_LOAD)
def test_a_load_that_fits_can_be_infeasible_too(load, start, end, size):
    start, end, size = (np.array(column) for column in (start, end, size))
    assert not fits_by_force(start, end, size, None, load)
    with pytest.raises(ProvedInfeasible, match="exhausted"):
        fit(start, end, size, load)
    assert fits_by_force(start, end, size, None, load + 1)
    assert_valid(start, end, size, None, fit(start, end, size, load + 1), load + 1)


@given(st.integers(0, 2**32), st.integers(3, 6))
@settings(max_examples=150, deadline=None)
def test_agrees_with_brute_force_where_memory_is_full_all_the_time(seed, load):
    rng = np.random.default_rng(seed)
    live, done = [], []
    for now in range(5):
        leaving = [rng.random() < 0.45 for _ in live]
        done += [(start, now, size) for (start, size), leaves in zip(live, leaving, strict=True) if leaves]
        live = [buffer for buffer, leaves in zip(live, leaving, strict=True) if not leaves]
        while room := load - sum(size for _, size in live):
            live.append((now, int(rng.integers(1, min(3, room) + 1))))
    done += [(start, 5, size) for start, size in live]
    start, end, size = np.array(done[:11]).T
    try:
        offsets = fit(start, end, size, load, seed=seed)
    except ProvedInfeasible:
        assert not fits_by_force(start, end, size, None, load)
    else:
        assert_valid(start, end, size, None, offsets, load)


def test_nothing_to_place():
    none = np.zeros(0, dtype=np.int64)
    assert fit(none, none, none, 0).tolist() == []


PERFECT = ([0, 0, 2, 1, 3, 0], [1, 2, 4, 3, 4, 4], [2, 1, 1, 2, 2, 1])


def repeated(times, period=10):
    start, end, size = (np.array(column) for column in PERFECT)
    shift = np.repeat(np.arange(times) * period, len(size))
    columns = np.tile(start, times) + shift, np.tile(end, times) + shift, np.tile(size, times)
    return normalize(IntervalSet(*columns)).problem


def test_equal_parts_are_solved_once_and_alike():
    assert (fit_problem(repeated(50), 4, seed=3) == np.tile(fit_problem(repeated(1), 4, seed=3), 50)).all()


def test_one_infeasible_part_is_enough():
    start, end, size = [0, 1, 0, 2, 1, 3, 4, 2, 6], [1, 2, 3, 3, 4, 6, 6, 7, 7], [3, 2, 1, 1, 1, 2, 1, 1, 3]
    with pytest.raises(ProvedInfeasible):
        fit_problem(normalize(IntervalSet([*start, 20], [*end, 30], [*size, 4])).problem, 4)


def test_luby_doubles_as_often_as_its_sequence_says():
    terms = [luby(step) for step in range(1, 128)]
    assert [terms.count(1 << power) for power in range(7)] == [64, 32, 16, 8, 4, 2, 1]
