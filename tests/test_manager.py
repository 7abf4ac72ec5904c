"""The pool of one device against a naive model: contents, accounting, streams, faults."""

from __future__ import annotations

import os
import threading
from random import Random

import pytest
from promises import pool_promises

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import (
    DoubleFreeError,
    InvalidSizeError,
    OutOfMemoryError,
    PoolClosedError,
    RequestTooLargeError,
    SmartPoolError,
    StreamError,
    UnknownPointerError,
)
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.testing import Invariant, check_allocator
from smartpool.units import MiB

CAPACITY = 64 * MiB
EXPLORE = {"examples": 2000, "seconds": 120.0, "seed": None} if os.environ.get("HYPOTHESIS_PROFILE") else {}


@pytest.mark.parametrize("device", [ModelDriver, CpuDriver])
@pytest.mark.parametrize(
    ("policy", "faults"), [*((policy, False) for policy in POLICIES), ("balanced", True)]
)
def test_any_program_of_requests_frees_streams_trims_and_failing_calls(policy, device, faults):
    """The kit that ships for everybody's allocators, on ours: `pool_promises` says what is held."""
    config = SmartPoolConfig(policy=policy)
    report = check_allocator(
        lambda driver: AdvancedMemoryPoolManager(driver, config),
        driver=lambda: device(capacity=CAPACITY),
        streams=2,
        faults=faults,
        **{"examples": 25, **EXPLORE, **pool_promises(CAPACITY)},
    )
    seldom = {Invariant.SERVED, Invariant.ZERO_SIZE, Invariant.STREAM_ORDER}  # the first two beside faults
    unseen = {Invariant.CONTENTS, Invariant.USABLE} if device is ModelDriver else set()
    assert set(report.unchecked) <= seldom | unseen


@pytest.fixture
def driver():
    return ModelDriver(CAPACITY)


@pytest.fixture
def pool(driver):
    with AdvancedMemoryPoolManager(driver) as manager:
        yield manager
        manager.check()


# ---------------------------------------------------------------------- stream order


def test_memory_of_a_busy_stream_is_not_handed_to_another_before_an_event(driver):
    """The other stream gets it only behind a wait that the device will honour."""
    pool = AdvancedMemoryPoolManager(driver)
    first, second = driver.create_stream(), driver.create_stream()
    whole = pool.malloc(60 * MiB, first)
    driver.pause(first)
    driver.fill(whole, 1, 60 * MiB, first)
    pool.free(whole)
    other = pool.malloc(60 * MiB, second)  # must be the same memory: the device holds no more
    assert driver.calls["wait_event"] == 1
    driver.fill(other, 2, 60 * MiB, second)
    event = driver.create_event()
    driver.record_event(event, second)
    assert not driver.event_done(event)  # the second stream waits for the first
    driver.resume(first)
    assert driver.event_done(event)
    pool.check()


def test_a_done_event_needs_no_wait(driver):
    pool = AdvancedMemoryPoolManager(driver)
    first, second = driver.create_stream(), driver.create_stream()
    pool.free(pool.malloc(60 * MiB, first))
    pool.malloc(60 * MiB, second)
    assert driver.calls["wait_event"] == 0


def test_the_same_stream_reuses_at_once(driver):
    pool = AdvancedMemoryPoolManager(driver)
    stream = driver.create_stream()
    driver.pause(stream)
    pointer = pool.malloc(5 * MiB, stream)
    pool.free(pointer)
    assert pool.malloc(5 * MiB, stream) == pointer
    assert driver.calls["record_event"] == 0


def test_free_on_another_stream_moves_the_block_there(driver):
    pool = AdvancedMemoryPoolManager(driver)
    first, second = driver.create_stream(), driver.create_stream()
    pointer = pool.malloc(3 * MiB, first)
    pool.free(pointer, second)
    assert pool.malloc(3 * MiB, second) == pointer


def test_recorded_streams_hold_the_block_back(driver):
    pool = AdvancedMemoryPoolManager(driver)
    stream = driver.create_stream()
    pointer = pool.malloc(60 * MiB)
    pool.record_stream(pointer, stream)
    driver.pause(stream)
    driver.fill(pointer, 1, 60 * MiB, stream)
    pool.free(pointer)
    again = pool.malloc(60 * MiB)
    event = driver.create_event()
    driver.record_event(event, 0)
    assert not driver.event_done(event)
    driver.resume(stream)
    pool.free(again)


def test_memory_is_not_unmapped_under_running_work(driver):
    pool = AdvancedMemoryPoolManager(driver)
    pointer = pool.malloc(40 * MiB)
    driver.pause(0)
    driver.fill(pointer, 1, 40 * MiB, 0)
    pool.free(pointer)
    assert pool.trim() == 0
    assert driver.calls["unmap"] == 0
    driver.resume(0)
    assert pool.trim() == 40 * MiB


# ---------------------------------------------------------------------- elasticity


def test_free_memory_in_the_wrong_place_serves_a_large_request(pool):
    blocks = [pool.malloc(4 * MiB) for _ in range(16)]
    for block in blocks[::2]:
        pool.free(block)
    big = pool.malloc(32 * MiB)  # no 8 MiB of it are contiguous
    assert pool.reserved_bytes == CAPACITY
    assert big not in blocks


def test_large_alignments_fit_behind_gaps_that_start_anywhere(pool):
    pool.malloc(3000)
    pool.malloc(17 * MiB)
    pool.malloc(5 * MiB + 512)
    for shift in range(9, 25):
        assert pool.malloc_aligned(512, 1 << shift) % (1 << shift) == 0
    pool.check()


def test_a_refused_request_leaves_everything_as_it_was(pool):
    blocks = [pool.malloc(8 * MiB) for _ in range(7)]
    before = pool.snapshot()
    with pytest.raises(OutOfMemoryError, match=r"live in 7 blocks.*largest free range"):
        pool.malloc(9 * MiB)
    after = pool.snapshot()
    assert (after.live_bytes, after.live_blocks) == (before.live_bytes, before.live_blocks)
    assert pool.malloc(8 * MiB) not in blocks  # what remains can still be had


def test_the_limit_holds(driver):
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(max_bytes="16MiB"))
    pool.malloc(10 * MiB)
    with pytest.raises(OutOfMemoryError):
        pool.malloc(8 * MiB)
    with pytest.raises(RequestTooLargeError):
        pool.malloc(17 * MiB)
    with pytest.raises(RequestTooLargeError, match=r"Tried to allocate 1 B .* aligned to 32 MiB"):
        pool.malloc_aligned(1, 32 * MiB)
    assert pool.peak_reserved_bytes <= 16 * MiB


def test_a_share_of_the_device_is_a_limit_too(driver):
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(max_bytes=0.5))
    with pytest.raises(RequestTooLargeError):
        pool.malloc(33 * MiB)
    pool.malloc(32 * MiB)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pool: pool.malloc(-1), InvalidSizeError),
        (lambda pool: pool.malloc(512.0), InvalidSizeError),
        (lambda pool: pool.malloc(True), InvalidSizeError),
        (lambda pool: pool.malloc("512"), InvalidSizeError),
        (lambda pool: pool.malloc(None), InvalidSizeError),
        (lambda pool: pool.malloc(CAPACITY + 1), RequestTooLargeError),
        (lambda pool: pool.malloc(512, stream="left"), StreamError),
        (lambda pool: pool.malloc(512, stream=12345), StreamError),
        (lambda pool: pool.free(12345), UnknownPointerError),
        (lambda pool: pool.free(None), UnknownPointerError),
        (lambda pool: pool.free([]), UnknownPointerError),
    ],
)
def test_bad_input_gets_one_clear_error_and_changes_nothing(pool, call, error):
    pool.free(pool.malloc(512))  # a cached size of 512, and one that floats and booleans could hit
    pool.free(pool.malloc(1))
    with pytest.raises(error) as caught:
        call(pool)
    assert isinstance(caught.value, SmartPoolError)
    pool.check()
    pool.free(pool.malloc(CAPACITY))


def test_double_free_in_the_bin_and_in_the_arena(pool):
    pointer = pool.malloc(4096)
    pool.free(pointer)
    with pytest.raises(DoubleFreeError):
        pool.free(pointer)
    pool.flush()
    with pytest.raises(DoubleFreeError):
        pool.free(pointer)
    with pytest.raises(DoubleFreeError):
        pool.free(pointer, 0)


def test_an_address_in_the_middle_of_a_block_is_unknown(pool):
    pointer = pool.malloc(4096)
    with pytest.raises(UnknownPointerError):
        pool.free(pointer + 512)
    pool.free(pointer)


def test_a_bad_stream_does_not_lose_the_block(pool):
    pointer = pool.malloc(4096)
    with pytest.raises(StreamError):
        pool.free(pointer, stream=777)
    pool.free(pointer)


def test_a_closed_pool_refuses_and_still_takes_back(driver):
    pool = AdvancedMemoryPoolManager(driver)
    pointer = pool.malloc(4096)
    pool.close()
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.malloc(4096)
    assert driver.memory_info().free < CAPACITY
    pool.free(pointer)
    assert pool.reserved_bytes == 0


def test_a_pool_that_is_dropped_gives_its_memory_back(driver):
    pool = AdvancedMemoryPoolManager(driver)
    pool.free(pool.malloc(4096))
    memory = pool.slow_path.memory
    del pool
    assert memory.reserved_bytes == 0


# ---------------------------------------------------------------------- direct mode


def test_pooling_off_goes_to_the_driver_each_time(driver):
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(enable_advanced_pooling=False))
    pointers = [pool.malloc(1000) for _ in range(3)]
    for pointer in pointers:
        pool.free(pointer)
    assert (driver.calls["allocate"], driver.calls["free"]) == (3, 3)
    assert pool.reserved_bytes == 0
    with pytest.raises(UnknownPointerError):  # what went back to the device is not ours any more
        pool.free(pointers[0])
    pool.check()


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize("threads", [4])
def test_threads_on_the_quick_and_the_searching_path(threads):
    driver = CpuDriver(capacity=256 * MiB)
    pool = AdvancedMemoryPoolManager(driver)
    failures = []

    def work(seed):
        random = Random(seed)
        held = []
        try:
            for _ in range(400):
                if held and random.random() < 0.5:
                    pointer, nbytes = held.pop(random.randrange(len(held)))
                    assert driver.read(pointer, 8) == seed.to_bytes(8, "little")
                    pool.free(pointer)
                else:
                    nbytes = random.choice([512, 4096, 70_000, 2 * MiB, random.randrange(8, 3 * MiB)])
                    pointer = pool.malloc(nbytes)
                    driver.write(pointer, seed.to_bytes(8, "little"))
                    held.append((pointer, nbytes))
                    if len(held) > 16:
                        pool.free(held.pop(0)[0])
                if random.random() < 0.02:
                    pool.trim()
            for pointer, _ in held:
                pool.free(pointer)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    pool.check()
    pool.trim(wait=True)
    assert pool.reserved_bytes == 0


@pytest.mark.parametrize("nbytes", [1 * MiB + 512, 2 * MiB - 512, 2 * MiB + 512, 3 * MiB + 512])
@pytest.mark.parametrize("policy", ["balanced", "tight", "fast"])
def test_blocks_a_little_larger_than_half_a_chunk_lie_side_by_side(policy, nbytes):
    driver = ModelDriver(1024 * MiB)
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(policy=policy))
    for step in range(100):
        pool.malloc(nbytes + 512 * step)
    assert pool.reserved_bytes <= 1.04 * pool.live_bytes + 4 * MiB
    pool.check()
