"""Bundles are rectangles filled with their buffers, none left out."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.planner.search.instance import Instance
from smartpool.planner.search.merging import Merge, merge, singles

rows = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4])),
    max_size=25,
)


@given(rows, st.sampled_from(Merge), st.integers(0, 99))
def test_a_bundle_holds_its_buffers_apart_and_aligned(table, how, seed):
    start, width, size, alignment = np.array(table, dtype=np.int64).reshape(-1, 4).T
    instance = Instance.compress(start, start + width, size, alignment)
    bundles = merge(singles(instance), how, random.Random(seed))
    offsets = [-1] * len(table)
    area = 0
    for bundle in bundles:
        bundle.spread(12 * bundle.alignment, offsets)
        area += (bundle.last - bundle.first) * bundle.size
    assert -1 not in offsets
    assert area >= int(((instance.last - instance.first) * instance.size).sum())
    for bundle in bundles:
        inside = [-1] * len(table)
        bundle.spread(12 * bundle.alignment, inside)
        members = [i for i, offset in enumerate(inside) if offset >= 0]
        cells = set()
        for i in members:
            assert inside[i] % instance.alignment[i] == 0
            for section in range(instance.first[i], instance.last[i]):
                for byte in range(inside[i], inside[i] + instance.size[i]):
                    assert (section, byte) not in cells
                    assert bundle.first <= section < bundle.last
                    assert 0 <= byte - 12 * bundle.alignment < bundle.size
                    cells.add((section, byte))


def test_cutting_a_rectangle_in_time_and_size_is_undone():
    start, end = np.array([0, 0, 2, 2, 5]), np.array([2, 2, 5, 5, 9])
    instance = Instance.compress(start, end, np.array([3, 5, 2, 6, 8]))
    assert len(merge(singles(instance), Merge.STACKS, random.Random(0))) == 3
    assert len(merge(singles(instance), Merge.ALL, random.Random(0))) == 1
