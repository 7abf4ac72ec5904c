from __future__ import annotations

import json
from collections import defaultdict

from drawn import SNAPSHOT, traces
from hypothesis import given, settings

from smartpool.trace import from_torch_snapshot
from smartpool.trace.exporters import (
    to_chrome_trace,
)
from smartpool.trace.exporters.chrome import chrome_events


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
