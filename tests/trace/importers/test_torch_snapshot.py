from __future__ import annotations

import gzip
import pickle
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import SNAPSHOT, histories, live_curve

from smartpool.errors import (
    TraceError,
    TraceFormatError,
    UnsafePickleError,
)
from smartpool.trace import (
    from_torch_snapshot,
    read_any,
)


def entry(allocates, slot, size, stream, *, action=None, time_us=7):
    action = action or ("alloc" if allocates else "free_requested")
    address = 0x7F0000000000 + slot * 2**41
    return {
        "action": action,
        "addr": address,
        "size": size,
        "stream": stream,
        "time_us": time_us,
        "frames": [],
    }


def segments(events, *, device=0):
    """The state after `events`, as a snapshot shows it: one segment a block, the freed ones inactive."""
    last = {event[1]: event for event in events}
    return [
        {
            "device": device,
            "address": 0x7F0000000000 + slot * 2**41,
            "stream": stream,
            "segment_pool_id": (0, 0),
            "blocks": [
                {
                    "address": 0x7F0000000000 + slot * 2**41,
                    "size": size + 511 & -512,
                    "requested_size": size,
                    "state": "active_allocated" if allocates else "inactive",
                }
            ],
        }
        for allocates, slot, size, stream in last.values()
    ]


def write_snapshot(path, traces, state=(), protocol=None):
    path.write_bytes(pickle.dumps({"segments": list(state), "device_traces": traces}, protocol=protocol))
    return path


class TestTorchSnapshot:
    def test_of_a_real_program(self):
        trace = from_torch_snapshot(SNAPSHOT)
        raw = pickle.loads(SNAPSHOT.read_bytes())
        wanted = [e for e in raw["device_traces"][0] if e["action"] in ("alloc", "free_requested")]
        signed = np.cumsum([e["size"] if e["action"] == "alloc" else -e["size"] for e in wanted])
        assert trace.name == "torch_snapshot"
        assert np.array_equal(trace.live_bytes(), signed)
        assert trace.t_us.tolist() == [e["time_us"] - wanted[0]["time_us"] for e in wanted]
        requested = sum(
            block["requested_size"]
            for segment in raw["segments"]
            for block in segment["blocks"]
            if block["state"] == "active_allocated"
        )
        assert trace.live_bytes()[-1] == requested  # the snapshot's own account of the end
        assert trace.meta["actions"]["free_completed"] == 213
        assert (trace.meta["initial_allocations"], trace.meta["settled"]) == (0, {})

    @given(events=histories().filter(bool), protocol=st.integers(2, 5))
    def test_synthesised_snapshot_gives_the_same_live_curve(self, tmp_path_factory, events, protocol):
        entries = [entry(*event) for event in events]
        path = write_snapshot(
            tmp_path_factory.mktemp("s") / "x.pickle", [entries], segments(events), protocol
        )
        trace = from_torch_snapshot(path)
        assert trace.live_bytes().tolist() == live_curve(events)
        assert trace.meta["initial_allocations"] == 0
        numbers = {stream: i for i, stream in enumerate(dict.fromkeys(event[3] for event in events))}
        assert trace.stream.tolist() == [numbers[event[3]] for event in events]

    @given(events=histories().filter(lambda events: len(events) > 1), data=st.data())
    def test_a_history_that_begins_late_has_the_same_live_curve_from_there(
        self, tmp_path_factory, events, data
    ):
        cut = data.draw(st.integers(1, len(events) - 1))
        entries = [entry(*event) for event in events[cut:]]
        path = write_snapshot(tmp_path_factory.mktemp("s") / "x.pickle", [entries], segments(events))
        trace = from_torch_snapshot(path)
        initial = trace.meta["initial_allocations"]
        assert trace.live_bytes()[initial:].tolist() == live_curve(events)[cut:]
        assert (trace.op[:initial] == 0).all()
        without = from_torch_snapshot(path, include_initial=False)
        unknown = without.meta["settled"].get("unknown_frees", 0)
        assert len(without) + unknown == len(events) - cut

    def test_lifetimes_end_when_the_free_is_requested(self, tmp_path):
        made = [
            entry(True, 0, 8, 0, time_us=1),
            entry(False, 0, 8, 0, time_us=2),
            entry(True, 1, 9, 0, time_us=3),
        ]
        done = entry(False, 0, 8, 0, action="free_completed", time_us=4)
        trace = from_torch_snapshot(write_snapshot(tmp_path / "x", [[*made, done]]))
        assert (trace.op.tolist(), trace.t_us.tolist()) == ([0, 1, 0], [0, 1, 2])
        assert trace.meta["actions"] == {"alloc": 2, "free_requested": 1, "free_completed": 1}

    def test_other_actions_are_counted_and_ignored(self, tmp_path):
        extra = [{"action": "oom", "device_free": 5}, {"action": "invented"}]
        trace = from_torch_snapshot(write_snapshot(tmp_path / "x", [[*extra, entry(True, 0, 8, 0)]]))
        assert (len(trace), trace.meta["actions"]) == (1, {"alloc": 1, "oom": 1, "other": 1})

    def test_blocks_without_addresses_lie_one_behind_the_other(self, tmp_path):
        blocks = [{"size": 512, "state": "inactive"}, {"size": 1024, "state": "active_allocated"}]
        state = [{"device": 0, "address": 4096, "blocks": blocks}]
        last = {**entry(True, 0, 8, 0), "addr": 1}
        trace = from_torch_snapshot(write_snapshot(tmp_path / "x", [[last]], state))
        assert trace.size.tolist() == [1024, 8]
        freed = {**entry(False, 0, 700, 0), "addr": 4608}
        trace = from_torch_snapshot(write_snapshot(tmp_path / "x", [[last, freed]], state))
        assert trace.size.tolist() == [700, 8, 700]

    def test_devices_are_chosen_by_number(self, tmp_path):
        first, second = [entry(True, 0, 8, 0)], [entry(True, 0, 9, 0), entry(True, 1, 9, 0)]
        path = write_snapshot(tmp_path / "x", [[], first, second], segments([(True, 7, 5, 0)], device=2))
        assert from_torch_snapshot(path, device=1).size.tolist() == [8]
        assert from_torch_snapshot(path, device=2).size.tolist() == [5, 9, 9]
        for device in (None, 0, 3, -1):
            with pytest.raises(
                TraceError, match=rf"expected device to be one of those .*\[1, 2\], got {device}"
            ):
                from_torch_snapshot(path, device=device)
        only = write_snapshot(tmp_path / "y", [[], first])
        assert from_torch_snapshot(only).meta["device"] == 1

    def test_what_pytorch_2_0_kept_under_history(self, tmp_path):
        frame = {"filename": "model.py", "line": 3, "name": "forward"}
        older = {"addr": 4096, "real_size": 9, "frames": []}
        blocks = [
            {
                "size": 1024,
                "state": "active_allocated",
                "history": [{"addr": 4096, "real_size": 600, "frames": [frame]}, older],
            },
            {"size": 512, "state": "active_allocated", "history": []},
            {"size": 512, "state": "inactive", "history": [older]},
        ]
        state = [{"device": 0, "address": 4096, "blocks": blocks}]
        trace = from_torch_snapshot(write_snapshot(tmp_path / "x", [[entry(True, 0, 8, 0)]], state))
        assert trace.size.tolist() == [600, 512, 8]
        assert (trace.sites, trace.site.tolist()) == (("model.py:3 forward",), [0, -1, -1])
        blocks[0]["history"][0]["real_size"] = "600"
        with pytest.raises(TraceFormatError, match="history: expected 'real_size' to be an integer"):
            from_torch_snapshot(write_snapshot(tmp_path / "x", [[entry(True, 0, 8, 0)]], state))

    @given(events=histories(), protocol=st.integers(2, 5), packed=st.booleans())
    def test_a_list_of_segments_is_what_is_live(self, tmp_path_factory, events, protocol, packed):
        path = tmp_path_factory.mktemp("s") / "x.pickle"
        data = pickle.dumps([*segments(events), *segments([(True, 0, 8, 0)], device=1)], protocol)
        path.write_bytes(gzip.compress(data) if packed else data)
        live = {}
        for allocates, slot, size, _ in events:
            live[slot] = size if allocates else 0
        expected = [size for _, size in sorted(live.items()) if size]
        if events:
            assert read_any(path, device=0).size.tolist() == expected
        assert read_any(path, device=1).size.tolist() == [8]

    def test_what_a_file_names_again_and_again_is_walked_once(self, tmp_path):
        """A segment costs a pickle two bytes when it comes again, and its blocks nothing at all."""
        blocks = [{"size": 512, "state": "inactive"}] * 3000
        segment = {"device": 0, "address": 4096, "blocks": blocks}
        path = write_snapshot(tmp_path / "x", [[entry(True, 0, 8, 0)]], [segment] * 3000)
        walked = Counter()

        def watch(frame, event, _):
            walked[frame.f_code.co_name] += event == "call"

        sys.setprofile(watch)
        try:
            trace = from_torch_snapshot(path)
        finally:
            sys.setprofile(None)
        assert trace.size.tolist() == [8]
        assert walked["_integer"] < 30_000
        others = [{**segment, "address": 4096 * at} for at in range(1, 9)]
        with pytest.raises(TraceFormatError, match="expected blocks of its own in every segment"):
            from_torch_snapshot(write_snapshot(tmp_path / "x", [[entry(True, 0, 8, 0)]], others))

    def test_stacks_take_no_more_memory_than_the_file_pays_for(self, tmp_path):
        """Each stack an object of its own, of one long name many times over."""
        frame = {"filename": "f" * 1900, "line": 1, "name": "n" * 1900}
        entries = [{**entry(True, slot, 8, 0), "frames": [frame] * 200} for slot in range(1000)]
        path = write_snapshot(tmp_path / "x", [entries])
        tracemalloc.start()
        try:
            trace = from_torch_snapshot(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(trace) == 1000
        assert peak < 50 * path.stat().st_size

    def test_history_was_never_switched_on(self, tmp_path):
        with pytest.raises(TraceError, match="_record_memory_history"):
            from_torch_snapshot(write_snapshot(tmp_path / "x", [[]]))

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ([], "expected a dictionary with 'device_traces'"),
            ({}, "expected a dictionary with 'device_traces'"),
            ("snapshot", "expected a dictionary with 'device_traces'"),
            ([5], "'segments' to be a list of dictionaries"),
            ([{"address": 4096, "blocks": []}], "'device' to be an integer.*got None"),
            ({"device_traces": 5}, "expected a dictionary with 'device_traces'"),
            ({"device_traces": [[5]]}, "event 0: expected a dictionary with an 'action'"),
            ({"device_traces": [[{"action": 5}]]}, "event 0: expected a dictionary with an 'action'"),
            (
                {"device_traces": [[{"action": "alloc"}]]},
                "event 0: expected 'addr' to be an integer.*got None",
            ),
            ({"device_traces": [[{"action": "alloc", "addr": 1, "size": -1}]]}, "'size'.*got -1"),
            ({"device_traces": [[{"action": "alloc", "addr": {}, "size": 1}]]}, "'addr'.*got a dict"),
            ({"device_traces": [[{"action": "alloc", "size": 1}]]}, "'addr'.*got None"),
            ({"device_traces": [[{"action": "alloc", "addr": True, "size": 1}]]}, "'addr'.*got True"),
            (
                {"device_traces": [[{"action": "alloc", "addr": 1, "size": 2**62}]]},
                "'size'.*got 4611686018427387904",
            ),
            (
                {"device_traces": [[{"action": "alloc", "addr": 1, "size": "x" * 10**6}]]},
                r"'size'.*got 'x{60}'$",
            ),
            ({"device_traces": [[entry(True, 0, 8, 0)]], "segments": 5}, "'segments' to be a list"),
            ({"device_traces": [[entry(True, 0, 8, 0)]], "segments": [5]}, "'segments' to be a list"),
            ({"device_traces": [[entry(True, 0, 8, 0)]], "segments": [{"device": 0}]}, "'address'"),
            (
                {
                    "device_traces": [[entry(True, 0, 8, 0)]],
                    "segments": [{"device": 0, "address": 1, "blocks": {}}],
                },
                "'blocks' to be a list",
            ),
        ],
    )
    def test_pickles_that_are_no_snapshot(self, tmp_path, content, match):
        path = tmp_path / "x.pickle"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(TraceFormatError, match=match) as caught:
            from_torch_snapshot(path)
        assert str(caught.value).startswith(str(path))
        assert len(str(caught.value)) < 500

    def test_huge_lists_that_are_one_list_many_times(self, tmp_path):
        one = [entry(True, 0, 8, 0)] * 1000
        path = write_snapshot(tmp_path / "x", [one] * 2000)
        assert len(from_torch_snapshot(path, device=1999)) == 1999
        with pytest.raises(TraceError) as caught:
            from_torch_snapshot(path)
        assert len(str(caught.value)) < 1000

    def test_values_that_would_take_for_ever_to_print(self, tmp_path):
        wide = []
        for _ in range(90):
            wide = [wide, wide]
        path = write_snapshot(tmp_path / "x", [[{"action": "alloc", "addr": wide}]])
        with pytest.raises(TraceFormatError, match=r"'addr'.*got a list"):
            from_torch_snapshot(path)

    @given(st.data())
    @settings(max_examples=100, deadline=None)
    def test_damaged_snapshots_give_a_trace_or_one_error(self, tmp_path_factory, data):
        events = [(True, 0, 8, 0), (True, 1, 9, 5), (False, 0, 8, 0)]
        whole = pickle.dumps(
            {"segments": segments(events), "device_traces": [[entry(*event) for event in events]]}
        )
        damaged = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
        for _ in range(data.draw(st.integers(0, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("fuzz") / "x.pickle"
        path.write_bytes(damaged)
        try:
            from_torch_snapshot(path).check()
            message = str(path)
        except TraceError as error:
            message = str(error)
        assert str(path) in message


def test_hostile_snapshot_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was_run",)

    path = write_snapshot(tmp_path / "x.pickle", [[entry(True, 0, 8, 0), Evil()]])
    for reader in (from_torch_snapshot, read_any):
        with pytest.raises(UnsafePickleError, match="nothing was run"):
            reader(path)
    assert not (tmp_path / "was_run").exists()
