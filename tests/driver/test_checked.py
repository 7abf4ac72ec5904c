"""A checked driver: what the one beneath would accept is refused, and what that refuses changes nothing."""

from __future__ import annotations

import copy

import pytest

from smartpool.driver import Driver, ModelDriver, open_driver
from smartpool.driver.checked import CheckedDriver
from smartpool.errors import DriverError, SmartPoolError, UnsupportedError

UNIT = 2 << 20
CAPACITY = 64 * UNIT


class Lenient(ModelDriver):
    """A device that does what it is asked, and looks at nothing, as CUDA does in part."""

    def __init__(self):
        super().__init__(CAPACITY)
        self.asked = []

    def release_chunk(self, chunk):
        self.asked.append("release_chunk")

    def enable_access(self, address, size):
        self.asked.append("enable_access")

    def unmap(self, address, size):
        self.asked.append("unmap")

    def unreserve(self, address, size):
        self.asked.append("unreserve")

    def free(self, address):
        self.asked.append("free")


def test_what_breaks_the_rules_does_not_reach_the_driver_beneath():
    lenient = Lenient()
    driver = CheckedDriver(lenient)
    base, chunk, raw = driver.reserve(8 * UNIT), driver.create_chunk(2 * UNIT), driver.allocate(100)
    driver.map_chunk(base, chunk)
    for call in (
        lambda: driver.release_chunk(chunk),
        lambda: driver.release_chunk(chunk + 1),
        lambda: driver.enable_access(base, 4 * UNIT),
        lambda: driver.unmap(base, UNIT),
        lambda: driver.unreserve(base, 8 * UNIT),
        lambda: driver.unreserve(base, UNIT),
        lambda: driver.free(raw + 1),
        lambda: driver.fill(base, 1, UNIT, 0),
        lambda: driver.copy(raw, base, 10, 0),
        lambda: driver.create_chunk(UNIT - 1),
        lambda: driver.export_chunk(chunk + 1),
    ):
        with pytest.raises(DriverError, match="INVALID_VALUE"):
            call()
    assert not lenient.asked
    driver.enable_access(base, 2 * UNIT)
    driver.unmap(base, 8 * UNIT)
    driver.release_chunk(chunk)
    driver.unreserve(base, 8 * UNIT)
    driver.free(raw)
    assert lenient.asked == ["enable_access", "unmap", "release_chunk", "unreserve", "free"]
    assert not any(driver.held().values())


@pytest.mark.parametrize(
    "call", ["free", "unreserve", "release_chunk", "unmap", "map_chunk", "enable_access"]
)
@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_what_the_driver_beneath_refuses_is_as_before(call, error):
    beneath = ModelDriver(CAPACITY)
    driver = CheckedDriver(beneath)
    base, bare, raw = driver.reserve(8 * UNIT), driver.reserve(UNIT), driver.allocate(100)
    mapped, idle = driver.create_chunk(UNIT), driver.create_chunk(UNIT)
    driver.map_chunk(base, mapped)
    before = driver.held(), driver.mapped(0, 1 << 62)
    beneath.faults.fail(call, error=error)
    with pytest.raises((DriverError, KeyboardInterrupt)):
        {
            "free": lambda: driver.free(raw),
            "unreserve": lambda: driver.unreserve(bare, UNIT),
            "release_chunk": lambda: driver.release_chunk(idle),
            "unmap": lambda: driver.unmap(base, UNIT),
            "map_chunk": lambda: driver.map_chunk(base + UNIT, idle),
            "enable_access": lambda: driver.enable_access(base, UNIT),
        }[call]()
    if error is None:  # an interrupt may have come behind the deed: rather a leak than a stale entry
        assert (driver.held(), driver.mapped(0, 1 << 62)) == before
    driver.check()


def test_it_has_what_the_driver_beneath_has():
    beneath = ModelDriver(CAPACITY)
    driver = CheckedDriver(beneath)
    assert isinstance(driver, Driver)
    assert driver.faults is beneath.faults
    assert driver.seconds == beneath.seconds
    driver.memory_info()
    assert driver.seconds == beneath.seconds > 0
    with pytest.raises(AttributeError):
        _ = driver.nothing_of_that_name
    with pytest.raises(SmartPoolError):
        copy.copy(driver)


def test_without_virtual_memory_the_driver_says_so():
    beneath = ModelDriver(CAPACITY)
    beneath.granularity = 0
    driver = CheckedDriver(beneath)
    for call in (driver.reserve, driver.create_chunk):
        with pytest.raises(UnsupportedError, match="no virtual memory"):
            call(UNIT)


def test_devices_that_check_themselves_are_opened_as_they_are():
    for name in ("cpu", "model:1GiB"):
        assert type(open_driver(name, checked=True)) is type(open_driver(name))
