"""Patterns that were put in are found."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.planner.patterns import find_period, summarize


@given(st.lists(st.integers(1, 1 << 30), min_size=2, max_size=40, unique=True), st.integers(3, 10), st.data())
def test_a_repeated_sequence_is_found(step, times, data):
    extra = data.draw(st.integers(0, len(step) - 1))
    values = np.array(step * times + step[:extra], np.int64)
    assert find_period(values) == (len(step), 1.0)


def test_a_few_strangers_do_not_hide_the_period():
    rng = np.random.default_rng(0)
    values = np.tile(rng.integers(1, 1 << 20, 50), 20)
    strangers = rng.choice(len(values), 20, replace=False)
    values[strangers] = -1 - np.arange(20)
    period, share = find_period(values)
    assert period == 50
    assert 0.9 <= share < 1


def test_random_sizes_have_no_period():
    assert find_period(np.random.default_rng(0).integers(1, 1 << 40, 5000)) == (None, 0.0)


def test_nothing_has_no_pattern():
    found = summarize(*(np.zeros(0, np.int64),) * 3)
    assert (found.intervals, found.size_classes, found.period) == (0, (), None)


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=50))
def test_size_classes_hold_all_sizes(sizes):
    size = np.array(sizes, np.int64)
    start = np.arange(len(size))
    found = summarize(start, start + 1, size)
    assert sum(each.count for each in found.size_classes) == len(size)
    assert sum(each.total_bytes for each in found.size_classes) == size.sum()
    for each in found.size_classes:
        inside = size[(size >= each.low) & (size < each.high)]
        assert (len(inside), inside.sum()) == (each.count, each.total_bytes)
