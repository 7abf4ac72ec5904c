from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import OutOfMemoryError
from smartpool.trace.replay import Run, loop_seconds, replay, replay_passes
from smartpool.trace.trace import Trace

JSON_FIELDS = [
    "trace", "allocator", "device", "events", "streams", "peak_live_bytes", "peak_reserved_bytes",
    "fragmentation", "seconds", "driver_seconds", "driver_calls", "microseconds_per_operation",
    "failed_requests", "passes", "by_pass",
]  # fmt: skip


class Exact:
    """An allocator that reserves what is live, up to a limit, and writes down what it was asked."""

    name = "exact"
    device = "nowhere"
    driver_seconds = 0.25

    def __init__(self, limit=1 << 62):
        self.limit = limit
        self.live = {}
        self.peak_reserved_bytes = 0
        self.driver_calls = Counter()
        self.events = []
        self.asked = []

    def stream(self, number):
        self.asked.append(number)
        return f"stream {number}"

    def malloc(self, nbytes, stream):
        if self.reserved_bytes() + nbytes > self.limit:
            raise OutOfMemoryError("expected room, got none")
        pointer = len(self.events) + 1
        self.live[pointer] = nbytes
        self.events.append((nbytes, stream))
        self.driver_calls["take"] += 1
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes())
        return pointer

    def free(self, pointer, stream):
        self.events.append((-self.live.pop(pointer), stream))
        self.driver_calls["give"] += 1

    def reserved_bytes(self):
        return sum(self.live.values())


@st.composite
def traces(draw):
    live, rows = [], []
    for number in range(draw(st.integers(0, 40))):
        if live and draw(st.booleans()):
            ident, size, stream = live.pop(draw(st.integers(0, len(live) - 1)))
            rows.append((1, ident, size, stream))
        else:
            entry = (number, draw(st.integers(1, 100)), draw(st.integers(0, 3)))
            live.append(entry)
            rows.append((0, *entry))
    columns = dict(zip(("op", "id", "size", "stream"), zip(*rows, strict=True), strict=True)) if rows else {}
    return Trace.from_columns(
        "drawn", op=columns.get("op", []), id=columns.get("id", []), size=columns.get("size", []),
        stream=columns.get("stream", []),
    )  # fmt: skip


@given(traces(), st.sampled_from(["one", "own"]))
def test_every_event_reaches_the_allocator_in_order(trace, streams):
    target = Exact()
    run = replay(trace, target, streams=streams)
    rows = zip(trace.op.tolist(), trace.size.tolist(), trace.stream.tolist(), strict=True)
    assert target.events == [
        (-size if op else size, f"stream {stream if streams == 'own' else 0}") for op, size, stream in rows
    ]
    assert run.events == trace.events
    assert run.streams == (trace.streams if streams == "own" else min(1, trace.streams))
    assert run.peak_live_bytes == run.peak_reserved_bytes == trace.peak_live_bytes
    assert run.fragmentation == 0
    assert run.failed_requests == 0


@given(traces(), st.integers(1, 300))
def test_failed_requests_are_counted_and_never_freed(trace, limit):
    target = Exact(limit)
    run = replay(trace, target)
    served = sum(size > 0 for size, _ in target.events)
    assert run.failed_requests == trace.allocations - served
    assert run.peak_live_bytes == target.peak_reserved_bytes <= limit
    assert all(point.live_bytes <= limit for point in run.timeline)


@given(traces(), st.integers(1, 300))
def test_the_timeline_keeps_the_peaks_and_is_in_order(trace, limit):
    run = replay(trace, Exact(limit))
    assert max((point.live_bytes for point in run.timeline), default=0) == run.peak_live_bytes
    assert max((point.reserved_bytes for point in run.timeline), default=0) == run.peak_reserved_bytes
    assert all(0 <= point.live_bytes <= point.reserved_bytes for point in run.timeline)
    events = [point.event for point in run.timeline]
    assert events == sorted(set(events))
    assert not events or events[-1] == trace.events - 1


@given(traces(), st.integers(2, 4), st.sampled_from(["one", "own"]))
def test_each_pass_plays_every_event_and_then_frees_what_is_live(trace, passes, streams):
    target = Exact()
    run = replay(trace, target, passes=passes, streams=streams)
    numbers = trace.allocation_numbers().tolist()
    rows = list(zip(trace.op.tolist(), numbers, trace.size.tolist(), trace.stream.tolist(), strict=True))
    freed = {number for op, number, _, _ in rows if op}
    rest = [(1, number, size, stream) for op, number, size, stream in rows if not op and number not in freed]
    assert target.events == [
        (-size if op else size, f"stream {stream if streams == 'own' else 0}")
        for op, _, size, stream in (rows + rest) * passes
    ]
    assert not target.live
    assert (run.passes, len(run.by_pass), run.events) == (passes, passes, passes * trace.events)
    assert run.streams == (trace.streams if streams == "own" else min(1, trace.streams))


@given(traces(), st.integers(1, 300), st.integers(1, 4))
def test_passes_add_up_to_the_run(trace, limit, passes):
    run = replay(trace, Exact(limit), passes=passes)
    each = run.by_pass
    assert run.peak_reserved_bytes == max((one.peak_reserved_bytes for one in each), default=0)
    assert run.seconds == pytest.approx(sum(one.seconds for one in each))
    assert run.driver_seconds == sum(one.driver_seconds for one in each) == each[0].driver_seconds
    assert run.driver_calls == sum((Counter(one.driver_calls) for one in each), Counter())
    assert len({repr(of_equal_passes(one)) for one in each}) == 1
    assert run.failed_requests % passes == 0
    events = [point.event for point in run.timeline]
    assert events == sorted(set(events))
    assert not events or events[-1] == run.events - 1


def of_equal_passes(one):
    """What two passes of the same trace have in common in an allocator that keeps nothing."""
    return one.peak_reserved_bytes, one.fragmentation, dict(one.driver_calls)


@given(traces(), st.integers(1, 300))
def test_the_first_of_several_passes_is_what_one_pass_is(trace, limit):
    alone = replay(trace, Exact(limit))
    first = replay(trace, Exact(limit), passes=3).of_pass(0)
    for name in ("peak_live_bytes", "peak_reserved_bytes", "fragmentation", "events", "streams"):
        assert getattr(first, name) == getattr(alone, name)
    left = trace.allocations - int(trace.op.sum()) if not alone.failed_requests else None
    if left is not None:
        assert first.driver_calls.get("give", 0) == alone.driver_calls.get("give", 0) + left


def test_a_pass_has_its_own_peaks():
    class Keeping(Exact):
        """Keeps what it reserved, as caching allocators do."""

        def reserved_bytes(self):
            return self.peak_reserved_bytes

        def malloc(self, nbytes, stream):
            pointer = super().malloc(nbytes, stream)
            self.peak_reserved_bytes = max(self.peak_reserved_bytes, sum(self.live.values()))
            return pointer

    big, small = (
        Trace.from_columns("work", op=[0, 0, 1, 1], id=[0, 1, 0, 1], size=[size, 100, size, 100])
        for size in (900, 400)
    )
    run = replay_passes([big, small, big], Keeping())
    assert [one.peak_reserved_bytes for one in run.by_pass] == [1000, 1000, 1000]
    assert [one.fragmentation for one in run.by_pass] == [0, 0.5, 0]
    assert (run.peak_live_bytes, run.fragmentation) == (1000, 0)
    run = replay_passes([small, big, small], Exact())
    assert [one.peak_reserved_bytes for one in run.by_pass] == [500, 1000, 500]
    assert [one.fragmentation for one in run.by_pass] == [0, 0, 0]


def test_progress_counts_the_events_of_all_passes():
    told = []
    replay(sawtooth(1_000), Exact(), passes=3, progress=lambda done, events: told.append((done, events)))
    assert told == sorted(told)
    assert told[-1] == (3_000, 3_000)
    assert {events for _, events in told} == {3_000}


@pytest.mark.parametrize("passes", [0, -1, 1.0, True, "2"])
def test_passes_are_checked(passes):
    with pytest.raises(ValueError, match=f"at least 1, got {passes!r}"):
        replay(sawtooth(4), Exact(), passes=passes)
    with pytest.raises(ValueError, match="at least one trace"):
        replay_passes([], Exact())


def sawtooth(events):
    op = [0, 1] * (events // 2)
    ids = [number // 2 for number in range(events)]
    sizes = [1 + (ident * 7919) % 1000 for ident in ids]
    return Trace.from_columns("sawtooth", op=op, id=ids, size=sizes)


@pytest.mark.parametrize("passes", [1, 3])
def test_the_timeline_of_a_long_trace_has_about_two_thousand_points(passes):
    trace = sawtooth(9_998)
    run = replay(trace, Exact(), passes=passes)
    assert 1000 <= len(run.timeline) <= 2000 + passes
    assert max(point.live_bytes for point in run.timeline) == trace.peak_live_bytes
    assert max(point.reserved_bytes for point in run.timeline) == run.peak_reserved_bytes


def test_progress_is_told_now_and_then_and_at_the_end():
    told = []
    replay(sawtooth(9_998), Exact(), progress=lambda done, events: told.append((done, events)))
    assert 50 <= len(told) <= 500
    assert told == sorted(told)
    assert told[-1] == (9_998, 9_998)


def test_streams_are_asked_for_once():
    trace = Trace.from_columns("two", op=[0, 0, 0], id=[0, 1, 2], size=[1, 1, 1], stream=[1, 0, 1])
    target = Exact()
    replay(trace, target, streams="own")
    assert target.asked == [0, 1]
    target = Exact()
    replay(trace, target)
    assert target.asked == [0]


def test_the_json_has_exactly_these_fields():
    run = replay(sawtooth(10), Exact())
    document = json.loads(json.dumps(run.as_json()))
    assert list(document) == JSON_FIELDS
    assert document["driver_calls"] == {"give": 5, "take": 5}
    assert document["driver_seconds"] == 0.25
    assert document["passes"] == 1
    (one,) = document["by_pass"]
    assert one == {
        "peak_reserved_bytes": run.peak_reserved_bytes,
        "fragmentation": run.fragmentation,
        "seconds": run.seconds,
        "driver_seconds": 0.25,
        "driver_calls": {"give": 5, "take": 5},
    }
    assert document["seconds"] > 0
    assert document["microseconds_per_operation"] == pytest.approx(document["seconds"] / 10 * 1e6)


def test_an_empty_trace_is_a_run_too():
    run = replay(Trace.from_columns("empty", op=[], id=[], size=[]), Exact())
    assert isinstance(run, Run)
    assert (run.events, run.streams, run.fragmentation, run.microseconds_per_operation) == (0, 0, 0.0, 0.0)
    assert run.timeline == ()


def test_other_errors_come_through():
    class Broken(Exact):
        def free(self, pointer, stream):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        replay(sawtooth(4), Broken())


def test_stream_modes_are_checked():
    with pytest.raises(ValueError, match=r"'one', 'own'.*'two'"):
        replay(sawtooth(4), Exact(), streams="two")


def test_the_loop_measures_itself():
    assert 0 < loop_seconds(sawtooth(1000)) < 10
