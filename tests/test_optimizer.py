"""The optimizer over several devices: streams, launch shapes, balance."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import smartpool
from smartpool import AllocationRequest, GPUMemoryOptimizer, MiB
from smartpool.driver import CpuDriver, ModelDriver, open_driver
from smartpool.driver.between import copy_between
from smartpool.errors import ConfigurationError, DeviceNotFoundError, StreamError, UnsupportedError

linux = pytest.mark.skipif(sys.platform != "linux", reason="the cpu device has virtual memory on Linux alone")


@pytest.fixture(params=["model", pytest.param("cpu", marks=linux)])
def optimizer(request, monkeypatch):
    """Two devices of 64 MiB."""
    make = {"model": lambda: ModelDriver(64 * MiB), "cpu": lambda: CpuDriver(capacity=64 * MiB)}[
        request.param
    ]
    monkeypatch.setattr("smartpool.smart_pool.open_driver", lambda _: make())
    with GPUMemoryOptimizer(
        {"devices": [request.param] * 2, "streams_per_device": 3, "enable_auto_defragmentation": False}
    ) as optimizer:
        yield optimizer
        optimizer.pool.check()


def readable(pool):
    return pool.managers[0].driver.dl_device[0] == 1


def ask(pool, size, **options):
    return pool.allocate_memory(AllocationRequest(size=size, **options))


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


def test_a_wrong_number_of_streams():
    with pytest.raises(ConfigurationError, match="streams_per_device"):
        GPUMemoryOptimizer({"devices": ["cpu"], "streams_per_device": 0})


def test_only_a_gpu_has_launch_shapes(optimizer):
    with pytest.raises(UnsupportedError, match="no kernels"):
        optimizer.launch_shape(0x1000)


def test_a_stream_that_cannot_be_destroyed_does_not_keep_the_pool_open():
    optimizer = GPUMemoryOptimizer({"devices": ["cpu"]})
    pool = optimizer.pool
    optimizer.streams().next()
    pool.managers[0].driver.faults.fail("destroy_stream")
    with pytest.raises(smartpool.DriverError):
        optimizer.close()
    assert pool.closed


# ------------------------------------------------------------------ balance


def test_buffers_move_with_their_contents(optimizer):
    pool = optimizer.pool
    first, second = pool.managers
    pinned = ask(pool, 10 * MiB, device_id=0)
    moving = []
    for _ in range(4):
        blocker = ask(pool, 45 * MiB, device_id=1)
        moving.append(ask(pool, 8 * MiB, alignment=4096))
        pool.deallocate_memory(blocker.allocation_id)
    buffers = [pinned.buffer, *(result.buffer for result in moving)]
    if readable(pool):
        for number, buffer in enumerate(buffers):
            buffer._manager.driver.fill(buffer.pointer, number + 1, buffer.nbytes, 0)
    assert first.live_bytes == 42 * MiB
    old = {buffer: buffer.pointer for buffer in buffers}
    outcome = optimizer.balance()
    assert outcome.moved_bytes == 24 * MiB
    assert (first.live_bytes, second.live_bytes) == (18 * MiB, 24 * MiB)
    assert outcome.shares_before == (42 / 64, 0)
    assert outcome.shares_after == (18 / 64, 24 / 64)
    moved = {move.allocation_id for move in outcome.moved}
    for result in moving:
        assert (result.buffer.pointer != old[result.buffer]) == (result.allocation_id in moved)
        assert result.buffer.pointer % 4096 == 0
        assert (result.buffer._manager is second) == (result.allocation_id in moved)
    if readable(pool):
        for number, buffer in enumerate(buffers):
            assert bytes(buffer.memoryview()) == bytes([number + 1]) * buffer.nbytes
    again = optimizer.balance()
    assert again.moved == ()
    for result in (pinned, *moving):
        pool.deallocate_memory(result.allocation_id)
    assert first.live_bytes == second.live_bytes == 0


def test_what_must_not_move_stays(optimizer):
    pool = optimizer.pool
    stay = [ask(pool, 4 * MiB, device_id=0), ask(pool, 4 * MiB, device_id=0)]
    if readable(pool):
        blocker = ask(pool, 40 * MiB, device_id=1)
        exported = ask(pool, 4 * MiB)
        array = np.from_dlpack(exported.buffer)
        pool.deallocate_memory(blocker.allocation_id)
        array[:] = 3
        stay.append(exported)
    pointers = [result.buffer.pointer for result in stay]
    freed = ask(pool, MiB)
    freed.buffer.free()
    assert optimizer.balance().moved == ()
    assert [result.buffer.pointer for result in stay] == pointers


def test_the_limit_is_kept(optimizer):
    pool = optimizer.pool
    blocker = ask(pool, 50 * MiB, device_id=1)
    results = [ask(pool, 5 * MiB) for _ in range(6)]
    pool.deallocate_memory(blocker.allocation_id)
    assert all(result.buffer._manager is pool.managers[0] for result in results)
    assert optimizer.balance(limit_bytes=11 * MiB).moved_bytes == 10 * MiB
    assert optimizer.balance(tolerance=1.0).moved == ()


def test_a_copy_that_fails_leaves_the_buffer_where_it_was(optimizer):
    pool = optimizer.pool
    if not readable(pool):
        pytest.skip("the model copies nothing")
    blocker = ask(pool, 50 * MiB, device_id=1)
    result, _ = ask(pool, 5 * MiB), ask(pool, 4 * MiB)
    pool.deallocate_memory(blocker.allocation_id)
    pointer = result.buffer.pointer
    pool.managers[0].driver.faults.fail("read")
    with pytest.raises(smartpool.DriverError):
        optimizer.balance()
    assert result.buffer.pointer == pointer
    assert pool.managers[1].live_bytes == 0
    assert optimizer.balance().moved_bytes == 5 * MiB


def unbalanced(pool):
    """Return four allocations of the first device that are free to move, while the second is empty."""
    results = [ask(pool, 10 * MiB) for _ in range(8)]
    for result in results:
        if result.buffer._manager is pool.managers[1]:
            pool.deallocate_memory(result.allocation_id)
    return [result for result in results if not result.buffer.released]


def test_a_buffer_that_is_freed_meanwhile_is_not_moved(optimizer):
    pool = optimizer.pool
    results, taken = unbalanced(pool), []

    def other(event):
        if not taken:
            pool.deallocate_memory(results[0].allocation_id)
            pool.deallocate_memory(results[1].allocation_id)
            taken.append(None)
            taken.extend(pool.managers[0].malloc(10 * MiB) for _ in range(2))

    pool.hooks.on_allocate(other)
    outcome = optimizer.balance()
    assert all(pool.managers[0].owns(pointer) for pointer in taken[1:])
    assert results[0].buffer.released
    assert results[1].buffer.released
    assert not {move.allocation_id for move in outcome.moved} & {r.allocation_id for r in results[:2]}
    assert sum(manager.live_bytes for manager in pool.managers) == 40 * MiB
    assert optimizer.balance(tolerance=0.0)


def test_a_buffer_that_is_exported_meanwhile_is_not_moved(optimizer):
    pool = optimizer.pool
    if not readable(pool):
        pytest.skip("NumPy does not read the model's memory")
    results, arrays = unbalanced(pool), []

    def other(event):
        if not arrays:
            arrays.extend((None, *(np.from_dlpack(result.buffer) for result in results)))

    pool.hooks.on_allocate(other)
    assert optimizer.balance().moved == ()
    for result, array in zip(results, arrays[1:], strict=True):
        assert result.buffer.pointer == array.ctypes.data
        assert pool.managers[0].owns(array.ctypes.data)
    assert pool.managers[1].live_bytes == 0


def test_a_buffer_that_was_freed_by_itself_does_not_stop_the_balance(optimizer):
    pool = optimizer.pool
    result = ask(pool, MiB)
    result.buffer.free()
    with pytest.raises(smartpool.DoubleFreeError):
        pool.deallocate_memory(result.allocation_id)
    assert optimizer.balance().moved == ()


def test_what_was_exported_by_the_array_interface_stays(optimizer, monkeypatch):
    pool = optimizer.pool
    results = unbalanced(pool)
    for manager in pool.managers:
        monkeypatch.setattr(manager.driver, "dl_device", (2, 0), raising=False)
    addresses = [result.buffer.__cuda_array_interface__["data"][0] for result in results]
    assert optimizer.balance().moved == ()
    assert all(pool.managers[0].owns(address) for address in addresses)


def test_devices_of_different_kinds_do_not_copy():
    with pytest.raises(UnsupportedError, match="one kind"):
        copy_between(ModelDriver(1 << 20), open_driver("cpu"), 1, 2, 3)
    copy_between(ModelDriver(1 << 20), open_driver("cpu"), 1, 2, 0)


def test_the_model_accounts_for_a_copy():
    first, second = ModelDriver(64 * MiB), ModelDriver(64 * MiB)
    copy_between(first, second, second.allocate(MiB), first.allocate(MiB), MiB)
    before = first.seconds
    copy_between(first, second, second.allocate(MiB), 0, MiB)
    assert first.seconds > before
