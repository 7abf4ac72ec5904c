"""Scripted faults: every call of the protocol can fail, changes nothing when it does, and works next time."""

import os
import sys

import pytest

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.driver.faults import CALLS, Faults
from smartpool.errors import DriverError, DriverOutOfMemoryError, InvalidRequestError

linux = pytest.mark.skipif(sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone")
CAN_RUN_OUT = ("allocate", "create_chunk", "allocate_host")


@pytest.fixture(params=["model", pytest.param("cpu", marks=linux)])
def driver(request):
    return ModelDriver(64 << 20) if request.param == "model" else CpuDriver(capacity=64 << 20)


class Scene:
    """Something of each kind, so that every call has something to act on."""

    def __init__(self, driver):
        self.driver = driver
        unit = self.unit = driver.granularity
        self.raw, self.base = driver.allocate(4096), driver.reserve(8 * unit)
        self.spare_base = driver.reserve(unit)
        self.chunk, self.idle = driver.create_chunk(unit), driver.create_chunk(unit)
        self.host = driver.allocate_host(4096)
        self.stream, self.event = driver.create_stream(), driver.create_event()
        driver.map_chunk(self.base, self.chunk)
        driver.enable_access(self.base, unit)
        self.shared, self.foreign = self.idle, -1
        if driver.dl_device[0] == 1:
            other = CpuDriver(capacity=64 << 20)
            for each in (driver, other):
                each.share_chunks()
            self.shared = driver.create_chunk(unit)
            self.foreign = other.export_chunk(other.create_chunk(unit))

    def close(self):
        if self.foreign >= 0:
            os.close(self.foreign)

    def export(self):
        os.close(self.driver.export_chunk(self.shared))

    def calls(self):
        d, unit = self.driver, self.unit
        return {
            "memory_info": d.memory_info,
            "allocate": lambda: d.allocate(100),
            "reserve": lambda: d.reserve(unit),
            "create_chunk": lambda: d.create_chunk(unit),
            "create_stream": d.create_stream,
            "create_event": d.create_event,
            "map_chunk": lambda: d.map_chunk(self.base + unit, self.idle),
            "enable_access": lambda: d.enable_access(self.base, unit),
            "record_event": lambda: d.record_event(self.event, self.stream),
            "event_done": lambda: d.event_done(self.event),
            "wait_event": lambda: d.wait_event(self.stream, self.event),
            "synchronize_event": lambda: d.synchronize_event(self.event),
            "synchronize": d.synchronize,
            "fill": lambda: d.fill(self.raw, 1, 64, self.stream),
            "copy": lambda: d.copy(self.raw + 64, self.raw, 64, self.stream),
            "read": lambda: d.read(self.raw, 1),
            "write": lambda: d.write(self.raw, b"x"),
            "allocate_host": lambda: d.allocate_host(100),
            "copy_to_host": lambda: d.copy_to_host(self.host, self.raw, 64, self.stream),
            "copy_from_host": lambda: d.copy_from_host(self.raw, self.host, 64, self.stream),
            "free_host": lambda: d.free_host(self.host),
            "unmap": lambda: d.unmap(self.base, 8 * unit),
            "export_chunk": self.export,
            "import_chunk": lambda: d.import_chunk(self.foreign, unit),
            "unreserve": lambda: d.unreserve(self.spare_base, unit),
            "release_chunk": lambda: d.release_chunk(self.idle),
            "free": lambda: d.free(self.raw),
            "destroy_event": lambda: d.destroy_event(self.event),
            "destroy_stream": lambda: d.destroy_stream(self.stream),
        }


def state(driver):
    book, queues = driver._book, driver._queues
    mappings = [(m.start, m.handle, m.accessible) for m in book.mappings()]
    streams, events = sorted(queues._streams), sorted(queues._events)
    return book.describe(), mappings, streams, events, driver._footprint.held


@pytest.fixture
def scene(driver):
    made = Scene(driver)
    yield made
    made.close()


def test_the_scene_reaches_every_call(scene):
    assert set(scene.calls()) == CALLS


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_call_that_fails_changes_nothing_and_works_next_time(driver, scene, call):
    if call in ("read", "write", "export_chunk", "import_chunk") and driver.name.startswith("model"):
        pytest.skip("the model has nothing to read")
    before, count = state(driver), driver.calls[call]
    fault = driver.faults.fail(call)
    kind = DriverOutOfMemoryError if call in CAN_RUN_OUT else DriverError
    with pytest.raises(kind) as caught:
        scene.calls()[call]()
    assert type(caught.value) is kind
    assert caught.value.call == call
    assert [name for name, _ in fault.fired] == [call]
    assert caught.value.arguments == fault.fired[0][1]
    driver.check()
    assert state(driver) == before
    assert driver.calls[call] == count + 1  # failed calls count
    assert not driver.faults.alert
    scene.calls()[call]()
    driver.check()


def test_every_call_of_a_program_in_turn():
    """Count the calls of a program, then fail each of them once."""

    def program(driver):
        base, unit = driver.reserve(4 << 20), driver.granularity
        chunk = driver.create_chunk(unit)
        driver.map_chunk(base, chunk)
        driver.enable_access(base, unit)
        driver.unmap(base, unit)
        driver.release_chunk(chunk)
        driver.unreserve(base, 4 << 20)

    clean = ModelDriver(64 << 20)
    program(clean)
    seen = []
    for nth in range(1, clean.calls.total() + 1):
        driver = ModelDriver(64 << 20)
        fault = driver.faults.fail(nth=nth)
        with pytest.raises(DriverError):
            program(driver)
        driver.check()
        seen += [name for name, _ in fault.fired]
    assert seen == [
        "reserve",
        "create_chunk",
        "map_chunk",
        "enable_access",
        "unmap",
        "release_chunk",
        "unreserve",
    ]


def outcomes(driver, count):
    results = []
    for _ in range(count):
        try:
            driver.allocate(1)
            results.append("ok")
        except DriverError as error:
            results.append(error.code)
    return results


def test_which_calls_fail(driver):
    driver.faults.fail("allocate", nth=2, times=2)
    assert outcomes(driver, 5) == ["ok", "INJECTED", "INJECTED", "ok", "ok"]
    driver.faults.script("allocate", [True, False, "ok", "ECC", None])
    assert outcomes(driver, 6) == ["ok", "INJECTED", "ok", "ECC", "INJECTED", "ok"]
    driver.faults.fail("free")
    assert outcomes(driver, 1) == ["ok"]
    driver.faults.clear()
    assert not driver.faults.alert


def test_a_predicate_picks_calls(driver):
    fault = driver.faults.fail(when=lambda call, arguments: arguments.get("size", 0) > 1000, times=2)
    driver.allocate(1000)
    for size in (1001, 4000):
        with pytest.raises(DriverOutOfMemoryError):
            driver.allocate(size)
    driver.allocate(1001)
    assert fault.fired == [("allocate", {"size": 1001}), ("allocate", {"size": 4000})]


def test_errors_to_choose_from(driver):
    driver.faults.fail("free", error="CUDA_ERROR_UNKNOWN")
    driver.faults.fail("synchronize", error=DriverOutOfMemoryError)
    driver.faults.fail("memory_info", error=KeyboardInterrupt())
    with pytest.raises(DriverError, match="CUDA_ERROR_UNKNOWN"):
        driver.free(1)
    with pytest.raises(DriverOutOfMemoryError):
        driver.synchronize()
    with pytest.raises(KeyboardInterrupt):
        driver.memory_info()


def test_a_sticky_fault_loses_the_device(driver):
    address = driver.allocate(100)
    driver.faults.fail("free", error="CUDA_ERROR_ECC_UNCORRECTABLE", sticky=True)
    for _ in range(2):
        with pytest.raises(DriverError, match="ECC_UNCORRECTABLE"):
            driver.free(address)
    for call in (driver.memory_info, driver.synchronize, lambda: driver.allocate(1)):
        with pytest.raises(DriverError, match="lost by an earlier failure") as caught:
            call()
        assert caught.value.code == "CUDA_ERROR_ECC_UNCORRECTABLE"
    driver.faults.clear()
    assert driver.faults.lost == "CUDA_ERROR_ECC_UNCORRECTABLE"
    assert driver.faults.alert
    assert driver.held()["raw"] == 1
    driver.check()


def test_wrong_scripts_are_refused():
    faults = Faults()
    for wrong in ({"call": "malloc"}, {"call": "free", "nth": 0}, {"call": "free", "times": 0}):
        with pytest.raises(InvalidRequestError):
            faults.fail(**wrong)
    assert not faults.alert
