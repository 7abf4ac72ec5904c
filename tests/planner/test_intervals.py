"""Intervals as columns: what is accepted, what is refused, and what traces become."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import PlanningError
from smartpool.planner import FREE, IntervalSet


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"start": [0, 5], "end": [1, 3], "size": [1, 1]},
            "interval 1: expected an end of at least the start 5",
        ),
        ({"start": [0], "end": [1], "size": [-1]}, "interval 0: expected a size of at least 0, got -1"),
        ({"start": [0], "end": [1], "size": [1], "alignment": [-3]}, "of at least 1, got -3"),
        ({"start": [0], "end": [1], "size": [1], "alignment": [0]}, "of at least 1, got 0"),
        ({"start": [0], "end": [1], "size": [1], "fixed": [-2]}, "fixed offset of at least 0, got -2"),
        (
            {"start": [0], "end": [1], "size": [1], "fixed": [6], "alignment": [4]},
            "multiple of the alignment 4",
        ),
        ({"start": [0, 1], "end": [1], "size": [1, 1]}, "end: expected 2 values"),
        ({"start": [0.5], "end": [1], "size": [1]}, "start: expected integers"),
        ({"start": [[0]], "end": [1], "size": [1]}, "one dimension"),
        ({"start": [0, 0], "end": [1, 1], "size": [1 << 62, 1 << 62]}, "add up to less than"),
        ({"start": [0], "end": [1], "size": [1 << 64]}, "size: expected integers"),
        (
            {"start": [0, 1], "end": [5, 9], "size": [8, 8], "fixed": [0, 4], "id": ["w", "x"]},
            r"interval x: its fixed offset collides with interval w: .* in \[1, 5\) at the bytes \[4, 8\)",
        ),
    ],
)
def test_what_is_wrong_is_named(columns, message):
    with pytest.raises(PlanningError, match=message):
        IntervalSet.from_arrays(**columns)


def test_fixed_intervals_may_touch():
    intervals = IntervalSet.from_arrays([0, 0, 5], [5, 5, 9], [8, 8, 16], fixed=[0, 8, 0])
    assert intervals.fixed.tolist() == [0, 8, 0]
    assert intervals.without_fixed().fixed.tolist() == [FREE] * 3


def test_columns_are_copies_that_cannot_be_changed():
    start = np.array([0, 1])
    intervals = IntervalSet.from_arrays(start, [2, 3], [1, 1])
    start[0] = 99
    assert intervals.start.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        intervals.size[0] = 7


def test_one_value_stands_for_a_column():
    assert IntervalSet.from_arrays([0, 1], [2, 3], [1, 1], alignment=8).alignment.tolist() == [8, 8]


@given(st.data())
def test_a_trace_becomes_its_lifetimes(data):
    live, known, op, ids, size = {}, [], [], [], []
    for tick in range(data.draw(st.integers(0, 30))):
        name = data.draw(st.integers(0, 5))
        if name in live:
            begin, nbytes = live.pop(name)
            known.append((begin, tick, nbytes))
            op.append(1)
        else:
            nbytes = data.draw(st.integers(0, 100))
            live[name] = tick, nbytes
            op.append(0)
        ids.append(name)
        size.append(nbytes)
    known += [(begin, len(op), nbytes) for begin, nbytes in live.values()]
    intervals = IntervalSet.from_events(op, ids, size)
    found = zip(intervals.start.tolist(), intervals.end.tolist(), intervals.size.tolist(), strict=True)
    assert list(found) == sorted(known)


@pytest.mark.parametrize(
    ("op", "ids", "message"),
    [
        ([0, 0], [7, 7], "event 1 allocates what is live: id 7"),
        ([0, 1, 1], [7, 7, 7], "event 2 frees what is not live: id 7"),
        ([1, 0], [3, 3], "event 0 frees what is not live: id 3"),
    ],
)
def test_a_trace_that_contradicts_itself_is_refused(op, ids, message):
    with pytest.raises(PlanningError, match=message):
        IntervalSet.from_events(op, ids, [1] * len(op))
