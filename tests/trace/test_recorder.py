from __future__ import annotations

import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smartpool.errors import InvalidRequestError, InvariantError, TraceFormatError
from smartpool.trace import ALLOCATE, FREE, Recorder, Trace
from smartpool.trace.builder import TraceBuilder


def rows(trace):
    return list(
        zip(trace.op.tolist(), trace.id.tolist(), trace.size.tolist(), trace.stream.tolist(), strict=True)
    )


class RecordedPrograms(RuleBasedStateMachine):
    """A program of mallocs and frees, with addresses and streams that come again, beside its recording."""

    def __init__(self):
        super().__init__()
        self.recorder = Recorder()
        self.expected = []
        self.live = {}
        self.empty = set()
        self.streams = {}
        self.made = 0
        self.settled = {}

    def number(self, stream):
        return self.streams.setdefault(stream, len(self.streams))

    def settle(self, what):
        self.settled[what] = self.settled.get(what, 0) + 1

    def free_slots(self):
        return [slot for slot in range(8) if slot not in self.live and slot not in self.empty]

    @precondition(lambda self: self.free_slots())
    @rule(data=st.data(), size=st.integers(0, 2**48), stream=st.integers(0, 2**40))
    def malloc(self, data, size, stream):
        slot = data.draw(st.sampled_from(self.free_slots()))
        self.recorder.allocated(0x7F0000000000 + slot, size, stream)
        if size == 0:
            self.empty.add(slot)
            self.settle("empty_requests")
            return
        self.expected.append((ALLOCATE, self.made, size, self.number(stream)))
        self.live[slot] = self.expected[-1]
        self.made += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), stream=st.none() | st.integers(0, 3))
    def free(self, data, stream):
        slot = data.draw(st.sampled_from(sorted(self.live)))
        _, number, size, own = self.live.pop(slot)
        self.recorder.freed(0x7F0000000000 + slot, stream)
        self.expected.append((FREE, number, size, own if stream is None else self.number(stream)))

    @precondition(lambda self: self.empty)
    @rule()
    def free_empty(self):
        self.recorder.freed(0x7F0000000000 + self.empty.pop())

    @rule(stream=st.integers(0, 2**40))
    def free_what_is_older_than_the_recording(self, stream):
        self.recorder.freed(0x100 + stream, stream)
        self.settle("unknown_frees")

    @invariant()
    def recording_equals_the_program(self):
        self.recorder.check()
        trace = self.recorder.trace(name="program")
        assert rows(trace) == self.expected
        assert trace.meta["settled"] == self.settled
        assert trace.meta["streams"] == len(self.streams)
        assert trace.meta["complete"]


TestRecordedPrograms = RecordedPrograms.TestCase
TestRecordedPrograms.settings = settings(max_examples=50)


class TestRecorder:
    def test_time_is_in_microseconds_and_never_runs_backwards(self):
        recorder = Recorder()
        for pointer in range(100):
            recorder.allocated(pointer, 1)
        t_us = recorder.trace().t_us.tolist()
        assert t_us == sorted(t_us)
        assert t_us[0] == 0
        assert t_us[-1] < 10**7

    def test_recording_goes_on_after_a_trace(self):
        recorder = Recorder()
        recorder.allocated(1, 10)
        first = recorder.trace()
        recorder.freed(1)
        assert (len(first), len(recorder.trace()), len(recorder)) == (1, 2, 2)

    def test_reuse_without_a_free_implies_one(self):
        recorder = Recorder()
        recorder.allocated(1, 10)
        recorder.allocated(1, 20)
        trace = recorder.trace()
        assert rows(trace) == [(0, 0, 10, 0), (1, 0, 10, 0), (0, 1, 20, 0)]
        assert trace.meta["settled"] == {"implied_frees": 1}

    def test_limit_keeps_the_first_events_and_says_so(self):
        recorder = Recorder(limit=3)
        for pointer in range(3):
            recorder.allocated(pointer, 1)
        assert not recorder.overflowed
        recorder.freed(0)
        recorder.allocated(0, 1)
        recorder.check()
        assert (len(recorder), recorder.overflowed) == (3, True)
        assert recorder.trace().meta["complete"] is False
        recorder.clear()
        assert (len(recorder), recorder.overflowed) == (0, False)

    @pytest.mark.parametrize("limit", [0, -1, 1.5, True, None])
    def test_limits_that_are_none(self, limit):
        with pytest.raises(InvalidRequestError, match="limit: expected a number of events"):
            Recorder(limit=limit)

    def test_nothing_recorded_is_an_empty_trace(self):
        assert len(Recorder().trace()) == 0

    def test_addresses_of_64_bits(self):
        recorder = Recorder()
        recorder.allocated(2**64 - 512, 1, 2**64 - 1)
        assert rows(recorder.trace()) == [(0, 0, 1, 0)]

    def test_saves_and_loads(self, tmp_path):
        recorder = Recorder()
        recorder.allocated(1, 10)
        trace = recorder.trace(name="mine")
        trace.save(tmp_path / "mine.npz")
        assert Trace.load(tmp_path / "mine.npz") == trace

    def test_check_finds_a_broken_event(self):
        recorder = Recorder()
        recorder.allocated(1, 10)
        recorder._events.pop()
        with pytest.raises(InvariantError, match="broken event"):
            recorder.check()
        recorder = Recorder()
        recorder.allocated(1, -7)
        with pytest.raises(InvariantError, match="broken event"):
            recorder.check()

    def test_more_streams_than_a_trace_can_name(self):
        recorder = Recorder()
        for stream in range(256):
            recorder.allocated(stream, 1, stream)
        assert recorder.trace().streams == 256
        assert recorder.trace().meta["settled"] == {}
        for stream in range(256, 300):
            recorder.allocated(stream, 1, stream)
            recorder.freed(stream, stream)
        trace = recorder.trace()
        assert (trace.streams, trace.meta["streams"], trace.peak_live_bytes) == (256, 300, 257)
        assert trace.meta["settled"] == {"events_of_further_streams": 88}
        assert (trace.stream[256:] == 255).all()

    def test_sizes_that_no_trace_can_hold(self):
        recorder = Recorder()
        recorder.allocated(1, 2**70)
        with pytest.raises(TraceFormatError, match="column 'size'"):
            recorder.trace()

    def test_threads_record_whole_events_in_an_order_that_is_true(self):
        # The threads share a heap of addresses; the recorder is told after a take and before a give,
        # as a pool does. Any event lost, torn or swapped would show as a free that was implied or unknown.
        recorder = Recorder()
        heap = list(range(64))

        def work():
            for _ in range(3000):
                try:
                    pointer = heap.pop()
                except IndexError:
                    continue
                recorder.allocated(pointer, 64, threading.get_ident())
                recorder.freed(pointer)
                heap.append(pointer)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        recorder.check()
        trace = recorder.trace()
        assert trace.meta["settled"] == {}
        assert len(trace) == 2 * trace.allocations > 0
        assert trace.live_bytes()[-1] == 0
        assert trace.peak_live_bytes <= 4 * 64


class TestBuilder:
    @given(
        st.lists(
            st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 5), st.integers(0, 2**60)), max_size=30
        )
    )
    def test_any_log_becomes_a_trace_and_nothing_is_lost_uncounted(self, events):
        builder = TraceBuilder("log")
        for allocate, pointer, size, time in events:
            if allocate:
                builder.allocate(pointer, size, stream=size % 3, time=time)
            else:
                builder.free(pointer, time=time)
        trace = builder.build("x")
        trace.check()
        settled = trace.meta["settled"]
        assert trace.allocations + settled.get("empty_requests", 0) == sum(event[0] for event in events)
        kept = len(trace) - trace.allocations - settled.get("implied_frees", 0)
        dropped = settled.get("unknown_frees", 0)
        freed_empty = sum(not event[0] for event in events) - kept - dropped
        assert 0 <= freed_empty <= settled.get("empty_requests", 0)

    def test_size_of_says_what_is_live(self):
        builder = TraceBuilder("log")
        builder.allocate("a", 5, stream=0, time=0)
        assert (builder.size_of("a"), builder.size_of("b")) == (5, None)
        builder.free("a", time=1)
        assert (builder.size_of("a"), len(builder)) == (None, 2)
