from __future__ import annotations

import pickle
import pickletools

import numpy as np
import pytest
from drawn import SNAPSHOT, same_columns, stacks, traces
from hypothesis import given

from smartpool.errors import TraceError
from smartpool.trace import Trace, bundled, from_torch_snapshot, read_any
from smartpool.trace.exporters import (
    to_torch_snapshot,
)
from smartpool.trace.exporters.torch_snapshot import PAGE_BYTES, addresses_of, snapshot_of


class TestTorchSnapshot:
    @given(trace=traces())
    def test_round_trip(self, tmp_path_factory, trace):
        path = tmp_path_factory.mktemp("torch") / "t.pickle"
        to_torch_snapshot(trace, path)
        again = read_any(path)
        assert same_columns(trace, again)
        assert np.array_equal(again.address[trace.lifetimes().start], addresses_of(trace))
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
