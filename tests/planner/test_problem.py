"""Compression of time and sizes loses nothing."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.planner import IntervalSet
from smartpool.planner.problem import normalize

lifetimes = st.tuples(st.integers(0, 30), st.integers(1, 12)).map(lambda pair: (pair[0], sum(pair)))


def problem_of(pairs, sizes=None):
    """Return the problem of these lifetimes, in its order, and the rows that it stands for."""
    start, end = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    normalized = normalize(IntervalSet(start, end, sizes or [1] * len(pairs)))
    return normalized.problem, normalized.rows.tolist()


@given(st.lists(lifetimes, max_size=20))
def test_intervals_share_a_section_exactly_if_they_overlap(pairs):
    problem, rows = problem_of(pairs)
    pairs = [pairs[row] for row in rows]
    for i, j in itertools.combinations(range(len(pairs)), 2):
        shared = max(problem.first[i], problem.first[j]) < min(problem.last[i], problem.last[j])
        assert shared == (max(pairs[i][0], pairs[j][0]) < min(pairs[i][1], pairs[j][1]))


@given(st.lists(lifetimes, min_size=1, max_size=20))
def test_sections_are_the_maximal_cliques(pairs):
    problem, _ = problem_of(pairs)
    cliques = [
        {i for i in range(len(pairs)) if problem.first[i] <= section < problem.last[i]}
        for section in range(len(problem.load))
    ]
    assert not any(a <= b for a, b in itertools.permutations(cliques, 2))
    assert problem.load.max() == max(sum(s <= now < e for s, e in pairs) for now in range(45))


@given(st.lists(lifetimes, max_size=15), st.integers(1, 5))
def test_components_part_the_intervals_and_share_no_instant(pairs, factor):
    problem, rows = problem_of(pairs, [factor * (1 + i % 3) for i in range(len(pairs))])
    parts = problem.components()
    assert sorted(itertools.chain(*(part.tolist() for part in parts))) == list(range(len(pairs)))
    for one, other in itertools.pairwise(parts):
        assert max(pairs[rows[i]][1] for i in one) <= min(pairs[rows[i]][0] for i in other)
    for inside in parts:
        part = problem.take(inside)
        scaled, unit = part.in_units()
        assert (scaled.size * unit == problem.size[inside]).all()
        assert (scaled.load * unit == part.load).all()
        assert len(part.components()) == 1


@given(st.lists(lifetimes, min_size=1, max_size=12), st.integers(1, 50))
def test_problems_apart_in_time_alone_have_one_key(pairs, shift):
    later = [(start + shift, end + shift) for start, end in pairs]
    assert problem_of(pairs)[0].key == problem_of(later)[0].key


def test_the_unit_divides_sizes_and_alignments():
    intervals = IntervalSet([0, 0], [1, 1], [1536, 1024], alignment=[1, 256])
    normalized = normalize(intervals)
    assert (normalized.unit, normalized.problem.alignment) == (512, None)
    normalized = normalize(IntervalSet([0, 0], [1, 1], [1536, 1024], alignment=[512, 1024]))
    assert (normalized.unit, normalized.problem.size.tolist()) == (512, [3, 2])
    assert normalized.problem.alignment.tolist() == [1, 2]
