"""A capture that host drivers play: what is recorded, what is refused, what ruins it."""

from __future__ import annotations

import sys
import threading

import pytest

from smartpool.driver import CpuDriver
from smartpool.errors import DriverError

if sys.platform != "linux":
    pytest.skip("needs the cpu device's virtual memory", allow_module_level=True)


@pytest.fixture
def driver():
    driver = CpuDriver(capacity=64 << 20)
    yield driver
    assert driver.calls
    driver.check()


@pytest.fixture
def stream(driver):
    return driver.create_stream()


def test_captured_work_is_done_by_replays_and_not_before(driver, stream):
    raw = driver.allocate(4096)
    driver.fill(raw, 1, 4096, 0)
    driver.begin_capture(stream)
    capture = driver.is_capturing(stream)
    assert capture
    assert not driver.is_capturing(0)
    driver.fill(raw, 2, 100, stream)
    driver.copy(raw + 200, raw, 100, stream)
    driver.fill(raw + 300, 3, 1, 0)  # elsewhere, at once
    graph = driver.end_capture(stream)
    assert not driver.is_capturing(stream)
    driver.begin_capture(stream)
    assert driver.is_capturing(stream) not in (0, capture)
    driver.end_capture(stream)
    assert driver.read(raw, 1) == b"\x01"
    assert driver.read(raw + 300, 1) == b"\x03"
    graph.replay(stream)
    assert driver.read(raw + 299, 2) == b"\x02\x03"
    driver.fill(raw, 7, 4096, 0)
    graph.replay()
    assert driver.read(raw + 299, 2) == b"\x02\x07"


def test_a_replay_on_memory_that_has_gone_loses_the_device(driver, stream):
    raw = driver.allocate(4096)
    driver.begin_capture(stream)
    driver.fill(raw, 2, 100, stream)
    graph = driver.end_capture(stream)
    driver.free(raw)
    graph.replay()
    with pytest.raises(DriverError, match="ILLEGAL_ADDRESS"):
        driver.synchronize()


def forbidden(driver, stream):
    event, raw = driver.create_event(), driver.allocate(64)
    return {
        "allocate": lambda: driver.allocate(64),
        "free": lambda: driver.free(raw),
        "event_done": lambda: driver.event_done(event),
        "synchronize": driver.synchronize,
        "synchronize_event": lambda: driver.synchronize_event(event),
        "read": lambda: driver.read(raw, 1),
    }


@pytest.mark.parametrize(
    "call", ["allocate", "free", "event_done", "synchronize", "synchronize_event", "read"]
)
def test_a_forbidden_call_is_refused_and_ruins_the_capture(driver, stream, call):
    calls = forbidden(driver, stream)
    driver.begin_capture(stream)
    with pytest.raises(DriverError, match="STREAM_CAPTURE_UNSUPPORTED"):
        calls[call]()
    with pytest.raises(DriverError, match=f"INVALIDATED.*{call}"):
        driver.end_capture(stream)
    assert not driver.is_capturing(stream)
    calls[call]()


def test_with_leave_everything_but_the_captured_stream_itself(driver, stream):
    calls = forbidden(driver, stream)
    driver.begin_capture(stream)
    with driver.beside_capture():
        for call in calls.values():
            if call is not calls["free"]:
                call()
        calls["free"]()
    refused = []

    def elsewhere():
        try:
            driver.synchronize()
        except DriverError as error:
            refused.append(error)

    driver.end_capture(stream)
    driver.begin_capture(stream)
    with driver.beside_capture():  # leave is a thread's own
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with pytest.raises(DriverError, match="INVALIDATED"):
        driver.end_capture(stream)


def test_virtual_memory_is_allowed(driver, stream):
    unit = driver.granularity
    driver.begin_capture(stream)
    base, chunk = driver.reserve(unit), driver.create_chunk(unit)
    driver.map_chunk(base, chunk)
    driver.enable_access(base, unit)
    driver.fill(base, 5, unit, stream)
    driver.memory_info()
    graph = driver.end_capture(stream)
    graph.replay()
    assert driver.read(base, 1) == b"\x05"


def test_events_on_both_sides_of_the_border(driver, stream):
    inside, outside = driver.create_event(), driver.create_event()
    driver.record_event(outside, 0)
    driver.begin_capture(stream)
    driver.record_event(inside, stream)
    driver.wait_event(stream, inside)
    with driver.beside_capture(), pytest.raises(DriverError, match="CAPTURED_EVENT"):
        driver.event_done(inside)
    with pytest.raises(DriverError, match="INVALIDATED"):
        driver.end_capture(stream)
    driver.begin_capture(stream)
    with pytest.raises(DriverError, match="CAPTURE_ISOLATION"):
        driver.wait_event(stream, outside)
    with pytest.raises(DriverError, match="INVALIDATED"):
        driver.end_capture(stream)
    driver.begin_capture(stream)
    driver.record_event(inside, stream)
    driver.record_event(inside, 0)  # now it is an ordinary one again
    with driver.beside_capture():
        assert driver.event_done(inside)
    driver.destroy_event(inside)
    driver.end_capture(stream)


def test_what_cannot_begin_or_end(driver, stream):
    for wrong in (0, 77):
        with pytest.raises(Exception, match="stream"):
            driver.begin_capture(wrong)
    with pytest.raises(DriverError, match="not being captured"):
        driver.end_capture(stream)
    driver.begin_capture(stream)
    with pytest.raises(DriverError, match="is being captured"):
        driver.begin_capture(driver.create_stream())
    driver.end_capture(stream)
    driver.pause(stream)
    driver.fill(driver.allocate(64), 1, 64, stream)
    with pytest.raises(DriverError, match="nothing pending"):
        driver.begin_capture(stream)
    driver.resume(stream)


def test_scripted_faults_and_captures_side_by_side(driver, stream):
    driver.begin_capture(stream)
    driver.faults.fail("memory_info")
    with pytest.raises(DriverError, match="INJECTED"):
        driver.memory_info()
    driver.faults.clear()
    with pytest.raises(DriverError, match="UNSUPPORTED"):
        driver.allocate(64)
    with pytest.raises(DriverError, match="INVALIDATED"):
        driver.end_capture(stream)
    assert not driver.faults.alert
