"""Published instances and recorded traces; skipped where they are absent."""

from __future__ import annotations

import numpy as np
import pytest
from waiting import PATIENCE_S

from smartpool.planner import IntervalSet, read_csv, solve, validate

GRAPHS = ("G_1", "bert_base", "iree_mobilebert", "pangu_2.6B", "resnet50", "tiny_bert")
HARD = ("A", "B", "C", "D", "E", "F")


@pytest.mark.parametrize("name", HARD)
def test_hard_instances_fit(instances, name):
    intervals = read_csv(instances / f"{name}.1048576.csv")
    result = solve(intervals, capacity=1 << 20, time_limit=PATIENCE_S)
    assert validate(intervals, result.offsets) == result.height <= 1 << 20


@pytest.mark.parametrize("name", GRAPHS)
def test_real_graphs_are_planned_at_their_load(instances, name):
    intervals = read_csv(instances / f"{name}.csv")
    result = solve(intervals, time_limit=PATIENCE_S)
    assert validate(intervals, result.offsets) == result.height == result.load
    assert result.proved_optimal


@pytest.mark.parametrize("name", ["gpt2-train", "unet-multires", "dataframe-mix", "multistream-mix"])
def test_traces_are_planned_near_their_load(traces, name):
    with np.load(traces / f"{name}.npz") as trace:
        intervals = IntervalSet.from_events(trace["op"], trace["id"], trace["size"])
    result = solve(intervals, time_limit=PATIENCE_S)
    assert validate(intervals, result.offsets) == result.height
    assert result.gap <= 0.001
