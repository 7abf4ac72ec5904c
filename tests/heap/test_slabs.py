"""Slabs: small requests apart from the large gaps, in blocks of home that go back whole."""

from __future__ import annotations

import pytest

from smartpool.config import SmartPoolConfig
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import InvariantError
from smartpool.heap.arena import Arena, Range
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.growing import Growing
from smartpool.heap.mappings import Mappings
from smartpool.heap.policy import policy_of
from smartpool.heap.slabs import Slabs
from smartpool.heap.stream_order import StreamClock
from smartpool.heap.windows import Windows
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import KiB, MiB

CAPACITY = 64 * MiB


def open_pool(driver, **config):
    return AdvancedMemoryPoolManager(driver, SmartPoolConfig(**config))


def make_slabs(driver):
    """Return slabs without a heap, and the home that they are blocks of."""
    memory, clock = DeviceMemory(driver, CAPACITY), StreamClock(driver)
    home, chunks = Arena(), Mappings(memory, primary=True)
    growing = Growing(home, chunks, Windows(memory, clock), memory, clock, policy_of("balanced"), None)
    return Slabs(home, growing), home


def test_small_requests_share_slabs_that_go_back_whole():
    driver = ModelDriver(CAPACITY)
    pool = open_pool(driver)
    small = [pool.malloc(1000) for _ in range(2000)]
    assert pool.reserved_bytes <= 2 * MiB + 8 * MiB
    assert len(pool.slow_path.heap._slabs) == 1
    for pointer in small:
        pool.free(pointer)
    pool.free(pool.malloc(CAPACITY))  # the slab did not stand in its way
    assert not pool.slow_path.heap._slabs


def test_small_requests_where_there_is_no_room_for_a_slab():
    pool = open_pool(CpuDriver(capacity=2 * MiB, granularity=64 * KiB))
    big = pool.malloc(1900 * KiB)
    small = [pool.malloc(1000) for _ in range(20)]
    pool.check()
    pool.free(big)
    for pointer in small:
        pool.free(pointer)
    pool.free(pool.malloc(2 * MiB))


def test_a_slab_is_a_block_of_home_until_nothing_is_live_in_it():
    slabs, home = make_slabs(ModelDriver(CAPACITY))
    while len(slabs) < 3:
        assert slabs.add()
    assert home.live_bytes == slabs.arena.free_bytes == 6 * MiB
    held = slabs.arena.allocate(1024)
    slabs.give_back()
    slabs.check()
    home.check()
    assert home.blocks() == [Range(held, 2 * MiB)]
    slabs.arena.free(held)
    slabs.give_back()
    assert not slabs
    assert home.live_bytes == slabs.arena.extent_bytes == 0


def test_only_a_gap_that_exists_is_spared_and_a_full_device_has_none():
    slabs, home = make_slabs(ModelDriver(CAPACITY))
    assert not slabs.spare()
    assert not home.extent_bytes
    driver = CpuDriver(capacity=1 * MiB, granularity=64 * KiB)
    slabs, home = make_slabs(driver)
    assert not slabs.add()
    assert not slabs
    assert not home.extent_bytes
    assert not driver.held()["chunks"]


def test_mending_forgets_slabs_without_a_block_and_keeps_what_is_live_in_the_others():
    slabs, home = make_slabs(ModelDriver(CAPACITY))
    slabs.add()
    kept = slabs.arena.allocate(1024)
    slabs.add()
    lost = max(slabs.starts)
    home.free(lost)
    with pytest.raises(InvariantError, match="are not blocks of"):
        slabs.check()
    slabs.mend(None)
    slabs.check()
    assert slabs.starts == {kept}
    assert slabs.arena.blocks() == [Range(kept, 1024)]


def test_check_finds_a_slab_that_its_arena_does_not_know():
    slabs, home = make_slabs(ModelDriver(CAPACITY))
    slabs.add()
    home.extend(1 << 50, 2 * MiB)
    slabs.starts.add(home.allocate(2 * MiB))
    with pytest.raises(InvariantError, match="bytes each"):
        slabs.check()
