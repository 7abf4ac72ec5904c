"""Plans on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import PlanningError
from smartpool.planner import Plan


@given(
    offsets=st.lists(st.integers(0, 1 << 50), max_size=20),
    height=st.integers(0, 1 << 60),
    load=st.integers(0, 1 << 60),
    method=st.text(max_size=10),
    proved=st.booleans(),
    capacity=st.none() | st.integers(0, 1 << 70),
)
def test_a_plan_survives_save_and_load(tmp_path_factory, offsets, height, load, method, proved, capacity):
    path = tmp_path_factory.mktemp("plan") / "plan.npz"
    plan = Plan(
        offsets=np.array(offsets, np.int64),
        height=height,
        load=load,
        method=method,
        seconds=0.5,
        proved_optimal=proved,
        capacity=capacity,
    )
    plan.save(path)
    again = Plan.load_file(path)
    assert np.array_equal(again.offsets, plan.offsets)
    assert (again.capacity, again.fits) == (capacity, plan.fits)
    assert (again.height, again.load, again.method, again.seconds, again.proved_optimal) == (
        height,
        load,
        method,
        0.5,
        proved,
    )


def test_files_that_are_no_plans_are_refused(tmp_path):
    text = tmp_path / "text.npz"
    text.write_text("not a plan")
    empty = tmp_path / "empty.npz"
    empty.write_bytes(b"")
    other = tmp_path / "other.npz"
    np.savez(other, offsets=np.zeros(3, np.int64))
    newer = tmp_path / "newer.npz"
    np.savez(newer, offsets=np.zeros(3, np.int64), meta=np.array(json.dumps({"schema": 99})))
    for path, message in (
        (text, "a plan that Plan.save wrote"),
        (empty, "a plan that Plan.save wrote"),
        (other, "a plan that Plan.save wrote"),
        (newer, "of schema 1, got 99"),
    ):
        with pytest.raises(PlanningError, match=message):
            Plan.load_file(path)
