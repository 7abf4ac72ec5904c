"""The set of streams of a device."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smartpool.driver import ModelDriver
from smartpool.errors import ConfigurationError, DriverError, StreamError
from smartpool.streams import StreamSet


class StreamMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.driver = ModelDriver(1 << 30)
        self.set = StreamSet(self.driver, 3)
        self.lent = []  # (context manager, stream)
        self.turns = []

    @rule()
    def take_a_turn(self):
        stream = self.set.next()
        assert self.driver.stream(stream) == stream.handle
        assert len(self.set) == 3 or stream not in self.turns
        self.turns.append(stream)

    @rule()
    def borrow(self):
        scope = self.set.borrow()
        stream = scope.__enter__()
        counts = [sum(each is other for _, other in self.lent) for each in self.set._borrowers]
        mine = sum(stream is other for _, other in self.lent)
        assert mine == min(counts), "someone else had fewer borrowers"
        assert not mine or len(self.set) == 3
        self.lent.append((scope, stream))

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def give_back(self, data):
        scope, _ = self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))
        scope.__exit__(None, None, None)

    @invariant()
    def lent_are_lent(self):
        assert len(self.set) <= 3
        borrowers = {stream: count for stream, count in self.set._borrowers.items() if count}
        assert borrowers == Counter(stream for _, stream in self.lent)

    def teardown(self):
        self.set.close()
        held = {stream for _, stream in self.lent}
        assert set(self.set._borrowers) == held
        for stream in held:
            stream.synchronize()  # those that are lent are alive
        while self.lent:
            self.lent.pop()[0].__exit__(None, None, None)
        assert len(self.set) == 0
        assert len(self.driver._queues._streams) == 1  # the default stream


TestStreams = StreamMachine.TestCase
TestStreams.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


def test_turns_go_round():
    streams = StreamSet(ModelDriver(1 << 30), 2)
    first, second = streams.next(), streams.next()
    assert [streams.next() for _ in range(4)] == [first, second] * 2


def test_names_that_others_use():
    driver = ModelDriver(1 << 30)
    stream = StreamSet(driver).next()
    assert stream.ptr == stream.handle == stream.__cuda_stream__()[1]
    assert hex(stream.handle) in repr(stream)
    stream.synchronize()


def test_a_stream_is_destroyed_once_whatever_interrupts_it(monkeypatch):
    """Once it is destroyed its handle may be that of somebody else's stream."""
    driver = ModelDriver(1 << 30)
    streams, destroyed = StreamSet(driver, 2), []
    handles = {streams.next().handle, streams.next().handle}

    def interrupted(handle):
        destroyed.append(handle)
        if len(destroyed) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(driver, "destroy_stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        streams.close()
    streams.close()
    assert len(destroyed) == 2
    assert set(destroyed) == handles


def test_a_stream_that_the_driver_keeps_is_destroyed_by_the_next_close():
    driver = ModelDriver(1 << 30)
    streams = StreamSet(driver, 2)
    assert streams.next() is not streams.next()
    driver.faults.fail("destroy_stream")
    with pytest.raises(DriverError):
        streams.close()
    streams.close()
    assert len(driver._queues._streams) == 1  # the default stream


def test_a_closed_set_lends_nothing():
    streams = StreamSet(ModelDriver(1 << 30))
    streams.close()
    with pytest.raises(StreamError, match="closed"):
        streams.next()
    with pytest.raises(StreamError, match="closed"), streams.borrow():
        pass


@pytest.mark.parametrize("size", [0, 129, True, 2.0, "8", None])
def test_sizes(size):
    with pytest.raises(ConfigurationError, match="streams_per_device"):
        StreamSet(ModelDriver(1 << 30), size)
