"""Bins and the live table: races of the quick path, set up one step at a time, and under threads."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from random import Random

import numpy as np
import pytest
from waiting import PATIENCE_S, wait_until

import smartpool.pool.slow_path as searching_module
from smartpool.config import SmartPoolConfig
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import (
    DoubleFreeError,
    PoolClosedError,
    ReentrantCallError,
    SmartPoolError,
    UnknownPointerError,
)
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.pool.bins import Bin
from smartpool.smart_pool import SmartPool
from smartpool.trace.recorder import Recorder
from smartpool.units import KiB, MiB

CAPACITY = 64 * MiB


@pytest.fixture
def driver():
    return ModelDriver(CAPACITY)


@pytest.fixture
def pool(driver):
    return AdvancedMemoryPoolManager(driver)


def hold_everything(pool):
    """A request of the whole device: nothing was lost."""
    pool.check()
    pool.free(pool.malloc(CAPACITY))


# ---------------------------------------------------------------------- what goes into a bin


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
@pytest.mark.parametrize("stream", [None, 0])
def test_pointers_out_of_an_array_become_plain_integers(pool, kind, stream):
    blocks = np.array([pool.malloc(5 * MiB) for _ in range(4)], dtype=kind)
    for block in blocks:
        pool.free(block, stream)
    assert type(pool.malloc(5 * MiB)) is int
    with pytest.raises(DoubleFreeError):
        pool.free(blocks[-1], stream)  # it lies in the middle of a gap by now
    pool.flush()
    pool.check()


@pytest.mark.parametrize("bad", [float, str, lambda pointer: [pointer], lambda _: None, lambda _: True])
def test_what_only_equals_a_pointer_is_refused(pool, bad):
    pointer = pool.malloc(5000)
    for stream in (None, 0):
        with pytest.raises(UnknownPointerError):
            pool.free(bad(pointer), stream)
    pool.free(pointer)
    hold_everything(pool)


def test_bins_of_sizes_that_never_come_back_are_forgotten(pool, monkeypatch):
    monkeypatch.setattr(searching_module, "BINS", 64)
    pool.slow_path.bins_limit = 64
    kept = [pool.malloc(nbytes) for nbytes in range(1, 40)]
    for nbytes in range(1000, 5000):
        pool.free(pool.malloc(nbytes))
        assert len(pool.slow_path.bins) <= 2 * (64 + len(kept))
    for pointer in kept:
        pool.free(pointer)
    assert pool.malloc(7) == kept[6]  # bins of live blocks stay
    pool.check()
    pool.free(kept[6])
    hold_everything(pool)


def test_a_bin_that_was_forgotten_meanwhile_loses_nothing(pool, driver):
    """A free looked the bin up, then the bins were forgotten, then it put the block there."""
    stream = driver.create_stream()
    pointer = pool.malloc(5000)
    bin_ = pool.slow_path.bin_of(5000, stream)
    with pool.working():
        pool.slow_path._forget_bins()
    assert 5000 not in pool.slow_path.bins_of[stream]
    pool.slow_path.bins_of[stream][5000] = bin_
    pool.free(pointer, stream)
    del pool.slow_path.bins_of[stream][5000]
    hold_everything(pool)


# ---------------------------------------------------------------------- between two steps


class Racing(Bin):
    """A bin in which something happens just before a block arrives."""

    __slots__ = ("before",)

    def append(self, pointer):
        before, self.before = self.before, None
        if before:
            before()
        super().append(pointer)


def race(pool, pointer, before):
    """Let `before` happen between the two steps of the free of `pointer`."""
    own = pool.slow_path.live[pointer]
    racing = Racing(own.nbytes, own.size, own.stream, own.tier, own.touched)
    racing.others = own.others
    racing.before = before
    dict.__setitem__(pool.slow_path.live, pointer, racing)


@pytest.mark.parametrize("what", ["flush", "trim"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_free_beside_a_flush_loses_no_block(pool, driver, what, recorded):
    """The bin of a block with recorded streams is known to nobody but `touched`."""
    pointer = pool.malloc(5000)
    if recorded:
        pool.record_stream(pointer, driver.create_stream())
    race(pool, pointer, getattr(pool, what))
    pool.free(pointer)
    hold_everything(pool)


def test_a_free_beside_a_close_keeps_no_memory(pool, driver):
    pointer = pool.malloc(5000)
    race(pool, pointer, pool.close)
    pool.free(pointer)
    wait_until(lambda: not any(driver.held().values()))


def test_a_request_beside_a_close_keeps_its_block(pool, driver):
    """It has taken its block out of the bin and not yet entered it when the pool is closed."""
    pool.free(pool.malloc(5000))
    bin_ = pool.slow_path.bins[5000]
    pointer = bin_.pop()
    pool.close()
    pool.slow_path.live[pointer] = bin_
    time.sleep(0.02)
    assert driver.held()["mappings"] == 1  # not pulled from under the caller
    pool.free(pointer)
    wait_until(lambda: not any(driver.held().values()))


def test_a_closed_pool_hands_out_nothing_that_was_freed_late(pool, driver):
    stream = driver.create_stream()
    first, second, third = (pool.malloc(5000) for _ in range(3))
    pool.close()
    pool.free(first)
    pool.free(second, stream)
    for asked in (None, 0, stream):
        with pytest.raises(PoolClosedError):
            pool.malloc(5000, asked)
    pool.check()
    pool.free(third)
    assert not any(driver.held().values())
    assert pool.trim() == 0
    assert pool.snapshot().reserved_bytes == pool.snapshot().gap_bytes == 0


def test_a_bin_that_another_thread_emptied_is_no_error(pool):
    class Looks(Bin):
        __slots__ = ()

        def __bool__(self):
            return True

    own = pool.slow_path.bin_of(5000, 0)
    pool.slow_path.bins[5000] = Looks(own.nbytes, own.size, own.stream, own.tier, own.touched)
    pool.free(pool.malloc(5000))


# ---------------------------------------------------------------------- destructors and signals


class Interrupting(ModelDriver):
    """Something happens in the middle of a driver call, as a destructor or a signal handler would."""

    during = None

    def map_chunk(self, address, chunk):
        during, self.during = self.during, None
        if during:
            during()
        super().map_chunk(address, chunk)


@pytest.fixture
def interrupting():
    driver = Interrupting(CAPACITY)
    return driver, AdvancedMemoryPoolManager(driver)


@pytest.mark.parametrize(
    "what",
    [
        lambda pool: pool.malloc(3 * MiB),
        lambda pool: pool.malloc_aligned(100, 4096),
        lambda pool: pool.flush(),
        lambda pool: pool.trim(),
        lambda pool: pool.snapshot(),
        lambda pool: pool.fragmentation(),
        lambda pool: pool.check(),
        lambda pool: pool.begin_step("x"),
    ],
)
def test_the_books_are_not_opened_twice_on_one_thread(interrupting, what):
    driver, pool = interrupting
    caught = []

    def during():
        with pytest.raises(ReentrantCallError):
            what(pool)
        caught.append(True)

    driver.during = during
    pool.free(pool.malloc(5 * MiB))
    assert caught
    what(pool)  # and nothing is left behind
    if pool.steps.active:
        pool.end_step()
    pool.check()


def test_in_the_middle_of_a_request_frees_and_cached_requests_are_served(interrupting):
    driver, pool = interrupting
    held, got = pool.malloc(6000), []
    driver.during = lambda: (pool.free(held), got.append(pool.malloc(6000)))
    big = pool.malloc(8 * MiB)
    pool.check()
    pool.free(big)
    pool.free(got[0])
    hold_everything(pool)


def test_closing_in_the_middle_of_a_request(interrupting):
    driver, pool = interrupting
    driver.during = pool.close
    pointer = pool.malloc(5 * MiB)
    assert driver.held()["mappings"] > 0
    with pytest.raises(PoolClosedError):
        pool.malloc(100)
    pool.free(pointer)
    wait_until(lambda: not any(driver.held().values()))


def test_the_collector_may_run_anywhere():
    """Buffers die in cycles, and callbacks of weak references allocate, at every allocation of an object."""
    random, refused = Random(1), []
    with SmartPool("model:80GiB") as pool:

        def callback(_):
            try:
                pool.free(pool.malloc(700 + 512 * random.randrange(8)))
            except ReentrantCallError as error:
                refused.append(error)

        class Node:
            pass

        references = []
        gc.set_threshold(1, 1, 1)
        try:
            for step in range(250):
                node = Node()
                node.buffer, node.cycle = pool.allocate(random.choice([512, 5000, 70_000, 3 * MiB])), node
                references.append(weakref.ref(node, callback))
                node = None
                if step % 50 == 0:
                    pool.trim()
        finally:
            gc.set_threshold(700, 10, 10)
        gc.collect()
        pool.check()
        assert pool.managers[0].live_bytes == 0


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize("pooling", [True, False])
def test_everything_at_once(pooling):
    """Requests, frees on foreign threads, recording on and off, trims, snapshots; then closed under load."""
    driver = CpuDriver(capacity=256 * MiB)
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(enable_advanced_pooling=pooling))
    failures, passed_on, stop = [], [], threading.Event()

    def guarded(work):
        def run():
            try:
                work()
            except PoolClosedError:
                pass
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        return threading.Thread(target=run)

    def worker(seed):
        def work():
            random = Random(seed)
            while True:
                nbytes = random.choice([64, 4096, 4096, 70_000, 2 * MiB, random.randrange(64, 3 * MiB)])
                pointer = pool.malloc(nbytes)
                driver.write(pointer, pointer.to_bytes(8, "little"))
                assert driver.read(pointer, 8) == pointer.to_bytes(8, "little")
                passed_on.append(pointer)
                passed_on.append(None)
                while len(passed_on) > 40:
                    free_one(random)

        return work

    def free_one(random):
        try:
            pointer = passed_on.pop(0)
        except IndexError:
            return
        if pointer is not None:
            pool.free(pointer, random.choice([None, 0]))

    def watcher():
        recorder = Recorder()
        while not stop.is_set():
            pool.telemetry.add_observer(recorder)
            now = pool.snapshot()
            assert 0 <= now.fragmentation.overall <= 1
            assert now.live_blocks >= 0
            pool.telemetry.remove_observer(recorder)
            pool.trim()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [guarded(worker(seed)) for seed in range(4)] + [guarded(watcher)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        pool.close()
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    pool.check()
    for pointer in list(pool.live_blocks()):
        pool.free(pointer)
    wait_until(lambda: not any(driver.held().values()))


# ---------------------------------------------------------------------- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_leaves_the_parents_memory_alone():
    """The pages of the cpu device are shared: a child that trimmed would empty the parent's blocks."""
    driver = CpuDriver(capacity=CAPACITY)
    pool = AdvancedMemoryPoolManager(driver)
    live, cached = pool.malloc(3 * MiB), pool.malloc(5000)
    driver.write(live, b"parent" * 1000)
    pool.free(cached)
    calls = dict(driver.calls)
    with pool.slow_path.section.lock:  # whoever holds it is not there in the child
        child = os.fork()
        if child == 0:
            status = 1
            try:
                refused = 0
                requests = [lambda: pool.malloc(5000), lambda: pool.malloc(5000, 0), lambda: pool.malloc(8)]
                for call in (*requests, pool.trim):
                    try:
                        call()
                    except PoolClosedError as error:
                        refused += "fork" in str(error)
                pool.free(live)
                pool.close()
                status = int(refused != 4 or dict(driver.calls) != calls)
            except SmartPoolError:
                status = 2
            finally:
                os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert driver.read(live, 6000) == b"parent" * 1000
    assert pool.malloc(5000) == cached
    pool.check()


def test_zero_bytes_by_the_thousand_and_flat_snapshots(pool):
    pointers = [pool.malloc(0) for _ in range(4000)]
    assert len(set(pointers)) == 4000
    assert pool.snapshot().live_bytes == 0
    assert pool.snapshot().block_bytes == 4000 * 512
    for pointer in pointers:
        pool.free(pointer)
    assert pool.malloc(0) in pointers
    assert pool.reserved_bytes <= 4 * MiB + 512 * KiB * 8
    pool.check()


def test_an_interrupt_while_bins_are_collected_loses_none(pool):
    """Each bin is still among the touched ones, so the next flush empties it."""

    class Interrupting(set):
        left = 2

        def pop(self):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().pop()

    for pointer in [pool.malloc(nbytes) for nbytes in (7_000, 8_000, 9_000)]:
        pool.free(pointer)
    touched = pool.slow_path.touched_small = Interrupting(pool.slow_path.touched_small)
    with pytest.raises(KeyboardInterrupt):
        pool.slow_path.empty_bins(touched)
    assert len(touched) == 3
    pool.slow_path.empty_bins(touched)
    assert not any(pool.slow_path.bins[nbytes] for nbytes in (7_000, 8_000, 9_000))
    pool.check()


@pytest.mark.parametrize(("reserved", "kept"), [(600 * MiB, True), (100 * MiB, False)])
def test_small_blocks_stay_cached_while_slabs_are_a_trifle(reserved, kept):
    pool = AdvancedMemoryPoolManager(ModelDriver(2048 * MiB))
    pool.malloc(reserved)
    small = pool.malloc(1000)
    pool.free(small)
    before = pool.snapshot().searches
    pool.malloc(reserved)  # the heap grows
    assert pool.malloc(1000) == small or not kept
    assert pool.snapshot().searches - before == (1 if kept else 2)
    pool.check()


def test_a_small_request_that_grows_the_heap_empties_the_small_bins():
    pool = AdvancedMemoryPoolManager(ModelDriver(2048 * MiB))
    pool.malloc(600 * MiB)
    blocks = [pool.malloc(32 * KiB) for _ in range(64)]  # a slab
    for block in blocks:
        pool.free(block)
    assert pool.malloc(63 * KiB) == min(blocks)  # joined out of two of them, in the same slab
    pool.check()


@pytest.mark.parametrize(("gap", "kept"), [(3000 * MiB, True), (300 * MiB, False)])
def test_one_slab_more_is_cheaper_than_emptying_the_small_bins(gap, kept):
    pool = AdvancedMemoryPoolManager(ModelDriver(4096 * MiB))
    large = pool.malloc(gap)
    pool.free(large)
    blocks = [pool.malloc(32 * KiB) for _ in range(64)]  # a slab
    for block in blocks:
        pool.free(block)
    before = pool.snapshot()
    pool.malloc(16 * KiB)
    now = pool.snapshot()
    assert now.cached_bytes == before.cached_bytes if kept else now.cached_bytes == 0
    assert now.flushes == before.flushes + (0 if kept else 1)
    assert now.reserved_bytes == before.reserved_bytes
    pool.check()


def test_a_block_that_lies_where_the_latest_lay_is_not_taken_for_it():
    """Requests that are aligned place blocks, too, and leave what is known of the latest as it is."""
    with AdvancedMemoryPoolManager(ModelDriver(256 * MiB)) as pool:
        latest = pool.malloc(8 * MiB)
        pool.free(latest)
        smaller = pool.malloc_aligned(4 * MiB, 4096)
        behind = pool.malloc_aligned(4 * MiB, 4096)
        assert smaller == latest
        pool.free(smaller)
        large = pool.malloc(8 * MiB)
        assert large + 8 * MiB <= behind or behind + 4 * MiB <= large
        pool.check()
        for pointer in (behind, large):
            pool.free(pointer)
