from __future__ import annotations

import pytest
from report_runs import make_run

from smartpool.report.comparison import COLUMNS, FRAGMENTATION, Comparison, best_of

GiB = 1 << 30


def test_traces_and_allocators_keep_the_order_in_which_they_came():
    runs = [make_run("b", "y"), make_run("a", "x"), make_run("b", "x")]
    comparison = Comparison(runs)
    assert comparison.traces == ("b", "a")
    assert comparison.allocators == ("y", "x")
    assert comparison.of_trace("b") == (runs[0], runs[2])
    assert comparison.cell("b", "x") is runs[2]
    assert comparison.cell("a", "y") is None


def test_the_mean_is_over_all_traces_or_not_given():
    runs = [
        make_run("a", "whole", live=3 * GiB, reserved=4 * GiB),
        make_run("b", "whole", live=2 * GiB, reserved=4 * GiB),
        make_run("a", "once"),
        make_run("a", "failing"),
        make_run("b", "failing", failed=1),
    ]
    comparison = Comparison(runs)
    assert comparison.mean("whole", FRAGMENTATION) == pytest.approx(0.375)
    assert comparison.mean("once", FRAGMENTATION) is None
    assert comparison.mean("failing", FRAGMENTATION) is None


def test_the_best_served_every_request_and_what_reads_alike_shares_the_mark():
    runs = [
        make_run(allocator="refuses", live=GiB, reserved=GiB, failed=2),
        make_run(allocator="close", live=GiB, reserved=2 * GiB + 1),
        make_run(allocator="best", live=GiB, reserved=2 * GiB),
    ]
    assert best_of(runs, FRAGMENTATION) == "50.0 %" == FRAGMENTATION.text(runs[1].fragmentation)
    assert best_of(runs[:1], FRAGMENTATION) is None
    assert best_of([runs[0], runs[0]], FRAGMENTATION) is None


def test_figures_that_say_nothing_about_the_peers_have_no_best():
    two = [make_run(allocator="a"), make_run(allocator="b")]
    assert {column.title for column in COLUMNS if best_of(two, column) is None} == {
        "peak live",
        "us/op",
        "failed",
    }
