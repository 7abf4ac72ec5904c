"""Compression of time and sizes loses nothing."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.planner.search.instance import Instance

lifetimes = st.tuples(st.integers(0, 30), st.integers(1, 12)).map(lambda pair: (pair[0], sum(pair)))


def compress(pairs, sizes=None):
    start, end = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Instance.compress(start, end, np.array(sizes or [1] * len(pairs), dtype=np.int64))


@given(st.lists(lifetimes, max_size=20))
def test_buffers_share_a_section_exactly_if_they_overlap(pairs):
    instance = compress(pairs)
    for i, j in itertools.combinations(range(len(pairs)), 2):
        shared = max(instance.first[i], instance.first[j]) < min(instance.last[i], instance.last[j])
        assert shared == (max(pairs[i][0], pairs[j][0]) < min(pairs[i][1], pairs[j][1]))


@given(st.lists(lifetimes, min_size=1, max_size=20))
def test_sections_are_the_maximal_cliques(pairs):
    instance = compress(pairs)
    cliques = [
        {i for i in range(len(pairs)) if instance.first[i] <= section < instance.last[i]}
        for section in range(instance.sections)
    ]
    assert not any(a <= b for a, b in itertools.permutations(cliques, 2))
    assert instance.load.max() == max(sum(s <= now < e for s, e in pairs) for now in range(45))


@given(st.lists(lifetimes, max_size=15), st.integers(1, 5))
def test_components_part_the_buffers_and_share_no_instant(pairs, factor):
    instance = compress(pairs, [factor * (1 + i % 3) for i in range(len(pairs))])
    parts = list(instance.components())
    assert sorted(itertools.chain(*(part.source.tolist() for part in parts))) == list(range(len(pairs)))
    for one, other in itertools.pairwise(parts):
        assert max(pairs[i][1] for i in one.source) <= min(pairs[i][0] for i in other.source)
    for part in parts:
        assert (part.size * part.unit == instance.size[part.source] * instance.unit).all()
        assert next(iter(part.components())).source.tolist() == list(range(len(part.size)))


def test_the_unit_divides_sizes_and_alignments():
    one = np.array([1, 1])
    instance = Instance.compress(0 * one, one, np.array([1024, 1536]), np.array([256, 1]))
    assert (instance.unit, instance.size.tolist(), instance.alignment.tolist()) == (1, [1024, 1536], [256, 1])
    instance = Instance.compress(0 * one, one, np.array([1024, 1536]), np.array([256, 512]))
    assert (instance.unit, instance.size.tolist(), instance.alignment.tolist()) == (256, [4, 6], [1, 2])
