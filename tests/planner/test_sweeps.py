"""Sweeps against counting instant by instant."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.planner import IntervalSet
from smartpool.planner.problem import cliques, normalize
from smartpool.planner.sweeps import component_of, first_fit, overlap_counts, section_load, sections

LIFETIMES = st.lists(
    st.tuples(st.integers(-5, 10), st.integers(0, 8), st.integers(0, 20)).map(
        lambda drawn: (drawn[0], drawn[0] + drawn[1], drawn[2])
    ),
    max_size=12,
)


def columns(lifetimes):
    array = np.array(lifetimes, np.int64).reshape(-1, 3)
    return array[:, 0], array[:, 1], array[:, 2]


def overlap(one, two):
    return max(one[0], two[0]) < min(one[1], two[1])


@given(LIFETIMES)
def test_load_is_the_sum_of_what_is_live(lifetimes):
    start, end, size = columns(lifetimes)
    cut = sections(start, end)
    load = section_load(cut.first, cut.last, size, len(cut))
    for time, known in zip(cut.times[:-1].tolist(), load.tolist(), strict=True):
        assert known == sum(nbytes for begin, until, nbytes in lifetimes if begin <= time < until)
    intervals = IntervalSet.from_arrays(start, end, size)
    assert intervals.load == max(load.tolist(), default=0)


@given(LIFETIMES)
def test_overlap_counts_are_degrees_of_the_graph(lifetimes):
    start, end, _ = columns(lifetimes)
    degrees = [
        sum(overlap(one, two) for at, two in enumerate(lifetimes) if at != row)
        for row, one in enumerate(lifetimes)
    ]
    assert overlap_counts(start, end).tolist() == degrees


@given(LIFETIMES)
def test_components_are_joined_by_overlaps(lifetimes):
    start, end, _ = columns(lifetimes)
    component = component_of(start, end).tolist()
    # By merging, until nothing changes.
    known = list(range(len(lifetimes)))
    for row, one in enumerate(lifetimes):
        for at, two in enumerate(lifetimes):
            if overlap(one, two):
                known = [known[row] if name == known[at] else name for name in known]
    for row in range(len(lifetimes)):
        for at in range(len(lifetimes)):
            if known[row] == known[at]:
                assert component[row] == component[at]
            elif lifetimes[row][0] < lifetimes[row][1] and lifetimes[at][0] < lifetimes[at][1]:
                assert component[row] != component[at]


@given(LIFETIMES)
def test_cliques_keep_overlaps_and_the_largest_load(lifetimes):
    lifetimes = [(begin, end, size) for begin, end, size in lifetimes if begin < end]
    start, end, size = columns(lifetimes)
    first, last, count = cliques(start, end)
    assert (first < last).all()
    assert (last <= count).all()
    shrunk = list(zip(first.tolist(), last.tolist(), strict=True))
    for row, one in enumerate(lifetimes):
        for at, two in enumerate(lifetimes):
            assert overlap(one, two) == overlap(shrunk[row], shrunk[at])
    known = IntervalSet.from_arrays(start, end, size).load
    assert section_load(first, last, size, count).max(initial=0) == known


@given(LIFETIMES, st.integers(1, 64))
def test_normalizing_divides_by_what_is_common(lifetimes, factor):
    start, end, size = columns(lifetimes)
    one, other = (normalize(IntervalSet.from_arrays(start, end, size * by)) for by in (1, factor))
    assert np.array_equal(one.problem.size, other.problem.size)
    if len(one.problem):
        assert other.unit == factor * one.unit
        assert np.gcd.reduce(one.problem.size) == 1


@given(
    st.lists(st.tuples(st.integers(-9, 20), st.integers(0, 9)), max_size=8),
    st.integers(0, 9),
    st.integers(1, 5),
)
def test_first_fit_takes_the_lowest_place_of_all(taken, size, alignment):
    taken = sorted((low, low + width) for low, width in taken)
    low, high = np.array(taken, np.int64).reshape(-1, 2).T
    places = range(0, 60, alignment)
    free = (at for at in places if all(at >= high or at + size <= low for low, high in taken))
    assert first_fit(low, high, size, alignment) == next(free)
