"""Stream order: nothing is touched on one stream before another has done with it."""

from __future__ import annotations

import os

import pytest
from promises import pool_promises
from waiting import PATIENCE_S

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import DriverError
from smartpool.heap.stream_order import PENDING, StreamClock
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.pool.bins import DeferredFrees
from smartpool.pool.slow_path import SlowPath
from smartpool.testing import Invariant, check_stream_order
from smartpool.units import MiB

CAPACITY = 64 * MiB
EXPLORE = {"examples": 1000, "seconds": 120.0, "seed": None} if os.environ.get("HYPOTHESIS_PROFILE") else {}


@pytest.fixture
def driver():
    return ModelDriver(CAPACITY)


def is_behind(driver, stream):
    """Whether the stream waits for something."""
    event = driver.create_event()
    driver.record_event(event, stream)
    return not driver.event_done(event)


# ---------------------------------------------------------------------- the clock


def test_what_was_waited_for_is_not_waited_for_again(driver):
    clock = StreamClock(driver)
    first, second = driver.create_stream(), driver.create_stream()
    driver.pause(first)
    early, late = clock.stamp(first), clock.stamp(first)
    clock.wait(late, second)
    assert is_behind(driver, second)
    assert clock.ready(early, second)
    clock.wait(early, second)
    assert (clock.waits, driver.calls["wait_event"]) == (1, 1)
    driver.resume(first)
    assert clock.idle(late)
    clock.wait(late, 0)
    assert clock.waits == 1
    clock.close()


def test_a_position_that_was_only_marked_is_recorded_when_it_matters(driver):
    clock = StreamClock(driver)
    stream = driver.create_stream()
    uses = clock.mark([stream])
    assert driver.calls["record_event"] == 0
    driver.pause(stream)
    assert not clock.idle(uses)
    driver.resume(stream)
    assert clock.idle(uses)


@pytest.mark.parametrize("busy", [False, True])
def test_events_are_few_however_often_streams_are_stamped(driver, busy):
    clock = StreamClock(driver)
    stream, other = driver.create_stream(), driver.create_stream()
    if busy:
        driver.pause(stream)
    uses = [clock.stamp(stream) for _ in range(20 * PENDING)]
    assert driver.calls["create_event"] <= PENDING + 1
    for position in (0, 5, PENDING, 10 * PENDING, -1):  # thinned out, a later event covers
        assert clock.idle(uses[position]) is not busy
        clock.wait(uses[position], other)
    assert is_behind(driver, other) is busy
    driver.resume(stream)
    assert clock.idle(uses[-1])
    clock.close()


def test_what_was_forgotten_stays_done_and_may_come_back(driver):
    clock = StreamClock(driver)
    first, second = driver.create_stream(), driver.create_stream()
    old = clock.stamp(first)
    clock.forget(kept=())
    assert len(clock) == 0
    assert clock.ready(old, second)
    assert clock.idle(old)
    driver.pause(first)
    new = clock.mark([first])
    clock.forget(kept=())
    assert len(clock) == 1  # it has something to do
    assert clock.idle(old)
    assert not clock.idle(new)
    clock.wait(new, second)
    assert is_behind(driver, second)
    driver.resume(first)
    clock.forget(kept=())
    assert (len(clock), clock._joined) == (0, {})
    clock.close()


def test_the_host_waits_once_for_all_streams_that_were_destroyed(driver):
    clock = StreamClock(driver)
    streams = [driver.create_stream() for _ in range(100)]
    uses = clock.mark(streams)
    for stream in streams:
        driver.destroy_stream(stream)
    assert clock.idle(uses)
    assert driver.calls["synchronize"] == 1
    assert len(clock) == 0
    clock.close()


def test_a_stream_that_was_destroyed_bricks_nothing(driver):
    """Its memory is taken for done once the host has waited for the device."""
    pool = AdvancedMemoryPoolManager(driver)
    stream = driver.create_stream()
    pool.free(pool.malloc(5 * MiB, stream))
    driver.destroy_stream(stream)
    pool.flush()
    pool.free(pool.malloc(CAPACITY))
    pool.check()
    pool.close()


def test_failed_events_are_kept_for_the_next_time(driver):
    clock = StreamClock(driver)
    driver.faults.fail("record_event")
    with pytest.raises(DriverError):
        clock.stamp(0)
    clock.stamp(0)
    assert driver.calls["create_event"] == 1
    driver.faults.fail("destroy_event")
    with pytest.raises(DriverError):
        clock.close()
    clock.close()
    assert driver.calls["destroy_event"] == 2


# ---------------------------------------------------------------------- the pool's use of it


def test_a_gap_from_before_the_second_stream_is_waited_for(driver):
    """The flush came before anyone knew of a second stream, so the gap carries no uses of its own."""
    pool = AdvancedMemoryPoolManager(driver)
    stream = driver.create_stream()
    block = pool.malloc(60 * MiB)
    driver.pause(0)
    driver.fill(block, 1, 60 * MiB, 0)
    pool.free(block)
    pool.flush()
    pool.malloc(60 * MiB, stream)
    assert is_behind(driver, stream)
    driver.resume(0)


def test_what_is_freed_during_a_flush_is_covered_too():
    """Another thread queues work and frees while a flush joins what was freed before."""

    class Interrupted(DeferredFrees):
        during = None

        def pop(self):
            during, self.during = self.during, None
            if during:
                during()
            return super().pop()

    driver = ModelDriver(CAPACITY)
    pool = AdvancedMemoryPoolManager(driver)
    first, second = driver.create_stream(), driver.create_stream()
    deferred = pool.slow_path.deferred[first] = Interrupted(first)
    early = [pool.malloc(1 * MiB + 512 * step, first) for step in range(8)]
    late = pool.malloc(40 * MiB, first)
    for block in early:
        pool.free(block)

    def free_late():
        driver.pause(first)
        driver.fill(late, 1, 40 * MiB, first)
        pool.free(late)

    deferred.during = free_late
    pool.flush()
    pool.malloc(60 * MiB, second)
    assert is_behind(driver, second)
    driver.resume(first)


@pytest.mark.parametrize(
    ("policy", "device", "by"),
    [
        *((policy, ModelDriver, "events") for policy in POLICIES),
        ("balanced", CpuDriver, "events"),
        ("balanced", CpuDriver, "bytes"),
    ],
)
def test_every_user_of_a_block_finds_its_own_bytes(policy, device, by):
    """Any program of streams that are busy at will, with blocks that are used and freed on several.

    By events each request is decided by vector clocks, over second mappings too; by bytes, work that is
    queued before a free looks at what it finds. 24 MiB, so that memory has to wander between the streams.
    """
    config, spare = SmartPoolConfig(policy=policy), 2 * MiB if by == "bytes" else 0
    report = check_stream_order(
        lambda driver: AdvancedMemoryPoolManager(driver, config),
        driver=lambda: device(capacity=24 * MiB + spare),
        by=by,
        **{"examples": 40, "seconds": PATIENCE_S, **EXPLORE, **pool_promises(24 * MiB)},
    )
    assert report.checked[Invariant.STREAM_ORDER] > 300


def test_streams_that_are_forgotten_and_come_back(monkeypatch):
    """As above, in a pool that forgets at every occasion all that it can."""
    monkeypatch.setattr("smartpool.pool.slow_path.STREAMS", 0)

    monkeypatch.setattr(SlowPath, "streams_limit", property(lambda _: 0, lambda *_: None), raising=False)
    report = check_stream_order(
        AdvancedMemoryPoolManager,
        driver=lambda: ModelDriver(capacity=24 * MiB),
        by="events",
        **{"examples": 60, "seconds": PATIENCE_S, **EXPLORE, **pool_promises(24 * MiB)},
    )
    assert report.checked[Invariant.STREAM_ORDER] > 300


@pytest.mark.parametrize("nbytes", [1000, 3 * MiB])
@pytest.mark.parametrize("how", ["requests", "frees", "records"])
def test_streams_that_were_destroyed_leave_nothing(driver, nbytes, how):
    """A stream for each task: tables stay small, and a capture begins as quickly as ever."""
    with AdvancedMemoryPoolManager(driver) as pool:
        driver.create_stream()
        for _ in range(2000):
            stream = driver.create_stream()
            block = pool.malloc(nbytes, stream if how == "requests" else None)
            if how == "records":
                pool.record_stream(block, stream)
            pool.free(block, stream if how == "frees" else None)
            driver.destroy_stream(stream)
        assert max(len(pool.slow_path.bins_of), len(pool.slow_path.deferred), len(pool.slow_path.clock)) < 300
        assert len(pool.slow_path.clock._joined) < 300
        pool.check()
        pool.trim(wait=True)
        assert pool.reserved_bytes == 0


def test_a_free_on_its_way_finds_the_stream_that_is_being_forgotten(driver):
    """It has the bin already as the tables are cleaned up: its block is found all the same."""
    with AdvancedMemoryPoolManager(driver) as pool:
        stream = driver.create_stream()
        for nbytes in (1000, 3 * MiB):
            block = pool.malloc(nbytes, stream)
            bin_ = pool.slow_path.live.pop(block)
            pool.slow_path.streams_limit = 0
            pool.free(pool.malloc(nbytes, driver.create_stream()))
            pool.free(pool.malloc(2 * nbytes, driver.create_stream()))
            assert stream not in pool.slow_path.bins_of
            bin_.put(block)
            pool.flush()
            pool.check()
            assert pool.slow_path.heap.live_bytes == 0


def test_a_free_on_a_new_stream_amid_a_flush_is_waited_for(driver):
    """A free takes no lock: whether there are several streams is asked behind the look at what was freed."""
    with AdvancedMemoryPoolManager(driver) as pool:
        stream = driver.create_stream()
        block = pool.malloc(4 * MiB)
        driver.pause(stream)

        class Gauge:
            @property
            def live_bytes(self):  # looked at as a flush begins: as another thread at this point
                pool.slow_path.gauge = gauge
                pool.free(block, stream)
                return gauge.live_bytes

        gauge, pool.slow_path.gauge = pool.slow_path.gauge, Gauge()
        pool.flush()
        again = pool.malloc(4 * MiB)
        assert again == block
        assert is_behind(driver, 0)
        driver.resume(stream)
        pool.free(again)
        pool.check()
