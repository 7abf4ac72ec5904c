"""Intervals that rest: what lies in their bytes meanwhile, and how low that makes a plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.errors import PlanningError
from smartpool.planner import IntervalSet, plan, solve, validate

HORIZON = 8


@st.composite
def resting(draw, *, windows, most=5):
    """Intervals over a short time, as columns and as the sets of (time, byte) that they hold."""
    rows, held = [], []
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, HORIZON - 1))
        end, size = draw(st.integers(start + 1, HORIZON)), draw(st.integers(1, 6))
        rests, cells = [], {(time, byte) for time in range(start, end) for byte in range(size)}
        cuts = sorted(draw(st.lists(st.integers(start, end), max_size=4, unique=True)))
        for low_time, high_time in zip(cuts[::2], cuts[1::2], strict=False):
            low, high = (
                sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) if windows else (0, 0)
            )
            rests.append((low_time, high_time, low, high))
            cells -= {
                (time, byte)
                for time in range(low_time, high_time)
                for byte in range(size)
                if not low <= byte < high
            }
        rows.append((start, end, size, draw(st.sampled_from([1, 1, 2, 3])), rests))
        held.append(cells)
    start, end, size, alignment, rests = map(list, zip(*rows, strict=True))
    return IntervalSet(start, end, size, alignment=alignment, rests=rests), held


def moved(cells, offset):
    return {(time, byte + offset) for time, byte in cells}


def clash(held, offsets):
    taken = [cell for cells, offset in zip(held, offsets, strict=True) for cell in moved(cells, offset)]
    return len(taken) != len(set(taken))


def lowest_height(intervals, held):
    """Try all orders, each interval at the lowest offset at which none of its bytes is taken."""
    best = None
    for order in itertools.permutations(range(len(intervals))):
        taken, height = set(), 0
        for row in order:
            step = int(intervals.alignment[row])
            offset = next(at for at in itertools.count(0, step) if not moved(held[row], at) & taken)
            taken |= moved(held[row], offset)
            height = max(height, offset + int(intervals.size[row]))
        best = height if best is None else min(best, height)
    return best


@given(resting(windows=True), st.lists(st.integers(0, 9), min_size=5, max_size=5))
def test_the_validator_counts_every_byte_at_every_instant(instance, places):
    intervals, held = instance
    steps = intervals.alignment.tolist()
    offsets = [place * step for place, step in zip(places, steps, strict=False)]
    if clash(held, offsets):
        with pytest.raises(PlanningError, match="share bytes"):
            validate(intervals, offsets)
        with pytest.raises(PlanningError, match="collides"):
            intervals.with_fixed(np.array(offsets))
    else:
        assert validate(intervals, offsets) == (intervals.size + offsets).max()
        assert solve(intervals.with_fixed(np.array(offsets)), time_limit=1).offsets.tolist() == offsets


@given(resting(windows=True, most=7))
@settings(max_examples=60)
def test_every_plan_is_valid_and_between_the_load_and_that_without_rests(instance):
    intervals, held = instance
    result = solve(intervals, time_limit=0.3)
    assert not clash(held, result.offsets.tolist())
    assert validate(intervals, result.offsets) == result.height
    load = max(sum((time, byte) in cells for cells in held for byte in range(6)) for time in range(HORIZON))
    assert intervals.load == result.load == load <= result.height
    awake = solve(intervals.without_rests(), time_limit=0.3)
    assert result.height <= awake.height
    assert result.proved_optimal <= (result.height == load)


@given(resting(windows=False, most=4))
@settings(max_examples=60)
def test_small_plans_are_as_low_as_brute_force_says(instance):
    intervals, held = instance
    assert solve(intervals, time_limit=5.0).height == lowest_height(intervals, held)


@given(resting(windows=True), st.data())
def test_rows_are_taken_with_their_rests(instance, data):
    intervals, held = instance
    rows = data.draw(st.lists(st.integers(0, len(intervals) - 1), max_size=5))
    taken = intervals.take(np.array(rows, np.int64))
    pieces = taken.pieces()
    for row, old in enumerate(rows):
        mine = pieces.take(pieces.row == row)
        columns = zip(*(getattr(mine, name).tolist() for name in mine.__slots__), strict=True)
        cells = {
            (time, byte)
            for _, start, end, low, high in columns
            for time in range(start, end)
            for byte in range(low, high)
        }
        assert cells == held[old]


def test_one_lies_in_another_that_rests():
    result = plan([0, 2], [10, 8], [8, 8], rests=[[(2, 8)], []], capacity="8 B")
    assert (result.height, result.load, result.offsets.tolist()) == (8, 8, [0, 0])
    assert (result.fits, result.proved_optimal) == (True, True)


def test_two_that_keep_half_of_their_bytes():
    rests = [[(0, 5, 0, 1)], [(5, 10, 1, 2)]]
    assert plan([0, 0], [10, 10], [2, 2], rests=rests).height == 3
    assert plan([0, 0], [10, 10], [2, 2]).height == 4


@pytest.mark.parametrize(
    ("rests", "said"),
    [
        ([[]], "rests: expected 2 lists, as in start, got 1"),
        ([[(1,)], []], r"rests: expected \(start, end\)"),
        ([[5], []], r"rests: expected \(start, end\)"),
        ([[(1, 2.5)], []], "rests: expected integers"),
        ([[], [(4, 3)]], "interval 1: expected a rest that does not end before it starts"),
        ([[], [(4, 10)]], "interval 1: expected a rest within its lifetime"),
        ([[], [(4, 6), (5, 7)]], "interval 1: expected rests that do not overlap"),
        ([[], [(4, 6, 0, 9)]], "interval 1: expected a rest that keeps none but its own bytes"),
    ],
)
def test_what_is_no_rest_is_named(rests, said):
    with pytest.raises(PlanningError, match=said):
        IntervalSet([0, 2], [9, 8], [8, 8], rests=rests)
