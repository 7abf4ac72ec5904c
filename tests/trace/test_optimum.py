"""The plan of a whole trace as a row of a replay."""

from __future__ import annotations

import json

import pytest

from smartpool.cli import main
from smartpool.trace import Trace, bundled
from smartpool.trace.optimum import optimum_run


def test_it_is_below_every_allocator_and_above_the_peak():
    trace = Trace.load(bundled("dataframe-mix"))
    run = optimum_run(trace, "model:141GiB")
    assert trace.peak_live_bytes <= run.peak_reserved_bytes <= 1.001 * trace.peak_live_bytes
    assert max(point.live_bytes for point in run.timeline) == trace.peak_live_bytes
    assert [point.event for point in run.timeline] == sorted(point.event for point in run.timeline)


def test_what_ends_above_the_capacity_failed():
    trace = Trace.load(bundled("multistream-mix"))
    half = optimum_run(trace, "model", capacity_bytes=trace.peak_live_bytes // 2)
    assert half.failed_requests > 0
    assert 0 < half.peak_live_bytes <= half.peak_reserved_bytes <= trace.peak_live_bytes // 2
    assert half.peak_live_bytes == max(point.live_bytes for point in half.timeline)
    nothing = optimum_run(trace, "model", capacity_bytes=100, passes=2)
    assert (nothing.failed_requests, nothing.fragmentation) == (2 * trace.allocations, None)
    assert (nothing.peak_live_bytes, nothing.peak_reserved_bytes) == (0, 0)


@pytest.mark.parametrize("options", [["--capacity", "1KiB"], ["--device", "model:1KiB"]])
def test_a_device_that_holds_nothing_has_no_fragmentation(options, capsys):
    arguments = ["replay", "multistream-mix", "--against", "pytorch,cupy,optimum", "--json"]
    assert main([*arguments, *options]) == 3
    for run in json.loads(capsys.readouterr().out)["runs"]:
        assert (run["device"], run["fragmentation"]) == ("model:1KiB", None)
        assert (run["peak_live_bytes"], run["peak_reserved_bytes"]) == (0, 0)


def test_the_command_knows_it(capsys):
    assert main(["replay", "multistream-mix", "--against", "optimum", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["allocator"] for run in runs] == ["smartpool", "optimum"]
    assert runs[1]["peak_reserved_bytes"] <= runs[0]["peak_reserved_bytes"]
