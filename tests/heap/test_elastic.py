"""The elastic heap: growing, undo, giving back, on devices of any size."""

from __future__ import annotations

import os

import pytest
from promises import pool_promises

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import (
    DriverError,
    InvalidRequestError,
    InvariantError,
    OutOfMemoryError,
    RequestTooLargeError,
)
from smartpool.heap.mappings import Mapping, State
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.testing import check_allocator
from smartpool.units import MiB

CAPACITY = 64 * MiB
EXPLORE = {"examples": 1000, "seconds": 120.0, "seed": None} if os.environ.get("HYPOTHESIS_PROFILE") else {}


def open_pool(driver, **config):
    return AdvancedMemoryPoolManager(driver, SmartPoolConfig(**config))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("capacity", "spared"), [(2, 0), (4, 0), (6, 0), (16, 12_345), (64, 777_777)])
def test_any_program_of_any_alignment_on_a_device_of_any_size(policy, capacity, spared):
    """Small devices, limits that are no whole chunks, alignments up to 8 MiB, two streams."""
    config = SmartPoolConfig(policy=policy, max_bytes=capacity * MiB - spared)
    check_allocator(
        lambda driver: AdvancedMemoryPoolManager(driver, config),
        driver=lambda: ModelDriver(capacity * MiB),
        streams=1,
        **{"examples": 10, **EXPLORE, **pool_promises(capacity * MiB - spared)},
    )


@pytest.mark.parametrize("bad", [0, -512, 3, 513, 1000, 512.0, "512", None, True])
def test_a_bad_alignment(bad):
    pool = open_pool(ModelDriver(CAPACITY))
    with pytest.raises(InvalidRequestError, match="alignment: expected a power of two"):
        pool.malloc_aligned(100, bad)
    with pytest.raises(RequestTooLargeError):
        pool.malloc_aligned(100, 1 << 40)
    pool.check()


@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("shift", [0, 9, 12, 21, 23])
def test_alignment_with_and_without_pooling(pooling, shift):
    pool = open_pool(ModelDriver(CAPACITY), enable_advanced_pooling=pooling)
    pointers = [pool.malloc_aligned(1000 + step, 1 << shift) for step in range(4)]
    assert all(pointer % (1 << shift) == 0 for pointer in pointers)
    for pointer in pointers:
        pool.free(pointer)
    pool.trim()
    assert pool.reserved_bytes == 0


def test_direct_frees_wait_for_their_streams_without_blocking():
    driver = ModelDriver(CAPACITY)
    pool = open_pool(driver, enable_advanced_pooling=False)
    pointer = pool.malloc(40 * MiB)
    driver.pause(0)
    driver.fill(pointer, 1, MiB, 0)
    pool.free(pointer)
    assert driver.calls["free"] == 0
    driver.resume(0)
    pool.free(pool.malloc(40 * MiB))
    assert driver.faults.lost is None
    assert pool.trim() + pool.reserved_bytes == 0
    driver.faults.fail("free")
    pool.free(pool.malloc(100))  # refused by the device: kept, and tried again
    assert pool.reserved_bytes > 0
    pool.trim()
    assert pool.reserved_bytes == 0


def test_trim_keeps_what_it_is_told_to():
    pool = open_pool(ModelDriver(CAPACITY), policy="tight")
    held = pool.malloc(10 * MiB)
    pool.free(pool.malloc(40 * MiB))
    assert pool.trim(30 * MiB) > 0
    assert 30 * MiB - 2 * MiB <= pool.reserved_bytes <= 30 * MiB + 2 * MiB
    pool.trim()
    assert pool.reserved_bytes == 10 * MiB
    pool.free(held)


def test_a_double_fault_is_repaired_later():
    """The undo of a failed step fails too: the mapping stays on the books until it can go."""
    driver = ModelDriver(CAPACITY)
    pool = open_pool(driver)
    for interrupt in (None, KeyboardInterrupt()):
        driver.faults.fail("enable_access")
        driver.faults.fail("unmap", error=interrupt)
        with pytest.raises((DriverError, KeyboardInterrupt)):
            pool.malloc(10 * MiB)
        pool.check()
        pool.free(pool.malloc(CAPACITY - 32 * MiB))
        pool.trim(wait=True)
        assert pool.reserved_bytes == 0
        assert driver.held()["mappings"] == 0
    pool.close()
    assert not any(driver.held().values())


def test_many_live_blocks_leave_nothing_longer_to_walk():
    """Not by the clock: nothing that a request walks has grown."""
    pool = open_pool(ModelDriver(1 << 40))
    for _ in range(20_000):
        pool.malloc(1 << 16)
    gaps = pool.slow_path.heap._home.gap_count
    assert gaps <= 2
    assert len(pool.slow_path.bins) == 1
    assert len(pool.slow_path.touched) <= 1


def test_check_finds_what_does_not_agree():
    for damage in (
        lambda heap: heap._slabs.starts.add(5),
        lambda heap: heap._chunks.table.remove(next(iter(heap._chunks)).start),
        lambda heap: heap._chunks.table.add(Mapping(5, 5, 5)),
        lambda heap: setattr(next(iter(heap._chunks)), "state", State.UNMAPPED),
        lambda heap: heap._chunks.give(512, 512),
    ):
        pool = open_pool(ModelDriver(CAPACITY))
        pool.malloc(5 * MiB)
        damage(pool.slow_path.heap)
        with pytest.raises(InvariantError):
            pool.check()
        pool.disown()  # its books are damaged: nothing is to be given back by them


@pytest.mark.parametrize("policy", POLICIES)
def test_a_request_that_cannot_be_served_is_refused_before_anything_is_made(policy):
    driver = ModelDriver(1024 * MiB)
    other = driver.create_chunk(600 * MiB)  # a neighbor's
    pool = open_pool(driver, policy=policy)
    held = [pool.malloc(20 * MiB) for _ in range(10)]
    for block in held[::2]:
        pool.free(block)
    before, reserved = driver.calls.copy(), pool.reserved_bytes
    for size in (900 * MiB, 600 * MiB, 425 * MiB):
        with pytest.raises(OutOfMemoryError):
            pool.malloc(size)
    made = {call: count - before[call] for call, count in driver.calls.items() if count > before[call]}
    assert set(made) <= {"memory_info"}
    assert pool.reserved_bytes == reserved
    assert pool.malloc(150 * MiB)
    driver.release_chunk(other)
    pool.check()
