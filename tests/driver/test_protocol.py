"""A driver that somebody else wrote, under a pool: any object of the protocol, and none that is not whole."""

from __future__ import annotations

import numpy as np
import pytest

import smartpool
from smartpool import AdvancedMemoryPoolManager, ConfigurationError, GPUMemoryOptimizer, MiB, SmartPool
from smartpool.driver import CpuDriver, Driver, ModelDriver
from smartpool.driver.protocol import check_driver, looks_like_driver

METHODS = [name for name in vars(Driver) if not name.startswith("_") and name != "seconds"]


class Borrowed:
    """A driver that is none of ours by class: it hands every call on."""

    def __init__(self, behind, name, dl_device):
        self._behind = behind
        self.name = name
        self.dl_device = dl_device
        self.granularity = behind.granularity
        self.default_stream = behind.default_stream
        self.calls = behind.calls

    def __repr__(self):
        return f"<Borrowed {self.name}>"

    @property
    def seconds(self):
        return self._behind.seconds


def handing_on(name):
    return lambda self, *arguments, **named: getattr(self._behind, name)(*arguments, **named)


for method in METHODS:
    setattr(Borrowed, method, handing_on(method))


def borrowed_model(name="theirs:0"):
    return Borrowed(ModelDriver(1 << 30), name, (12, 0))


@pytest.mark.parametrize("settings", [{}, {"debug": True}, {"record": True, "track": True}])
def test_a_pool_on_a_driver_of_somebody_elses(settings):
    driver = borrowed_model()
    assert isinstance(driver, Driver)
    with SmartPool(driver, max_bytes="512MiB", **settings) as pool:
        assert pool.managers[0].driver is driver
        assert repr(pool).startswith("<SmartPool on theirs:0: ")
        pointer = pool.malloc(10 * MiB)
        buffer = pool.empty((4, 4), "float32")
        assert buffer.device == "theirs:0"
        for _ in range(3):
            with pool.step():
                pool.free(pool.malloc(5000))
        stream = driver.create_stream()
        pool.free(pool.malloc(3 * MiB, stream), stream)
        result = pool.allocate_memory(smartpool.AllocationRequest(size=100))
        pool.deallocate_memory(result.allocation_id)
        assert pool.managers[0].live_bytes == 10 * MiB + 64
        assert list(pool.get_statistics()["devices"]) == ["theirs:0"]
        assert pool.memory_map().device == "theirs:0"
        assert "theirs:0" in str(pool.statistics)
        pool.measured_reduction()
        del buffer
        pool.free(pointer)
        pool.optimize_memory()
        pool.check()
    assert not any(driver.held().values())
    with pytest.raises(smartpool.DriverError, match="CLOSED"):
        driver.allocate(512)  # the driver was the pool's


def test_its_memory_is_read_where_it_says_that_it_is():
    with SmartPool(Borrowed(CpuDriver(), "host:0", (1, 0))) as pool:
        array = np.from_dlpack(pool.empty(1000, "uint8"))
        array[:] = 7
        assert int(array.sum()) == 7000
        del array


def test_drivers_and_names_stand_side_by_side():
    driver = borrowed_model()
    with SmartPool(["model:1GiB", driver]) as pool:
        pointer = pool.managers[1].malloc(1000)
        pool.free(pointer)
        assert [manager.driver.name for manager in pool.managers] == ["model:1GiB", "theirs:0"]
    with GPUMemoryOptimizer({"devices": [borrowed_model("a:0"), borrowed_model("b:0")]}) as optimizer:
        assert optimizer.device_names == ("a:0", "b:0")
        assert "a:0, b:0" in repr(optimizer)
        assert optimizer.pool.allocate(1000).device == "a:0"
        assert optimizer.streams(1).next().device == "b:0"
    with pytest.raises(ConfigurationError, match=r"driver: expected a driver of its own .* <Borrowed"):
        SmartPool([driver := borrowed_model(), driver])


@pytest.mark.parametrize("missing", [*METHODS, "name", "dl_device", "granularity", "default_stream", "calls"])
def test_a_driver_that_is_not_whole_is_told_what_it_lacks(missing):
    class Half(Borrowed):
        def __getattribute__(self, name):
            if name == missing:
                raise AttributeError(name)
            return object.__getattribute__(self, name)

        def __repr__(self):
            return "<Half>"

    half = Half(ModelDriver(1 << 30), "half:0", (12, 0))
    expected = rf"^driver: expected every member of smartpool\.driver\.Driver, got <Half> without {missing}$"
    for call in (
        lambda: SmartPool(half),
        lambda: SmartPool(["model:1GiB", half]),
        lambda: AdvancedMemoryPoolManager(half),
        lambda: GPUMemoryOptimizer({"devices": [half]}),
        lambda: check_driver(half),
    ):
        with pytest.raises(ConfigurationError, match=expected):
            call()


def test_what_is_no_driver_at_all():
    for thing in (5, None, object(), {}, {"devices": ["cpu"]}, (), set()):
        assert not looks_like_driver(thing)
        with pytest.raises(smartpool.DeviceNotFoundError, match="expected a device name, a"):
            SmartPool(thing)
        with pytest.raises(ConfigurationError, match=r"^driver: .* without allocate, "):
            AdvancedMemoryPoolManager(thing)
    for driver in (ModelDriver(1 << 30), CpuDriver(), borrowed_model()):
        assert looks_like_driver(driver)
        check_driver(driver)
