"""The validator against comparing every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import smartpool.planner.clash as clash
from smartpool.errors import PlanningError
from smartpool.planner import IntervalSet, validate

RECTANGLES = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 12), st.integers(0, 4)), max_size=12
)


def overlap(one, two):
    return all(max(one[at], two[at]) < min(one[at] + one[at + 1], two[at] + two[at + 1]) for at in (0, 2))


@pytest.mark.parametrize("run", [2, 1024])
@given(rectangles=RECTANGLES)
def test_a_plan_is_valid_when_no_pair_overlaps(run, rectangles):
    table = np.array(rectangles, np.int64).reshape(-1, 4)
    intervals = IntervalSet.from_arrays(table[:, 0], table[:, 0] + table[:, 1], table[:, 3])
    wrong = any(overlap(one, two) for at, one in enumerate(rectangles) for two in rectangles[:at])
    was, clash.RUN = clash.RUN, run
    try:
        if wrong:
            with pytest.raises(PlanningError, match="share bytes"):
                validate(intervals, table[:, 2])
        else:
            real = [low + size for _, life, low, size in rectangles if life and size]
            assert validate(intervals, table[:, 2]) == max(real, default=0)
    finally:
        clash.RUN = was


@pytest.mark.parametrize(
    ("columns", "offsets", "message"),
    [
        ({}, [-1], "interval 0 has an offset below 0: -1"),
        ({"alignment": [8]}, [4], "not a multiple of its alignment: 4"),
        ({"fixed": [8]}, [0], "not at its fixed offset: 0"),
        ({}, [0, 1], "expected 1 offsets"),
        ({}, [0.0], "expected integer offsets"),
    ],
)
def test_what_is_wrong_is_named(columns, offsets, message):
    with pytest.raises(PlanningError, match=message):
        validate(IntervalSet.from_arrays([0], [9], [16], **columns), offsets)


def test_a_clash_is_told_with_time_and_bytes():
    intervals = IntervalSet.from_arrays([0, 4], [9, 6], [10, 10], id=["a", "b"])
    with pytest.raises(
        PlanningError, match=r"intervals a and b are both live at time 4 and share bytes \[5, 10\)"
    ):
        validate(intervals, [0, 5])
