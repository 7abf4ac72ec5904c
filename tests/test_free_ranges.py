"""How scattered free memory is: one formula, and the same number from the planner and from a pool."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool import MiB, SmartPool
from smartpool.free_ranges import interval_fragmentation
from smartpool.planner import WeightedIntervalGraphColoring


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), max_size=20))
def test_fragmentation_is_its_formula(pieces):
    address, size, at = [], [], 0
    for gap, nbytes in pieces:
        address.append(at + gap)
        size.append(nbytes)
        at += gap + nbytes
    real = [(low, nbytes) for low, nbytes in zip(address, size, strict=True) if nbytes]
    gaps = [above - low - nbytes for (low, nbytes), (above, _) in pairwise(real) if above > low + nbytes]
    free, live = sum(gaps), sum(nbytes for _, nbytes in real)
    expected = free / (live + free) * (1 - sum((gap / free) ** 2 for gap in gaps)) if free else 0.0
    order = np.random.default_rng(len(pieces)).permutation(len(address))
    shuffled = np.array(address, np.int64)[order], np.array(size, np.int64)[order]
    assert interval_fragmentation(*shuffled) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_planner_and_pool_call_one_layout_by_one_number(requests):
    with SmartPool("model:4GiB") as pool:
        blocks = {pool.malloc(size * 2 * MiB): size * 2 * MiB for size, _ in requests}
        for pointer, (_, stays) in zip(list(blocks), requests, strict=True):
            if not stays:
                pool.free(pointer)
                del blocks[pointer]
        blocks[pool.malloc(2 * MiB)] = 2 * MiB  # frees are joined by the next request
        graph = WeightedIntervalGraphColoring()
        for pointer, size in blocks.items():
            graph.open(size, address=pointer)
        expected = interval_fragmentation(blocks.keys(), blocks.values())
        assert graph.fragmentation() == expected
        assert pool.statistics.devices[0].fragmentation.interval_graph == pytest.approx(expected)
