"""The optimizer over several devices: streams, one pool."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from waiting import PATIENCE_S

import smartpool
from smartpool import AllocationRequest, GPUMemoryOptimizer, MiB, integrate_smartpool_with_gpu_optimizer
from smartpool.driver import CpuDriver, ModelDriver
from smartpool.errors import ConfigurationError, DeviceNotFoundError, StreamError

linux = pytest.mark.skipif(sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone")


@pytest.fixture(params=["model", pytest.param("cpu", marks=linux)])
def optimizer(request, monkeypatch):
    """Two devices of 64 MiB."""
    make = {"model": lambda: ModelDriver(64 * MiB), "cpu": lambda: CpuDriver(capacity=64 * MiB)}[
        request.param
    ]
    monkeypatch.setattr("smartpool.pool_set.open_driver", lambda _: make())
    with GPUMemoryOptimizer(
        {"devices": [request.param] * 2, "streams_per_device": 3, "enable_auto_defragmentation": False}
    ) as optimizer:
        yield optimizer
        optimizer.pool.check()


def test_streams_of_each_device(optimizer):
    first, second = optimizer.streams(0), optimizer.streams(1)
    assert optimizer.streams(0) is first
    assert first is not second
    assert first.size == 3
    with second.borrow() as stream:
        manager = optimizer.pool.managers[1]
        pointer = manager.malloc(1000, stream)
        assert manager.stream_of(pointer) == stream.handle
        manager.free(pointer, stream)
        with pytest.raises(StreamError):
            manager.malloc(1000, object())
    for wrong in (2, -1, "0", None, True):
        with pytest.raises(DeviceNotFoundError):
            optimizer.streams(wrong)


def test_a_closed_optimizer_has_closed_its_streams_and_its_pool(optimizer):
    streams = optimizer.streams()
    stream = streams.next()
    kept = optimizer.pool.malloc(1000, stream.handle)
    optimizer.close()
    optimizer.close()
    assert len(streams) == 0
    with pytest.raises(smartpool.PoolClosedError):
        optimizer.pool.allocate(10)
    optimizer.pool.free(kept)  # its stream is gone: the device is waited for


def test_threads_that_ask_first_at_once_get_one_pool(monkeypatch):
    opened = []

    def opening(name):
        opened.append(name)
        together.wait(0.05) if len(opened) == 1 else None
        return ModelDriver(64 * MiB)

    together = threading.Event()
    monkeypatch.setattr("smartpool.pool_set.open_driver", opening)
    optimizer = GPUMemoryOptimizer({"devices": ["model"]})
    begin, pools = threading.Barrier(4), []

    def ask():
        begin.wait(PATIENCE_S)
        pools.append(optimizer.pool)
        pools.append(optimizer.streams())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["model"]
    assert set(pools) == {optimizer.smart_pool, optimizer.streams()}
    optimizer.close()


def test_a_closed_optimizer_makes_nothing_more():
    optimizer = GPUMemoryOptimizer({"devices": ["model:1GiB"]})
    optimizer.close()
    for call in (lambda: optimizer.pool, optimizer.streams, optimizer.__enter__):
        with pytest.raises(smartpool.PoolClosedError, match="expected an open optimizer"):
            call()
    with GPUMemoryOptimizer({"devices": ["model:1GiB"]}) as optimizer:
        assert optimizer.pool.malloc(100)
    with pytest.raises(smartpool.PoolClosedError):
        optimizer.streams()


def test_device_ids_may_be_any_integers():
    optimizer = GPUMemoryOptimizer({"device_ids": [np.int64(1), 0]})
    assert optimizer.device_names == ("cuda:1", "cuda:0")
    for bad in ([0.0], ["0"], [True], [-1], "01", 0, [[0]]):
        with pytest.raises(ConfigurationError, match=r"^device_ids: expected"):
            GPUMemoryOptimizer({"device_ids": bad})


def test_a_wrong_number_of_streams():
    with pytest.raises(ConfigurationError, match="streams_per_device"):
        GPUMemoryOptimizer({"devices": ["cpu"], "streams_per_device": 0})


def test_a_stream_that_cannot_be_destroyed_does_not_keep_the_pool_open():
    optimizer = GPUMemoryOptimizer({"devices": ["cpu"]})
    pool = optimizer.pool
    optimizer.streams().next()
    pool.managers[0].driver.faults.fail("destroy_stream")
    with pytest.raises(smartpool.DriverError):
        optimizer.close()
    assert pool.closed


def test_a_request_without_a_device_goes_where_most_memory_is_available(optimizer):
    pool = optimizer.pool
    first, second = pool.managers
    pool.allocate_memory(AllocationRequest(size=10 * MiB, device_id=0))
    results = [pool.allocate_memory(AllocationRequest(size=8 * MiB)) for _ in range(4)]
    assert (first.live_bytes, second.live_bytes) == (18 * MiB, 24 * MiB)
    for result in results:
        pool.deallocate_memory(result.allocation_id)
    assert (first.live_bytes, second.live_bytes) == (10 * MiB, 0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"enable_smart_pool": 1}, "enable_smart_pool"),
        ({"device_ids": ["0"]}, "device_ids"),
        ({"device_ids": []}, "device_ids"),
        ({"device_ids": [-1]}, "device_ids"),
        ({"devices": "cpu"}, "devices"),
        ({"devices": ["cpu", 3]}, "devices"),
        ([("devices", ["cpu"])], "config"),
        ("cpu", "config"),
        ({3: 4, "devices": ["cpu"]}, "3"),
        ({"optimization_interval": 10**400}, "optimization_interval"),
        ({"devices": ["cpu"], "device_ids": [0]}, "devices"),
        ({"devices": ["cpu"], "fragmentation_treshold": 0.3}, "fragmentation_treshold"),
        ({"devices": ["cpu"], "fragmentation_threshold": 3}, "fragmentation_threshold"),
    ],
)
def test_a_wrong_setting_is_named(settings, field):
    with pytest.raises(ConfigurationError) as caught:
        GPUMemoryOptimizer(settings)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


def test_a_pool_that_does_not_come_by_itself_is_made_by_hand():
    with GPUMemoryOptimizer({"enable_smart_pool": False, "devices": ["model:1GiB"]}) as optimizer:
        with pytest.raises(ConfigurationError, match=r"^enable_smart_pool: .*integrate_smartpool_with"):
            _ = optimizer.pool
        assert optimizer.smart_pool is None
        assert "no pool yet" in repr(optimizer)
        pool = integrate_smartpool_with_gpu_optimizer(optimizer)
        assert optimizer.pool is optimizer.smart_pool is pool
        assert integrate_smartpool_with_gpu_optimizer(optimizer) is pool
    assert pool.closed
    with pytest.raises(ConfigurationError):
        integrate_smartpool_with_gpu_optimizer({"devices": ["cpu"]})
