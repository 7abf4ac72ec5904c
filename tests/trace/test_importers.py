from __future__ import annotations

import csv
import gzip
import pickle
import re
import sys
import tracemalloc
from collections import Counter
from itertools import accumulate
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool import files
from smartpool.errors import (
    DriverNotInstalledError,
    TraceError,
    TraceFormatError,
    TraceInconsistentError,
    UnsafePickleError,
)
from smartpool.trace import (
    CupyMemoryHook,
    Recorder,
    Trace,
    bundled,
    from_rmm_log,
    from_torch_snapshot,
    read_any,
)

DATA = Path(__file__).parents[1] / "data"
SNAPSHOT = DATA / "inputs" / "torch_snapshot.pickle"
RMM_LOG = DATA / "inputs" / "rmm_log.csv"


@st.composite
def histories(draw):
    """A program as (allocates, slot, size, stream): slots come again after they were freed."""
    live, events = {}, []
    for _ in range(draw(st.integers(0, 30))):
        slot = draw(st.integers(0, 9))
        if slot in live:
            size, stream = live.pop(slot)
            events.append((False, slot, size, stream))
        else:
            live[slot] = draw(st.integers(1, 2**40)), draw(st.sampled_from([0, 0x55D0, 0x66E0]))
            events.append((True, slot, *live[slot]))
    return events


def live_curve(events):
    total, curve = 0, []
    for allocates, _, size, _ in events:
        total += size if allocates else -size
        curve.append(total)
    return curve


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


HEADER = "Thread,Time,Action,Pointer,Size,Stream\n"
HOUR_US = 60 * 60 * 1_000_000
DAY_US = 24 * HOUR_US


def clock(time_us):
    """The time of day as RMM writes it."""
    seconds, fraction = divmod(time_us % DAY_US, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"


def write_log(path, *lines, end="\n"):
    path.write_text(HEADER + "\n".join(lines) + end)
    return path


class TestRmmLog:
    def test_of_a_real_program(self):
        trace = from_rmm_log(RMM_LOG)
        lines = [line.split(",") for line in RMM_LOG.read_text().splitlines()[1:]]
        signed = np.cumsum([int(line[4]) * (1 if line[2] == "allocate" else -1) for line in lines])
        assert np.array_equal(trace.live_bytes(), signed)
        assert trace.meta == {
            "name": "rmm_log",
            "recorder": "rmm",
            "failed_allocations": 0,
            "sizes_that_differ": 0,
            "streams": 1,
            "settled": {},
        }
        first, last = lines[0][1], lines[-1][1]
        assert trace.t_us[-1] == round((float(last[6:]) - float(first[6:])) * 1e6)

    @given(histories())
    def test_synthesised_log_gives_the_same_live_curve(self, tmp_path_factory, events):
        lines = [
            f"{slot},06:37:24.{row:06},{'allocate' if allocates else 'free'},{slot:#x},{size},{stream:x}"
            for row, (allocates, slot, size, stream) in enumerate(events)
        ]
        trace = from_rmm_log(write_log(tmp_path_factory.mktemp("log") / "x.csv", *lines))
        assert trace.live_bytes().tolist() == live_curve(events)
        assert trace.t_us.tolist() == list(range(len(events)))

    def test_midnight_passes_and_old_fractions_are_read(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,23:59:59:999000,allocate,0x1,8,0x0",
            "2,00:00:00:001,allocate,0x2,8,0x0",
            "2,00:00:00.000500,free,0x2,8,0x0",
        )
        assert from_rmm_log(path).t_us.tolist() == [0, 2000, 2000]

    def test_failed_allocations_are_counted(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.000000,allocate failure,(nil),99,0",
            "1,00:00:00.000001,allocate,0x2,8,0",
            "1,00:00:00.000002,free,0x2,9,0",
        )
        trace = from_rmm_log(path)
        assert (len(trace), trace.meta["failed_allocations"], trace.meta["sizes_that_differ"]) == (2, 1, 1)
        assert trace.size.tolist() == [8, 8]

    def test_requests_of_no_bytes(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.000000,allocate,(nil),0,0",
            "1,00:00:00.000000,allocate,(nil),0,0",
            "1,00:00:00.000002,free,(nil),0,0",
            "1,00:00:00.000002,free,(nil),0,0",
        )
        assert from_rmm_log(path).meta["settled"] == {"empty_requests": 2}

    def test_free_of_what_is_not_live_is_an_error_or_counted(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.000000,allocate,0x2,8,0",
            "1,00:00:00.000001,free,0x2,8,0",
            "1,00:00:00.000002,free,0x2,8,0",
        )
        with pytest.raises(
            TraceInconsistentError, match=r"x\.csv, line 4: frees 0x2, which.*drop_unknown_frees=True"
        ):
            from_rmm_log(path)
        trace = from_rmm_log(path, drop_unknown_frees=True)
        assert (len(trace), trace.meta["settled"]) == (2, {"unknown_frees": 1})
        assert read_any(path, drop_unknown_frees=True) == trace

    @pytest.mark.parametrize(
        "line",
        [
            "1,00:00:00.000000,allocate,0x2,8",
            "1,00:00:00.000000,allocate,0x2,8,0,0",
            "1,00:00:00.000000,resize,0x2,8,0",
            "1,00:00:00.000000,allocate,0x2,-8,0",
            "1,00:00:00.000000,allocate,0x2,8.5,0",
            "1,00:00:00.000000,allocate,0x2,9999999999999999999,0",
            "1,00:00:00,allocate,0x2,8,0",
            "1,yesterday,allocate,0x2,8,0",
            "1,24:00:00.000000,allocate,0x2,8,0",
            "1,1634567890.,allocate,0x2,8,0",
            "1,00:00:00.000000,allocate,,8,0",
            "1,00:00:00.000000,allocate,0x2,8,",
            "1,00:00:00.000000,allocate,0x2,8,0x",
            "1,00:00:00.000000,allocate,0x2,8,(nil",
            "1,00:00:00.000000,free,0x2,,0",
            "1,00:00:00.000000,allocate,0x2,٨,0",
            "1,00:00:00.000000,allocate,0x2,1_000,0",
            "1,00:00:00.000000,allocate,0x2,8,0" + "0" * 2000,
            "1,00:00:00.0000",
            "é",
            "\0",
        ],
    )
    def test_damaged_lines_are_named(self, tmp_path, line):
        path = write_log(tmp_path / "x.csv", "1,00:00:00.000000,allocate,0x1,8,0", line)
        with pytest.raises(TraceFormatError, match=r"x\.csv, line 3: expected") as caught:
            from_rmm_log(path)
        assert len(str(caught.value)) < 400 + len(str(path))

    def test_other_files_are_told_apart(self, tmp_path):
        path = tmp_path / "x.csv"
        path.write_text("id,lower,upper,size\n")
        with pytest.raises(TraceFormatError, match="expected the header 'Thread,Time"):
            from_rmm_log(path)
        path.write_text("")
        with pytest.raises(TraceFormatError, match="got an empty file"):
            from_rmm_log(path)
        path.write_text(HEADER)
        assert len(from_rmm_log(path)) == 0

    @given(
        st.integers(0, DAY_US - 1),
        st.lists(st.integers(-HOUR_US, HOUR_US) | st.integers(0, 21 * HOUR_US), max_size=20),
    )
    def test_times_of_day_are_the_times_that_they_were(self, tmp_path_factory, begin, steps):
        """Threads write in disorder, programs pause for the better part of a day, and midnights pass."""
        true = [begin, *(begin + step for step in accumulate(steps))]
        lines = [f"1,{clock(time)},allocate,{row + 1:#x},8,0x0" for row, time in enumerate(true)]
        trace = from_rmm_log(write_log(tmp_path_factory.mktemp("log") / "x.csv", *lines))
        assert trace.t_us.tolist() == [time - begin for time in accumulate(true, max)]

    @given(histories(), st.data())
    def test_logs_that_were_saved_again_are_the_same(self, tmp_path_factory, events, data):
        folder = tmp_path_factory.mktemp("log")
        rows = [
            [
                "7",
                clock(row),
                "allocate" if allocates else "free",
                f"0x{slot + 1:x}",
                str(size),
                f"0x{stream:x}",
            ]
            for row, (allocates, slot, size, stream) in enumerate(events)
        ]
        plain = write_log(folder / "x.csv", *map(",".join, rows))
        header = HEADER.strip().split(",")
        if data.draw(st.booleans()):  # of several adaptors on one sink
            rows.insert(data.draw(st.integers(0, len(rows))), header)
        table = [header, *rows]
        if data.draw(st.booleans()):
            table = [["" if row == header else str(at), *row] for at, row in enumerate(table)]
        order = data.draw(st.permutations(range(len(table[0]))))
        saved = folder / "saved" / "x.csv"
        saved.parent.mkdir()
        mark, end = data.draw(st.sampled_from(["", "\ufeff"])), data.draw(st.sampled_from(["\n", "\r\n"]))
        with saved.open("w", newline="", encoding="utf-8") as file:
            file.write(mark)
            quoting = data.draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
            csv.writer(file, quoting=quoting, lineterminator=end).writerows(
                [row[at] for at in order] for row in table
            )
        if data.draw(st.booleans()):
            saved.write_bytes(gzip.compress(saved.read_bytes()))
        trace = read_any(saved)
        assert trace == from_rmm_log(plain) == read_any(plain)
        assert trace.address.tolist() == [slot + 1 for _, slot, _, _ in events]

    def test_seconds_since_1970_and_the_words_of_the_guide(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,1634567890.123456,allocate,0x7f8a40000000,1024,0x7f8a38001020",
            "1,1634654290.5,deallocate,0x7f8a40000000,1024,0x7f8a38001020",
        )
        trace = from_rmm_log(path)
        assert (trace.op.tolist(), trace.t_us.tolist()) == ([0, 1], [0, 86_400_376_544])

    def test_nothing_is_dropped_and_every_failure_is_counted(self, tmp_path):
        path = write_log(
            tmp_path / "x.csv",
            "1,00:00:00.0,free,(nil),0,0x0",
            "1,00:00:00.0,allocate,0x10,8,0x0",
            "1,00:00:00.1,free,0x0,0,(nil)",
            f"1,00:00:00.2,allocate failure,(nil),{2**64 - 1},0",
            f"1,00:00:00.3,allocate failure,(nil),{10**30},0",
            "1,00:00:00.4,free,0x10,8,0",
        )
        trace = from_rmm_log(path)
        assert (trace.op.tolist(), trace.streams, trace.meta["failed_allocations"]) == ([0, 1], 1, 2)
        assert trace.meta["settled"] == {}
        write_log(path, "1,00:00:00.0,free,(nil),8,0")
        with pytest.raises(TraceInconsistentError, match="frees 0x0, which is not live"):
            from_rmm_log(path)

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (
                "1,00:00:61.0,allocate,0x2,8,0",
                "expected the time as HH:MM:SS.ffffff or as seconds",
            ),
            (
                "1,00:00:01.0,resize,0x2,8,0",
                "expected the action allocate, allocate failure, free",
            ),
            ("1,00:00:01.0,free,nil,8,0", "expected the pointer as 0x..., (nil) or digits, got 'nil'"),
            ("1,00:00:01.0,free,0x2,8.0,0", "expected the size as bytes in digits, below 2**62, got '8.0'"),
            ("1,00:00:01.0,free,0x2,8,", "expected the stream as 0x..., (nil) or digits, got ''"),
            (
                "1,00:00:01.0,free,0x2,8",
                "expected 6 fields, as in the header, got 5: '1,00:00:01",
            ),
        ],
    )
    def test_the_field_that_is_wrong_is_named(self, tmp_path, line, said):
        with pytest.raises(TraceFormatError, match=re.escape(f"line 2: {said}")):
            from_rmm_log(write_log(tmp_path / "x.csv", line))

    @given(st.data())
    @settings(max_examples=150)
    def test_damaged_logs_give_a_trace_or_one_error(self, tmp_path_factory, data):
        whole = HEADER + "1,00:00:00.000000,allocate,0x2,8,0\n1,00:00:00.000001,free,0x2,8,0\n"
        damaged = bytearray(whole.encode()[: data.draw(st.integers(1, len(whole)))])
        for _ in range(data.draw(st.integers(0, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("fuzz") / "x.csv"
        path.write_bytes(damaged)
        try:
            from_rmm_log(path).check()
            message = str(path)
        except TraceError as error:
            message = str(error)
        assert str(path) in message


class TestReadAny:
    def test_by_content_and_not_by_name(self, tmp_path):
        for source, expected in (
            (bundled("multistream-mix"), Trace.load(bundled("multistream-mix"))),
            (SNAPSHOT, from_torch_snapshot(SNAPSHOT)),
            (RMM_LOG, from_rmm_log(RMM_LOG)),
        ):
            path = tmp_path / source.stem
            path.write_bytes(source.read_bytes())
            assert read_any(path) == expected

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "got an empty file"),
            (b"id,lower,upper,size\n0,0,1,8\n", "got intervals as CSV, which are for 'smartpool plan'"),
            (b"\xef\xbb\xbfbuffer,start,end,size\n", "which are for 'smartpool plan'"),
            (b'{"format": "smartpool-out-of-memory"}', "is for 'smartpool report'"),
            (b"SQLite format 3\0" + bytes(90), "got an SQLite database; write the snapshot with"),
            (pickle.dumps({"device_traces": []}, 0), "a pickle of protocol 0 or 1"),
            (pickle.dumps([{"device": 0}], 1), "a pickle of protocol 0 or 1"),
            (b"once upon a time", "got a file that begins with b'once upon a time'"),
        ],
    )
    def test_what_is_for_others_is_told(self, tmp_path, content, said):
        path = tmp_path / "x"
        for data in (content, gzip.compress(content)):
            path.write_bytes(data)
            with pytest.raises(TraceFormatError, match=re.escape(said)):
                read_any(path)

    def test_an_option_that_a_format_has_no_use_for_is_refused(self, tmp_path):
        events = tmp_path / "x.csv"
        events.write_text("op,id,size\nallocate,0,8\nfree,0,8\n")
        for path in (bundled("multistream-mix"), SNAPSHOT, events):
            with pytest.raises(TraceError, match="expected an RMM log where unknown frees are to be dropped"):
                read_any(path, drop_unknown_frees=True)
        for path in (bundled("multistream-mix"), RMM_LOG, events):
            with pytest.raises(TraceError, match="expected a PyTorch snapshot where a device is named"):
                read_any(path, device=0)

    def test_device_goes_to_the_snapshot(self):
        assert read_any(SNAPSHOT, device=0).meta["device"] == 0
        with pytest.raises(TraceError, match=r"expected device .*\[0\], got 1"):
            read_any(SNAPSHOT, device=1)

    @given(st.binary(max_size=64))
    def test_anything_else_is_one_error(self, tmp_path_factory, content):
        path = tmp_path_factory.mktemp("any") / "x"
        path.write_bytes(content)
        with pytest.raises(TraceFormatError):
            read_any(path)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_any(tmp_path / "none")

    def test_files_without_an_end(self):
        for reader in (from_torch_snapshot, from_rmm_log, Trace.load, read_any):
            with pytest.raises(TraceFormatError):
                reader("/dev/zero")

    def test_files_that_are_too_long(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
        with pytest.raises(TraceFormatError, match="expected at most 1000 B, got 159 KiB"):
            from_torch_snapshot(SNAPSHOT)
        with pytest.raises(TraceFormatError, match="expected at most 1000 B"):
            from_rmm_log(RMM_LOG)


class TestCupyMemoryHook:
    """CuPy's protocol as its documentation gives it; `tests/gpu/test_cupy_hook.py` asks CuPy itself."""

    @pytest.fixture
    def cuda(self, monkeypatch):
        class MemoryHook:
            name = "MemoryHook"

            def __init_subclass__(cls):
                known = {
                    f"{what}_{when}process"
                    for what in ("alloc", "malloc", "free")
                    for when in ("pre", "post")
                }
                assert {name for name in vars(cls) if name.endswith("process")} <= known

            def malloc_preprocess(self, **event):
                pass

            def free_postprocess(self, **event):
                pass

        cuda = SimpleNamespace(MemoryHook=MemoryHook, stream=0)
        cuda.get_current_stream = lambda: SimpleNamespace(ptr=cuda.stream)
        module = ModuleType("cupy")
        module.cuda = cuda
        monkeypatch.setitem(sys.modules, "cupy", module)
        return cuda

    @staticmethod
    def malloc(hook, pointer, size, device=0):
        event = {"device_id": device, "size": size, "mem_size": size + 511 & -512}
        hook.malloc_preprocess(**event)
        hook.malloc_postprocess(**event, mem_ptr=pointer, pmem_id=id(event) if pointer else 0)

    @staticmethod
    def free(hook, pointer, size, device=0):
        event = {"device_id": device, "mem_size": size + 511 & -512, "mem_ptr": pointer, "pmem_id": 1}
        hook.free_preprocess(**event)
        hook.free_postprocess(**event)

    def test_records_what_was_asked_for(self, cuda):
        recorder = Recorder()
        hook = CupyMemoryHook(recorder)
        assert isinstance(hook, cuda.MemoryHook)
        assert hook.name != cuda.MemoryHook.name
        self.malloc(hook, 0x1000, 100)
        cuda.stream = 0x55
        self.malloc(hook, 0x2000, 200)
        self.malloc(hook, 0, 10**15)  # failed
        self.free(hook, 0, 0)  # of an array of no bytes
        self.free(hook, 0x1000, 100)
        trace = recorder.trace()
        assert (trace.op.tolist(), trace.size.tolist()) == ([0, 0, 1], [100, 200, 100])
        assert trace.stream.tolist() == [0, 1, 0]  # freed to the stream of the allocation
        assert trace.meta["settled"] == {}

    def test_one_device_of_several(self, cuda):
        recorder = Recorder()
        hook = CupyMemoryHook(recorder, device=1)
        self.malloc(hook, 0x1000, 100, device=0)
        self.malloc(hook, 0x2000, 200, device=1)
        self.free(hook, 0x1000, 100, device=0)
        assert recorder.trace().size.tolist() == [200]

    def test_without_cupy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(DriverNotInstalledError, match="expected CuPy to be installed"):
            CupyMemoryHook(Recorder())

    def test_cupy_is_not_imported_before(self):
        source = Path(sys.modules[CupyMemoryHook.__module__].__file__).read_text()
        assert not re.search(r"^(import|from) cupy", source, re.MULTILINE)


def test_hostile_snapshot_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was_run",)

    path = write_snapshot(tmp_path / "x.pickle", [[entry(True, 0, 8, 0), Evil()]])
    for reader in (from_torch_snapshot, read_any):
        with pytest.raises(UnsafePickleError, match="nothing was run"):
            reader(path)
    assert not (tmp_path / "was_run").exists()
