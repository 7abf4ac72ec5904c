"""Files whose fields hold anything: what is read can be written and reads back equal, or it is one error."""

from __future__ import annotations

import csv
import pickle
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.errors import PlanningError, TraceError
from smartpool.planner import IntervalSet, plan, read_csv, write_csv
from smartpool.planner.pieces import Pieces
from smartpool.trace import Trace, read_any
from smartpool.trace.exporters import write_any

EVENTS = [
    ["op", "id", "size", "stream", "t_us", "address", "site"],
    ["allocate", "0", "512", "0", "0", "0x7f00", "a.py:1 f < b.py:2 g"],
    ["0", "1", "64", "1", "5", "0x8000", ""],
    ["free", "0", "512", "0", "9", "0x7f00", "a.py:1 f < b.py:2 g"],
]
LOG = [
    ["Thread", "Time", "Action", "Pointer", "Size", "Stream"],
    ["1", "10:00:00.000001", "allocate", "0x7f00", "512", "0"],
    ["2", "10:00:00.000002", "allocate", "0x7f80", "1024", "(nil)"],
    ["1", "10:00:01.5", "free", "0x7f00", "512", "0"],
    ["1", "10:00:01.6", "allocate failure", "(nil)", "99", "0"],
]
INTERVALS = [
    ["id", "lower", "upper", "size", "alignment", "priority", "gaps", "fixed_offset", "offset"],
    ["a", "0", "10", "8", "4", "1", "2-8", "", "0"],
    ["b", "2", "8", "8", "1", "0", "", "0", "0"],
    ["c", "9", "12", "6", "3", "", "10-11@0:2", "", "9"],
]
SNAPSHOT = {
    "segments": [
        {
            "device": 0, "address": 4096, "stream": 0,
            "blocks": [
                {"size": 64, "state": "active_allocated", "requested_size": 60, "frames": []},
                {"size": 64, "state": "active_allocated", "history": [{"real_size": 9, "frames": []}]},
            ],
        }
    ],
    "device_traces": [
        [
            {"action": "alloc", "addr": 8192, "size": 64, "stream": 0, "time_us": 5,
             "frames": [{"filename": "a.py", "line": 1, "name": "f"}]},
            {"action": "free_requested", "addr": 4096, "size": 60, "stream": 7, "time_us": 9, "frames": []},
        ]
    ],
}  # fmt: skip

SOME = [
    "",
    "0",
    "1",
    "-1",
    "7",
    "512",
    "allocate",
    "free",
    "(nil)",
    "0x10",
    "1_0",
    "1e3",
    "٣",
    "nan",
    "0-1",
    "@",
    " ",
]
CELLS = (
    st.sampled_from(SOME)
    | st.integers(-(1 << 64), 1 << 64).map(str)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def tables(draw, table):
    """The table with some of its cells changed, and perhaps a row more or less."""
    rows = [list(row) for row in table]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        rows[row][draw(st.integers(0, len(rows[row]) - 1))] = draw(CELLS)
    if draw(st.booleans()):
        rows.insert(draw(st.integers(0, len(rows))), list(draw(st.sampled_from(rows))))
    if draw(st.booleans()):
        del rows[draw(st.integers(0, len(rows) - 1))]
    return rows


def places(document, at=()):
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


@st.composite
def snapshots(draw):
    document = pickle.loads(pickle.dumps(SNAPSHOT))
    for _ in range(draw(st.integers(0, 2))):
        *parents, last = draw(st.sampled_from(sorted(places(document), key=str)))
        entry = document
        for key in parents:
            entry = entry[key]
        if isinstance(entry, dict) and draw(st.booleans()):
            del entry[last]
        else:
            entry[last] = draw(PLAIN)
    return document


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def is_read_back(trace, folder):
    """Check that what each format keeps comes back."""
    trace.check()
    again = {name: read_any(write(trace, folder / f"again{name}")) for name in (".npz", ".csv")}
    assert again[".npz"] == trace
    with suppress(TraceError):  # blocks that are live at the end may overlap, and a snapshot cannot show that
        again[".pickle"] = read_any(write(trace, folder / "again.pickle"))
    stacks = [trace.sites[site] if site >= 0 else "" for site in trace.site] if trace.sites else []
    for name in again.keys() - {".npz"}:
        for column in ("op", "size", "t_us"):
            assert np.array_equal(getattr(again[name], column), getattr(trace, column))
        if stacks:
            assert [again[name].sites[site] if site >= 0 else "" for site in again[name].site] == stacks
    assert again[".csv"].columns().keys() == trace.columns().keys()


def write(trace, path):
    write_any(trace, path)
    return path


def outcome(read, path):
    """Return what was read; None when it was refused, as it should be, in one message that names the file."""
    try:
        return read(path)
    except (TraceError, PlanningError) as error:
        told = str(error)
    assert path.name in told
    assert len(told) < 1500
    return None


@pytest.mark.parametrize("table", [EVENTS, LOG], ids=["events", "log"])
@given(data=st.data())
@settings(max_examples=150)
def test_tables_of_events(tmp_path_factory, table, data):
    path = tmp_path_factory.mktemp("any") / "x.csv"
    write_table(path, data.draw(tables(table)))
    trace = outcome(read_any, path)
    if trace is not None:
        is_read_back(trace, path.parent)


@given(document=snapshots(), protocol=st.integers(2, 5))
@settings(max_examples=150)
def test_snapshots(tmp_path_factory, document, protocol):
    path = tmp_path_factory.mktemp("any") / "x.pickle"
    path.write_bytes(pickle.dumps(document, protocol))
    trace = outcome(read_any, path)
    if trace is not None:
        is_read_back(trace, path.parent)


@given(data=st.data())
@settings(max_examples=150)
def test_tables_of_intervals(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "x.csv"
    write_table(path, data.draw(tables(INTERVALS)))
    intervals = outcome(read_csv, path)
    if intervals is None:
        return
    found = plan(intervals, time_limit=0.02)
    write_csv(path, intervals, found.offsets)
    again = read_csv(path)
    for name in ("start", "end", "size", "alignment", "priority", "fixed", "id"):
        assert np.array_equal(getattr(again, name), getattr(intervals, name))
    for name in Pieces.__slots__:
        assert np.array_equal(getattr(again.pieces(), name), getattr(intervals.pieces(), name))


@given(
    columns=st.fixed_dictionaries(
        {name: st.lists(st.integers(-2, 3) | st.integers(), max_size=4) for name in ("op", "id", "size")},
        optional={
            name: st.lists(st.integers(-1, 9), max_size=4) for name in ("stream", "t_us", "address", "site")
        },
    ),
    meta=st.dictionaries(st.sampled_from(["name", "sites", "x"]), PLAIN, max_size=3),
)
@settings(max_examples=150)
def test_columns(tmp_path_factory, columns, meta):
    path = tmp_path_factory.mktemp("any") / "x.npz"
    trace = None
    try:
        trace = Trace.from_columns("x.npz", **columns, meta=meta)
    except TraceError as error:
        assert "x.npz" in str(error)  # noqa: PT017 - most are refused, some are not
    if trace is not None:
        trace.save(path)
        assert Trace.load(path) == trace


@pytest.mark.parametrize("table", [EVENTS, LOG], ids=["events", "log"])
def test_the_tables_are_good(tmp_path, table):
    write_table(tmp_path / "x.csv", table)
    assert len(read_any(tmp_path / "x.csv")) == 3


def test_the_intervals_and_the_snapshot_are_good(tmp_path):
    write_table(tmp_path / "x.csv", INTERVALS)
    assert isinstance(read_csv(tmp_path / "x.csv"), IntervalSet)
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(SNAPSHOT))
    assert read_any(tmp_path / "x.pickle").size.tolist() == [60, 9, 64, 60]
