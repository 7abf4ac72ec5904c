"""Plans that even devices out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.balancing import Load, plan_moves
from smartpool.errors import InvalidRequestError

sizes = st.lists(st.integers(1, 100), max_size=30)


@given(
    on=st.lists(st.tuples(sizes, st.integers(0, 500)), min_size=1, max_size=5),
    capacities=st.lists(st.integers(4000, 8000), min_size=5, max_size=5),
    tolerance=st.floats(0, 0.5),
    limit=st.none() | st.integers(0, 500),
)
def test_moves_help_and_end_where_no_single_one_would(on, capacities, tolerance, limit):
    loads = [Load(sum(own) + fixed, capacity) for (own, fixed), capacity in zip(on, capacities, strict=False)]
    items, number = [], 0
    for device, (own, _) in enumerate(on):
        for size in own:
            items.append((number, size, device))
            number += 1
    where = {item[0]: item[2] for item in items}
    size_of = {item[0]: item[1] for item in items}
    moves = plan_moves(loads, items, tolerance=tolerance, limit_bytes=limit)
    live = [load.live_bytes for load in loads]

    def shares():
        return [used / load.capacity_bytes for used, load in zip(live, loads, strict=True)]

    left = limit
    for move in moves:
        assert where[move.allocation_id] == move.source
        assert size_of[move.allocation_id] == move.nbytes
        before = shares()
        assert before[move.source] == max(before)
        live[move.source] -= move.nbytes
        live[move.target] += move.nbytes
        assert shares()[move.target] < before[move.source]
        where[move.allocation_id] = move.target
        left = None if left is None else left - move.nbytes
    assert left is None or left >= 0
    assert len({move.allocation_id for move in moves}) == len(moves)
    end = shares()
    top, gone = end.index(max(end)), {move.allocation_id for move in moves}
    for target, share in enumerate(end):
        if end[top] - share <= tolerance:
            continue
        for item, device in where.items():
            if device == top and item not in gone and (left is None or size_of[item] <= left):
                assert (live[target] + size_of[item]) / loads[target].capacity_bytes >= end[top]


def test_even_devices_are_left_alone():
    assert plan_moves([Load(50, 100), Load(54, 100)], [(1, 2, 1)]) == []
    assert plan_moves([Load(50, 100)], [(1, 2, 0)]) == []


def test_capacity_counts_and_not_bytes():
    moves = plan_moves([Load(60, 80), Load(60, 1000)], [(1, 20, 0), (2, 20, 1)])
    assert [(move.allocation_id, move.target) for move in moves] == [(1, 1)]


@pytest.mark.parametrize("tolerance", [-0.1, 1.1, float("nan")])
def test_tolerances(tolerance):
    with pytest.raises(InvalidRequestError, match="tolerance"):
        plan_moves([Load(1, 2)], [], tolerance=tolerance)
