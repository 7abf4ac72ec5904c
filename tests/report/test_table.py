from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import make_run, runs
from rich.console import Console

from smartpool.report.table import print_runs

GiB = 1 << 30


def printed(all_runs, width=400) -> str:
    out = io.StringIO()
    print_runs(all_runs, Console(file=out, width=width))
    return out.getvalue()


def test_one_trace_gives_one_table_with_its_best_marked():
    text = printed([make_run(), make_run(allocator="pytorch", reserved=6 * GiB)])
    ours, theirs = (line.split() for line in text.splitlines() if "GiB" in line)
    assert " ".join(ours) == "trace smartpool 3.00 GiB 4.00 GiB* 25.0 %* 2.00 ms* 1.50 0"
    assert " ".join(theirs) == "pytorch 3.00 GiB 6.00 GiB 50.0 % 2.00 ms* 1.50 0"
    assert "least of its trace" in text


def test_several_traces_stand_side_by_side_with_their_mean():
    text = printed(
        [
            make_run("one", "smartpool"),
            make_run("one", "pytorch", reserved=6 * GiB),
            make_run("two", "smartpool", reserved=6 * GiB),
            make_run("two", "pytorch", reserved=6 * GiB, failed=1),
        ]
    )
    side_by_side = text[text.rindex("fragmentation") :].splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in side_by_side if line.strip()}
    assert rows["one"] == ["25.0", "%*", "50.0", "%"]
    assert rows["two"] == ["50.0", "%*", "50.0", "%"]
    assert rows["mean"] == ["37.5", "%"]


@pytest.mark.parametrize("failed", [0, 7])
def test_a_narrow_screen_gets_a_table_a_trace_and_loses_no_figure(failed):
    runs = [make_run("one"), make_run("two", "pytorch-expandable", reserved=6 * GiB, failed=failed)]
    text = printed(runs, width=80)
    assert "…" not in text
    assert [line.strip() for line in text.splitlines() if "live at its peak" in line] == [
        "one: 3.00 GiB live at its peak",
        "two: 3.00 GiB live at its peak",
    ]
    (row,) = [line.split() for line in text.splitlines() if "6.00 GiB" in line]
    assert row[:5] == ["pytorch-expandable", "6.00", "GiB", "50.0", "%"]
    assert row[-1] == ("7" if failed else "1.50")
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("width", [40, 50, 60, 70])
def test_a_very_narrow_screen_loses_columns_and_no_digit(width):
    text = printed([make_run("one"), make_run("one", "pytorch-expandable", reserved=6 * GiB)], width=width)
    assert "…" not in text
    (row,) = [line.split() for line in text.splitlines() if "pytorch-expandable" in line]
    assert row[:3] == ["pytorch-expandable", "6.00", "GiB"]
    assert ("the screen is too narrow for: us/op" in text) == (width < 70)
    assert max(map(len, text.splitlines())) <= width


def test_more_allocators_than_fit_side_by_side_go_below_one_another():
    names = [f"an-allocator-{number}" for number in range(9)]
    text = printed([make_run(trace, name) for trace in ("one", "two") for name in names], width=80)
    assert "…" not in text
    heads = [line.split()[1:] for line in text.splitlines() if line.startswith(" fragmentation ")]
    assert len(heads) > 1
    heads = [name for some in heads for name in some]
    assert heads == names


def test_no_runs_print_nothing():
    assert printed([]) == ""


@given(st.lists(runs(), max_size=5))
def test_any_names_and_figures_print_and_steer_no_terminal(some):
    text = printed(some)
    assert all(character.isprintable() or character == "\n" for character in text)
