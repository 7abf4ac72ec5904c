"""Streams and events of the host drivers: by example, and against a naive device."""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from waiting import PATIENCE_S

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.errors import DriverError, InvariantError, StreamError


@pytest.fixture
def driver():
    return CpuDriver(capacity=64 << 20)


@pytest.fixture
def address(driver):
    return driver.allocate(4096)


def peek(driver, address):
    """The byte as it is now: `read` would wait for the streams."""
    return driver._read(address, 1)


def test_work_is_done_as_it_is_queued(driver, address):
    driver.fill(address, 5, 10, 0)
    assert peek(driver, address) == b"\x05"
    assert driver.pending() == 0


def test_a_paused_stream_holds_its_work_in_order(driver, address):
    driver.pause()
    driver.fill(address, 1, 10, 0)
    driver.fill(address, 2, 10, 0)
    driver.copy(address + 100, address, 10, 0)
    assert peek(driver, address) == b"\0"
    assert driver.pending() == 3
    driver.resume()
    assert peek(driver, address) == peek(driver, address + 100) == b"\x02"
    driver.check()


def test_an_event_is_done_when_what_was_queued_before_it_is(driver, address):
    stream, event = driver.create_stream(), driver.create_event()
    driver.pause(stream)
    driver.record_event(event, stream)
    driver.fill(address, 1, 10, stream)
    assert not driver.event_done(event)
    driver.record_event(event, 0)  # a new record replaces the old
    assert driver.event_done(event)
    driver.record_event(event, stream)
    assert not driver.event_done(event)
    driver.resume(stream)
    assert driver.event_done(event)


def test_a_stream_waits_for_an_event_on_the_device(driver, address):
    first, second = driver.create_stream(), driver.create_stream()
    event, after = driver.create_event(), driver.create_event()
    driver.pause(first)
    driver.fill(address, 1, 10, first)
    driver.record_event(event, first)
    driver.wait_event(second, event)
    driver.destroy_event(event)  # the wait stays
    driver.fill(address, 2, 10, second)
    driver.record_event(after, second)
    assert not driver.event_done(after)
    assert peek(driver, address) == b"\0"
    driver.check()
    driver.resume(first)
    assert driver.event_done(after)
    assert peek(driver, address) == b"\x02"


def test_a_wait_is_for_what_the_event_stood_for(driver):
    first, second, event = driver.create_stream(), driver.create_stream(), driver.create_event()
    driver.pause(first)
    driver.wait_event(second, event)  # not recorded yet: nothing to wait for
    driver.record_event(event, first)
    assert driver.pending(second) == 0
    driver.wait_event(second, event)
    driver.record_event(event, 0)  # done now, but the wait was for the earlier record
    assert driver.event_done(event)
    assert driver.pending(second) == 1
    driver.resume(first)
    assert driver.pending(second) == 0


def test_a_destroyed_stream_completes(driver, address):
    stream = driver.create_stream()
    driver.pause(stream)
    driver.fill(address, 3, 10, stream)
    driver.destroy_stream(stream)
    with pytest.raises(StreamError):
        driver.fill(address, 4, 10, stream)
    with pytest.raises(StreamError):
        driver.stream(stream)
    assert driver.pending(stream) == 1
    driver.check()
    driver.resume(stream)
    assert peek(driver, address) == b"\x03"
    with pytest.raises(StreamError):
        driver.resume(stream)


@pytest.mark.parametrize("wait", ["synchronize", "synchronize all", "event", "read"])
def test_the_host_waits_until_another_thread_resumes(driver, address, wait):
    stream, event = driver.create_stream(), driver.create_event()
    driver.pause(stream)
    driver.fill(address, 7, 10, stream)
    driver.record_event(event, stream)
    call = {
        "synchronize": lambda: driver.synchronize(stream),
        "synchronize all": driver.synchronize,
        "event": lambda: driver.synchronize_event(event),
        "read": lambda: driver.read(address, 1),
    }[wait]
    waiting = threading.Thread(target=call)
    waiting.start()
    waiting.join(0.02)
    assert waiting.is_alive()
    assert not driver.event_done(event)  # other threads still get in
    driver.resume(stream)
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert driver.event_done(event)


@pytest.mark.parametrize("pull", ["unmap", "free"])
def test_memory_taken_from_under_pending_work_loses_the_device(pull):
    """What a GPU answers with an illegal address: the pool failed to wait for an event."""
    driver = ModelDriver(64 << 20)
    unit = driver.granularity
    base, chunk, raw = driver.reserve(unit), driver.create_chunk(unit), driver.allocate(unit)
    driver.map_chunk(base, chunk)
    driver.enable_access(base, unit)
    driver.pause()
    driver.fill(base, 1, unit, 0)
    driver.copy(raw, base, 64, 0)
    if pull == "unmap":
        driver.unmap(base, unit)
    else:
        driver.free(raw)
    driver.resume()
    with pytest.raises(DriverError, match="ILLEGAL_ADDRESS"):
        driver.synchronize()
    with pytest.raises(DriverError, match="ILLEGAL_ADDRESS"):
        driver.allocate(1)
    driver.check()


@pytest.mark.parametrize("wait", ["synchronize", "event"])
def test_who_waits_for_work_that_loses_the_device_is_told(driver, address, wait):
    event, errors = driver.create_event(), []
    driver.pause()
    driver.fill(address, 1, 10, 0)
    driver.record_event(event, 0)

    def work():
        try:
            driver.synchronize() if wait == "synchronize" else driver.synchronize_event(event)
        except DriverError as error:
            errors.append(error)

    waiting = threading.Thread(target=work)
    waiting.start()
    waiting.join(0.02)
    driver.free(address)
    driver.resume()
    waiting.join(PATIENCE_S)
    assert "ILLEGAL_ADDRESS" in errors[0].code


def test_check_finds_a_stream_that_nothing_holds(driver):
    driver._queues._streams[0].pending.append(lambda: None)
    with pytest.raises(InvariantError, match="held by nothing"):
        driver.check()


class QueueMachine(RuleBasedStateMachine):
    """Three streams and three events against lists: after each step everything that can be done is done."""

    streams = st.integers(0, 2)

    def __init__(self):
        super().__init__()
        self.driver = ModelDriver(1 << 30)
        self.handles = [0, self.driver.create_stream(), self.driver.create_stream()]
        self.events = [self.driver.create_event() for _ in range(3)]
        self.paused = [False] * 3
        self.queued = [[], [], []]  # ("work", n) | ("record", marker) | ("wait", marker)
        self.current = [None] * 3  # the marker of each event's latest record
        self.done_markers = {None}
        self.done = []  # (stream, n) in the order in which the naive device did them
        self.real = []
        self.count = 0

    def settle(self):
        """Do whatever can be done, until nothing can."""
        moved = True
        while moved:
            moved = False
            for stream, queue in enumerate(self.queued):
                while queue and not self.paused[stream]:
                    kind, what = queue[0]
                    if kind == "wait" and what not in self.done_markers:
                        break
                    queue.pop(0)
                    moved = True
                    if kind == "record":
                        self.done_markers.add(what)
                    elif kind == "work":
                        self.done.append((stream, what))

    @rule(stream=streams)
    def work(self, stream):
        self.count += 1
        done = (stream, self.count)
        with self.driver._lock:
            self.driver._queues.submit(self.handles[stream], lambda: self.real.append(done))
        self.queued[stream].append(("work", self.count))
        self.settle()

    @rule(stream=streams, event=streams)
    def record(self, stream, event):
        self.count += 1
        self.driver.record_event(self.events[event], self.handles[stream])
        self.current[event] = self.count
        self.queued[stream].append(("record", self.count))
        self.settle()

    @rule(stream=streams, event=streams)
    def wait(self, stream, event):
        self.driver.wait_event(self.handles[stream], self.events[event])
        self.queued[stream].append(("wait", self.current[event]))
        self.settle()

    @rule(event=streams)
    def replace_event(self, event):
        self.driver.destroy_event(self.events[event])
        self.events[event] = self.driver.create_event()
        self.current[event] = None

    @rule(stream=streams)
    def pause(self, stream):
        self.driver.pause(self.handles[stream])
        self.paused[stream] = True

    @rule(stream=streams)
    def resume(self, stream):
        self.driver.resume(self.handles[stream])
        self.paused[stream] = False
        self.settle()

    @rule(stream=st.integers(1, 2))
    def replace_stream(self, stream):
        if self.queued[stream]:
            return
        self.driver.destroy_stream(self.handles[stream])
        self.handles[stream] = self.driver.create_stream()
        self.paused[stream] = False

    @invariant()
    def agrees(self):
        self.driver.check()
        assert sorted(self.real) == sorted(self.done)
        for stream in range(3):
            assert [n for s, n in self.real if s == stream] == [n for s, n in self.done if s == stream]
        for event, marker in zip(self.events, self.current, strict=True):
            assert self.driver.event_done(event) == (marker in self.done_markers)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
