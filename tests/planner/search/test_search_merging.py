"""Bundles are rectangles filled with their buffers, none left out."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.planner import IntervalSet
from smartpool.planner.problem import normalize
from smartpool.planner.search.merging import Merge, merge, singles

rows = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4])),
    max_size=25,
)


@given(rows, st.sampled_from(Merge), st.integers(0, 99))
def test_a_bundle_holds_its_buffers_apart_and_aligned(table, how, seed):
    start, width, size, alignment = np.array(table, dtype=np.int64).reshape(-1, 4).T
    problem = normalize(IntervalSet(start, start + width, size, alignment=alignment)).problem
    bundles = merge(singles(problem), how, random.Random(seed))
    offsets = [-1] * len(table)
    area = 0
    for bundle in bundles:
        bundle.spread(12 * bundle.alignment, offsets)
        area += (bundle.last - bundle.first) * bundle.size
    assert -1 not in offsets
    assert area >= int(((problem.last - problem.first) * problem.size).sum())
    for bundle in bundles:
        inside = [-1] * len(table)
        bundle.spread(12 * bundle.alignment, inside)
        members = [i for i, offset in enumerate(inside) if offset >= 0]
        cells = set()
        for i in members:
            assert inside[i] % problem.alignments[i] == 0
            for section in range(problem.first[i], problem.last[i]):
                for byte in range(inside[i], inside[i] + problem.size[i]):
                    assert (section, byte) not in cells
                    assert bundle.first <= section < bundle.last
                    assert 0 <= byte - 12 * bundle.alignment < bundle.size
                    cells.add((section, byte))


def test_cutting_a_rectangle_in_time_and_size_is_undone():
    start, end = np.array([0, 0, 2, 2, 5]), np.array([2, 2, 5, 5, 9])
    problem = normalize(IntervalSet(start, end, [3, 5, 2, 6, 8])).problem
    assert len(merge(singles(problem), Merge.STACKS, random.Random(0))) == 3
    assert len(merge(singles(problem), Merge.ALL, random.Random(0))) == 1
