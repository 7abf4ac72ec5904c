"""The pool on a real device: windows, streams, out of memory. Whole programs: `test_testing_kit.py`."""

from __future__ import annotations

import pytest

from smartpool import SmartPool, SmartPoolConfig
from smartpool.driver import open_driver
from smartpool.errors import OutOfMemoryError, SmartPoolError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import KiB, MiB

try:
    DRIVER = open_driver("cuda:0")
except SmartPoolError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def pool():
    config = SmartPoolConfig(max_bytes=64 * MiB, enable_auto_defragmentation=False)
    with SmartPool("cuda:0", config) as pool:
        yield pool
        pool.check()


def test_windows_show_what_is_written_at_home_and_leave_neighbours_alone(pool):
    """A window over chunks that are live on both sides, written by fills of the device."""
    driver = pool.managers[0].driver
    sizes = [3 * MiB + 512 * step for step in range(16)]
    blocks = [pool.malloc(nbytes) for nbytes in sizes]
    for index, block in enumerate(blocks):
        driver.fill(block, index + 1, sizes[index], 0)
    for block in blocks[1::2]:
        pool.free(block)
    window = pool.malloc(20 * MiB)
    assert window in pool.managers[0].slow_path.heap.windows
    driver.fill(window, 200, 20 * MiB, 0)
    for index in range(0, 16, 2):
        assert driver.read(blocks[index], sizes[index]) == bytes([index + 1]) * sizes[index]
    assert driver.read(window, 20 * MiB) == bytes([200]) * (20 * MiB)
    pool.free(window)
    again = pool.malloc(20 * MiB - 512)
    driver.fill(again, 100, 4 * KiB, 0)
    assert driver.read(again, 4 * KiB) == bytes([100]) * (4 * KiB)
    for block in [*blocks[::2], again]:
        pool.free(block)
    assert pool.trim(wait=True) > 0
    assert pool.managers[0].reserved_bytes == 0


def test_memory_of_a_busy_stream_is_taken_behind_a_wait(pool):
    driver = pool.managers[0].driver
    first, second = driver.create_stream(), driver.create_stream()
    for round_ in range(20):
        block = pool.malloc(60 * MiB, first)
        for _ in range(50):
            driver.fill(block, 1, 60 * MiB, first)
        pool.free(block)
        other = pool.malloc(60 * MiB, second)
        driver.fill(other, 2, 60 * MiB, second)
        driver.synchronize(second)
        assert driver.read(other, 4 * KiB) == bytes([2]) * (4 * KiB), round_
        assert driver.read(other + 60 * MiB - 4 * KiB, 4 * KiB) == bytes([2]) * (4 * KiB)
        pool.free(other)


def test_the_whole_device_can_be_had_and_not_more():
    with SmartPool("cuda:0", SmartPoolConfig(enable_auto_defragmentation=False)) as pool:
        driver = pool.managers[0].driver
        free = driver.memory_info().free
        block = pool.malloc(free - 1024 * MiB)
        with pytest.raises(OutOfMemoryError, match="largest free range"):
            pool.malloc(2048 * MiB)
        pool.free(block)
        assert pool.trim(wait=True) > 0
        assert driver.memory_info().free >= free - 64 * MiB


def test_planned_steps_on_the_device(pool):
    manager = pool.managers[0]
    for _ in range(4):
        with pool.step(wait_for_plan=True):
            held = [pool.malloc(size * MiB) for size in (1, 7, 3, 12)]
            for index, block in enumerate(held):
                manager.driver.fill(block, index + 1, 1 * MiB, 0)
            for index, block in enumerate(held):
                assert manager.driver.read(block, 512) == bytes([index + 1]) * 512
                pool.free(block)
    assert manager.snapshot().steps.hits == 12


def test_what_a_plan_left_in_a_window_goes_back_to_the_device():
    """Chunk by chunk, out of mappings that showed all of its region, while one of its blocks is live."""
    config = SmartPoolConfig(policy="tight", enable_auto_defragmentation=False)
    with SmartPool("cuda:0", config) as pool:
        driver = pool.managers[0].driver
        small = [pool.malloc(nbytes * MiB) for nbytes in (16, 2) * 4]
        for pointer in small[::2]:
            pool.free(pointer)
        for repetition in range(2):
            with pool.step():
                blocks = [pool.malloc(nbytes * MiB) for nbytes in (30, 20, 10)]
                for number, pointer in enumerate(blocks):
                    driver.fill(pointer, number + 1, (30, 20, 10)[number] * MiB, 0)
                for pointer in (blocks[0], blocks[2]):
                    pool.free(pointer)
                if repetition:
                    assert pool.statistics.devices[0].steps.hits == 3
                    pool.free(pool.malloc(30 * MiB))  # more than is free beside the region
                    assert pool.statistics.devices[0].steps.left == 1
                    pool.trim(wait=True)
                    assert pool.managers[0].reserved_bytes <= (20 + 12) * MiB
                    other = pool.malloc(60 * MiB)
                    driver.fill(other, 9, 60 * MiB, 0)
                    assert driver.read(blocks[1], 20 * MiB) == b"\2" * (20 * MiB)
                    assert driver.read(other, 60 * MiB) == b"\t" * (60 * MiB)
                    pool.free(other)
                pool.free(blocks[1])
        for pointer in small[1::2]:
            pool.free(pointer)
        pool.check()
        pool.trim(wait=True)
        assert pool.managers[0].reserved_bytes == 0


def test_a_closed_pool_gives_all_back():
    driver = open_driver("cuda:0")
    before = driver.memory_info().free
    manager = AdvancedMemoryPoolManager(open_driver("cuda:0"))
    block = manager.malloc(500 * MiB)
    manager.close()
    manager.free(block)
    assert manager.reserved_bytes == 0
    assert driver.memory_info().free >= before - 16 * MiB
