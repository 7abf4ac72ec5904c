"""Many threads at once on one pool, switched as often as the interpreter can.

Every block is filled by its owner with a mark of its own, and looked at before it goes: on the `cpu`
device two owners of one byte would see each other. The same file is run on free-threaded builds.
"""

import ctypes
import gc
import random
import sys
import threading
import time
from collections import deque
from contextlib import suppress

import numpy as np
import pytest
from waiting import PATIENCE_S, wait_until

import smartpool
from smartpool import SmartPool, SmartPoolConfig
from smartpool.errors import OutOfMemoryError, PoolClosedError, ReentrantCallError
from smartpool.units import KiB, MiB

if sys.platform != "linux":
    pytest.skip("needs the cpu device's virtual memory", allow_module_level=True)

SIZES = (0, 1, 700, 60 * KiB, 64 * KiB, 300 * KiB, MiB, 2 * MiB + 512, 3 * MiB)
OPERATIONS = 1600  # of all threads together


@pytest.fixture(autouse=True)
def hasty():
    """Switch threads after a microsecond, and collect garbage all the time."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50, 2, 2)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


class Worker:
    """One thread's blocks, and what it does with them."""

    def __init__(self, pool, number, foreign):
        self.pool, self.number, self.foreign = pool, number, foreign
        self.random = random.Random(number)
        self.manager = pool.managers[0]
        self.stream = self.manager.driver.create_stream()
        self.blocks = {}  # address -> bytes
        self.buffers = []

    def run(self, operations):
        for _ in range(operations):
            self.random.choices(DOINGS, WEIGHTS)[0](self)
        while self.blocks:
            self.free()
        while self.buffers:
            self.drop()

    def hold(self, pointer, nbytes):
        if nbytes:
            ctypes.memset(pointer, self.number, nbytes)
        self.blocks[pointer] = nbytes

    def look(self, pointer, nbytes):
        for at in (pointer, pointer + nbytes // 2, pointer + nbytes - 1) if nbytes else ():
            assert ctypes.string_at(at, 1)[0] == self.number, "somebody else wrote into this block"

    def take(self):
        nbytes = self.random.choice(SIZES)
        stream = self.random.choice((None, None, self.stream))
        self.hold(self.pool.malloc(nbytes, stream), nbytes)

    def take_aligned(self):
        self.hold(self.manager.malloc_aligned(5000, 1 << self.random.randrange(10, 18)), 5000)

    def free(self):
        if self.blocks:
            pointer, nbytes = self.blocks.popitem()
            self.look(pointer, nbytes)
            self.pool.free(pointer, self.random.choice((None, None, self.stream)))

    def use_elsewhere(self):
        if self.blocks:
            self.manager.record_stream(next(iter(self.blocks)), self.stream)

    def buffer(self):
        buffer = self.pool.empty(self.random.choice((3, 1000, 100_000)), "uint8")
        array = np.from_dlpack(buffer)
        array[:] = self.number
        self.buffers.append((array, buffer if self.random.random() < 0.5 else None))

    def drop(self):
        """Drop a buffer here, in a cycle that the collector finds, or on another thread."""
        if not self.buffers:
            return
        pair = self.buffers.pop(self.random.randrange(len(self.buffers)))
        assert (pair[0] == self.number).all()
        way = self.random.randrange(3)
        if way == 1:
            cycle = [pair]
            cycle.append(cycle)
        elif way == 2:
            self.foreign.append(pair)
            if len(self.foreign) > 8:
                with suppress(IndexError):
                    self.foreign.popleft()

    def tidy(self):
        self.random.choice((self.manager.flush, self.pool.trim, self.pool.optimize_memory))()

    def ask(self):
        self.pool.get_statistics()
        repr(self.pool)


DOINGS = (
    Worker.take, Worker.take_aligned, Worker.free, Worker.use_elsewhere,
    Worker.buffer, Worker.drop, Worker.tidy, Worker.ask,
)  # fmt: skip
WEIGHTS = (30, 3, 30, 4, 12, 14, 2, 1)


def together(works):
    """Run every function on a thread of its own, begun at once; raise what the first to fail raised."""
    failures = []
    gate = threading.Barrier(len(works))

    def guarded(work):
        try:
            gate.wait(PATIENCE_S)
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_S
    for thread in threads:
        thread.join(max(0.1, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "the threads wait for one another"
    if failures:
        raise failures[0]


def open_pool(**settings):
    config = SmartPoolConfig(optimization_interval=0.002, fragmentation_threshold=0.0, **settings)
    return SmartPool("cpu", config)


def must_give_all_back(pool):
    (manager,) = pool.managers
    gc.collect()
    pool.check()
    assert manager.live_blocks() == {}
    pool.trim(wait=True)
    assert manager.reserved_bytes == 0
    pool.close()
    assert not any(manager.driver.held().values())


@pytest.mark.parametrize("threads", [2, 4, 16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"policy": "tight", "record": True}, {"enable_advanced_pooling": False}],
    ids=["balanced", "recorded", "direct"],
)
def test_everything_at_once(threads, settings):
    pool = open_pool(**settings)
    foreign = deque()
    workers = [Worker(pool, number + 1, foreign) for number in range(threads)]
    together([lambda worker=worker: worker.run(OPERATIONS // threads) for worker in workers])
    assert pool._maintenance.background.error is None
    foreign.clear()
    must_give_all_back(pool)


@pytest.mark.parametrize("threads", [2, 16])
def test_closed_under_load(threads):
    """Requests are refused from one moment on, frees never; the last one gives all memory back."""
    pool = open_pool()
    (manager,) = pool.managers
    workers = [Worker(pool, number + 1, deque()) for number in range(threads)]

    def work(worker):
        with suppress(PoolClosedError):
            while True:
                worker.random.choice((worker.take, worker.take, worker.free, worker.buffer, worker.drop))()
        while worker.blocks:
            worker.free()
        worker.buffers.clear()
        worker.foreign.clear()

    def close():
        time.sleep(0.05)
        pool.close()

    together([*(lambda worker=worker: work(worker) for worker in workers), close])
    gc.collect()
    # A thread does the waiting when the last free met a lock that was taken.
    wait_until(lambda: not any(manager.driver.held().values()))
    assert manager.live_blocks() == {}


def test_a_buffer_that_the_collector_frees_in_the_middle_of_a_request():
    """Each request of the searching path collects cycles with buffers in them; none waits for itself."""
    pool = open_pool(enable_auto_defragmentation=False)
    gc.set_threshold(1, 1, 1)
    kept = []
    for step in range(300):
        cycle = [pool.empty((step + 1) * 1000, "uint8")]
        cycle.append(cycle)
        del cycle
        kept.append(pool.allocate(2 * MiB + 512 * step))
        if len(kept) > 6:
            del kept[:3]
    kept.clear()
    must_give_all_back(pool)


def test_a_destructor_that_asks_for_memory_in_the_middle_of_a_request():
    """It is served by a bin, or refused with an error that says so; the request around it is not harmed."""
    pool = open_pool(enable_auto_defragmentation=False)
    refused, served = [], []

    class Greedy:
        def __del__(self):
            try:
                served.append(pool.allocate(777 + len(served)))
            except ReentrantCallError as error:
                refused.append(error)

    gc.set_threshold(1, 1, 1)
    kept = []
    for step in range(200):
        greedy = Greedy()
        greedy.itself = greedy
        del greedy
        kept.append(pool.allocate(MiB + 512 * step))
        if len(kept) > 8:
            del kept[::2]
    gc.set_threshold(700, 10, 10)
    gc.collect()
    assert refused or served
    kept.clear()
    served.clear()
    must_give_all_back(pool)


def test_out_of_memory_on_all_threads():
    """Threads that fight for too little memory get it or are told; callbacks make room for one another."""
    pool = SmartPool("cpu", SmartPoolConfig(max_bytes=16 * MiB, enable_auto_defragmentation=False))
    spare = deque()
    refused = []

    def room(_nbytes):
        try:
            spare.popleft()
        except IndexError:
            return False
        return True

    pool.add_out_of_memory_callback(room)

    def work():
        for _ in range(60):
            try:
                spare.append(pool.allocate(3 * MiB))
            except OutOfMemoryError as error:
                refused.append(error)

    together([work] * 8)
    spare.clear()
    must_give_all_back(pool)


def test_planned_steps_beside_other_threads():
    pool = open_pool()
    done = threading.Event()

    def steps():
        for _ in range(12):
            with pool.step(wait_for_plan=True):
                blocks = [pool.malloc(size) for size in (MiB, 3 * MiB, 60 * KiB, MiB)]
                for block in blocks:
                    pool.free(block)
        done.set()

    def others():
        worker = Worker(pool, 7, deque())
        while not done.is_set():
            worker.run(10)

    together([steps, others, others])
    must_give_all_back(pool)


def test_one_wins():
    """One block is freed by many: once, and the others are told."""
    pool = open_pool(enable_auto_defragmentation=False)
    for size in (MiB, 100, 3 * MiB):
        pointer = pool.malloc(size)
        outcomes = []

        def free(pointer=pointer, outcomes=outcomes):
            try:
                pool.free(pointer)
            except (smartpool.DoubleFreeError, smartpool.UnknownPointerError):
                outcomes.append("told")
            else:
                outcomes.append("freed")

        together([free] * 8)
        assert sorted(outcomes) == ["freed"] + ["told"] * 7
    must_give_all_back(pool)
