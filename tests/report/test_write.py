from __future__ import annotations

import json

import pytest
from dumps import DUMP

from smartpool import SmartPool
from smartpool.errors import InvalidRequestError, TraceFormatError
from smartpool.report import report
from smartpool.trace import Trace

TRACE = {"op": [0, 1], "id": [0, 0], "size": [3 << 20, 3 << 20]}


def test_of_a_pool_that_records(tmp_path):
    with SmartPool("model:1GiB") as pool:
        with pytest.raises(InvalidRequestError, match="start_recording"):
            report(pool, tmp_path / "x.html")
        pool.start_recording()
        pool.free(pool.malloc(1 << 20))
        page = report(pool, tmp_path / "x.html", against=["cupy"]).read_text(encoding="utf-8")
    assert "recording of model:1GiB" in page
    assert "as recorded" in page


def test_of_a_trace_and_of_its_file(tmp_path):
    trace = Trace.from_columns("mine", **TRACE)
    trace.save(tmp_path / "mine.npz")
    one = report(trace, tmp_path / "one.html", against=[], title="T")
    other = report(tmp_path / "mine.npz", tmp_path / "other.html", against=[], title="T")
    assert one.read_bytes() == other.read_bytes()


def test_of_a_dump(tmp_path):
    (tmp_path / "dump.json").write_text(json.dumps(DUMP))
    page = report(tmp_path / "dump.json", tmp_path / "x.html").read_text(encoding="utf-8")
    assert "What would help" in page


def test_of_something_else(tmp_path):
    (tmp_path / "x.txt").write_text("nothing of the kind")
    with pytest.raises(TraceFormatError):
        report(tmp_path / "x.txt", tmp_path / "x.html")
