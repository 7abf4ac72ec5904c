"""The watched driver's clocks: what is behind what, through events, waits, the host and second mappings."""

from __future__ import annotations

import pytest

from smartpool.driver import ModelDriver
from smartpool.driver.cpu import CpuDriver
from smartpool.errors import DriverError
from smartpool.testing import WatchedDriver
from smartpool.units import MiB


@pytest.fixture
def driver():
    return WatchedDriver(ModelDriver(64 * MiB))


@pytest.fixture
def streams(driver):
    return [0, driver.create_stream(), driver.create_stream()]


@pytest.fixture
def block(driver):
    address = driver.allocate(4096)
    driver.fill(address, 1, 4096, 0)
    return address


def test_a_stream_is_behind_its_own_work(driver, streams, block):
    assert driver.is_ordered(block, 4096, streams[0])
    assert not driver.is_ordered(block, 4096, streams[1])
    assert next(driver.late(block, 1, streams[1])).startswith("work 1 of stream 0")


def test_bytes_beside_it_are_nobodys(driver, streams, block):
    other = driver.allocate(4096)
    assert driver.is_ordered(other, 4096, streams[1])
    driver.fill(other, 1, 100, streams[1])
    assert driver.is_ordered(other + 100, 100, streams[0])
    assert not driver.is_ordered(other + 99, 100, streams[0])


def test_order_is_transitive_and_ends_with_the_event(driver, streams, block):
    driver.order(streams[1], behind=streams[0])
    driver.fill(block, 2, 10, streams[0])  # after the event: nobody waits for it
    driver.order(streams[2], behind=streams[1])
    assert driver.is_ordered(block + 10, 4086, streams[2])
    assert not driver.is_ordered(block, 10, streams[2])


def test_a_wait_for_an_event_that_was_never_recorded_orders_nothing(driver, streams, block):
    driver.wait_event(streams[1], driver.create_event())
    assert not driver.is_ordered(block, 1, streams[1])


def test_an_event_that_is_recorded_again_stands_for_the_later_work(driver, streams, block):
    event = driver.create_event()
    driver.record_event(event, streams[0])
    driver.record_event(event, streams[2])
    driver.wait_event(streams[1], event)
    assert not driver.is_ordered(block, 1, streams[1])


@pytest.mark.parametrize(
    "ask",
    [
        lambda driver, event: driver.event_done(event),
        lambda driver, event: driver.synchronize_event(event),
        lambda driver, event: driver.synchronize(0),
        lambda driver, event: driver.synchronize(),
    ],
)
def test_what_the_host_knows_to_be_done_is_behind_everybody(driver, streams, block, ask):
    event = driver.create_event()
    driver.record_event(event, 0)
    ask(driver, event)
    assert driver.is_ordered(block, 4096, streams[1])


def test_an_event_that_is_not_done_tells_the_host_nothing(driver, streams, block):
    event = driver.create_event()
    driver.busy(0)
    driver.fill(block, 2, 4096, 0)
    driver.record_event(event, 0)
    assert not driver.event_done(event)
    assert not driver.is_ordered(block, 1, streams[1])
    driver.go_on()
    assert driver.event_done(event)
    assert driver.is_ordered(block, 1, streams[1])


def test_a_host_that_waits_lets_busy_streams_go_on(driver, block):
    driver.busy(0)
    driver.fill(block, 2, 4096, 0)
    driver.synchronize()
    assert driver.pending(0) == 0


def test_two_addresses_of_one_chunk_are_the_same_bytes(driver, streams):
    unit = driver.granularity
    base, chunk = driver.reserve(8 * unit), driver.create_chunk(2 * unit)
    driver.map_chunk(base, chunk)
    driver.map_chunk(base + 4 * unit, chunk)
    driver.enable_access(base, 2 * unit)
    driver.fill(base + unit, 1, unit, 0)
    assert not driver.is_ordered(base + 5 * unit, unit, streams[1])
    assert driver.is_ordered(base + 4 * unit, unit, streams[1])
    driver.unmap(base + 4 * unit, 2 * unit)  # nothing runs through these addresses
    assert not driver.torn
    driver.unmap(base, 2 * unit)
    assert "unmap" in driver.torn[0]


def test_scripted_faults_are_for_the_allocator(driver, streams, block):
    driver.faults.fail("record_event")
    driver.order(streams[1], behind=streams[0])
    driver.fill(block, 1, 1, streams[1])
    with pytest.raises(DriverError):
        driver.record_event(driver.create_event(), 0)


def test_memory_that_goes_back_under_work_is_noted(driver, block):
    driver.free(block)
    assert "free" in driver.torn[0]


def test_looks_see_what_was_there_when_the_stream_came_to_them():
    driver = WatchedDriver(CpuDriver(capacity=1 << 20))
    block = driver.allocate(100)
    driver.fill(block, 1, 100, 0)
    driver.busy(0)
    number = driver.look(block, 100, 0)
    driver.fill(block, 2, 100, driver.create_stream())
    assert driver.seen(number, 100) == b"\2" * 64
    driver.release()
    driver.free(block)
    assert not any(driver.held().values())
