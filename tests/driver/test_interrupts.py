"""Ctrl-C at every line of every driver call: the books are sound, and everything can be given back.

The interrupt is raised by a trace function, line by line. On the line of a `with` that is being
left, a trace function can raise before the lock is let go, where a signal cannot (the interpreter
looks for signals after calls and at the top of loops); such a lock is let go here by hand.
"""

import sys

import pytest
from fake_cuda import FakeCuda

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.driver.checked import CheckedDriver
from smartpool.driver.cuda import Bindings, CudaDriver

linux = pytest.mark.skipif(sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone")
CAPACITY = 1 << 30


def make(name):
    match name:
        case "model":
            return ModelDriver(CAPACITY)
        case "cpu":
            return CpuDriver(capacity=CAPACITY, granularity=64 << 10)
        case _:
            return CheckedDriver(CudaDriver(0, Bindings(FakeCuda(capacity=CAPACITY), "13.0.0")))


def program(driver):
    unit = driver.granularity
    raw, base = driver.allocate(5000), driver.reserve(8 * unit)
    first, second = driver.create_chunk(unit), driver.create_chunk(2 * unit)
    driver.map_chunk(base, first)
    driver.map_chunk(base + unit, second)
    driver.map_chunk(base + 4 * unit, first)
    driver.enable_access(base, 3 * unit)
    driver.fill(raw, 1, 10, 0)
    stream, event = driver.create_stream(), driver.create_event()
    if hasattr(driver, "pause"):
        driver.pause(stream)
    driver.record_event(event, stream)
    driver.wait_event(0, event)
    driver.fill(raw, 1, 10, 0)
    if hasattr(driver, "pause"):
        driver.resume(stream)
    driver.event_done(event)
    driver.synchronize()
    driver.unmap(base, 8 * unit)
    driver.release_chunk(first)
    driver.release_chunk(second)
    driver.unreserve(base, 8 * unit)
    driver.free(raw)
    driver.destroy_event(event)
    driver.destroy_stream(stream)


def interrupt(driver, nth):
    """Run the program and interrupt it at the nth line of the driver's code; return whether it got there."""
    lines = 0

    def trace(frame, event, _argument):
        nonlocal lines
        if "smartpool/driver" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        if event == "line":
            lines += 1
            if lines == nth:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        program(driver)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def go_on(driver):
    """Use the device again before anything has looked at the books."""
    unit = driver.granularity
    base, chunk = driver.reserve(unit), driver.create_chunk(unit)
    driver.map_chunk(base, chunk)


def give_back(driver):
    """Return everything that the books say is held."""
    book = driver._book
    for mapping in book.mappings():
        driver.unmap(mapping.start, mapping.size)
    for start, size in list(book._reservations):
        driver.unreserve(start, size)
    for chunk in list(book.chunks):
        driver.release_chunk(chunk)
    for start, _ in list(book._raw):
        driver.free(start)


@pytest.mark.parametrize("name", ["model", pytest.param("cpu", marks=linux)])
def test_an_interrupt_leaves_sound_books(name):
    nth = 0
    while True:
        nth += 1
        driver = make(name)
        if not interrupt(driver, nth):
            break
        if driver._lock.locked():
            driver._lock.release()
        go_on(driver)
        driver.check()
        for stream in [*driver._queues._streams, *driver._queues._destroyed]:
            driver.resume(stream)
        driver.synchronize()
        give_back(driver)
        driver.check()
        assert not any(driver.held().values())
        assert driver._footprint.held == 0
    assert nth > 500


@linux
def test_an_interrupt_leaves_the_book_of_a_cuda_device_sound():
    """Every third line: the fake device is made of the driver's own code and has many."""
    nth = 1
    while True:
        driver = make("cuda")
        if not interrupt(driver, nth):
            break
        for lock in (driver._lock, driver.driver._lock, driver.context.api.cpus[0]._lock):
            if lock.locked():
                lock.release()
        go_on(driver)
        driver.check()
        nth += 3
    assert nth > 500
