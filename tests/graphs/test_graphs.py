"""Captures: what a graph has baked in is never another's, and the pool does nothing that ruins a capture."""

from __future__ import annotations

import gc
import os
import sys
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import smartpool
from smartpool.driver import CpuDriver, ModelDriver
from smartpool.errors import CaptureError, OutOfMemoryError, PoolClosedError, UnsupportedError
from smartpool.graphs.memory import GraphMemory
from smartpool.manager import AdvancedMemoryPoolManager

MiB = 1 << 20
KiB = 1 << 10

if sys.platform != "linux":
    pytest.skip("needs the cpu device's virtual memory", allow_module_level=True)


def make_pool(capacity=96 * MiB, driver=None, **options):
    options.setdefault("enable_auto_defragmentation", False)
    driver = driver or CpuDriver(capacity=capacity)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smartpool.pool_set.open_driver", lambda _, **__: driver)
        return smartpool.SmartPool("cpu", smartpool.SmartPoolConfig(**options))


class GraphMachine(RuleBasedStateMachine):
    """Graphs are replayed at any time; nobody else's bytes may change, and theirs must be as they wrote."""

    streams = 3

    def __init__(self):
        super().__init__()
        self.pool = make_pool(policy="tight")
        self.manager = self.pool.managers[0]
        self.driver = self.manager.driver
        self.handles = [None, *(self.driver.create_stream() for _ in range(self.streams))]
        self.live = {}  # address -> (size, value, graph memory or None)
        self.memories = []
        self.graphs = []  # (graph, memory, {address: (size, value)} as the replay leaves it)
        self.scope = self.captured = self.writes = self.memory = None
        self.value = 0

    def teardown(self):
        if self.scope is not None:
            self.end()
        for pointer in list(self.live):
            self.free_block(pointer)
        for memory in self.memories:
            memory.close()
        self.pool.check()
        self.pool.trim(wait=True)  # what was freed after its memory was closed is collected by a flush
        assert type(self.manager) is AdvancedMemoryPoolManager
        self.pool.close()
        assert not any(self.driver.held().values())

    def next_value(self):
        self.value = self.value % 255 + 1
        return self.value

    @rule(size=st.integers(1, 3 * MiB), stream=st.integers(0, 3))
    def allocate(self, size, stream):
        handle = self.handles[stream]
        try:
            pointer = self.manager.malloc(size, handle)
        except OutOfMemoryError:
            return
        inside = self.scope is not None and handle == self.captured
        for address, (length, _, _) in self.live.items():
            assert pointer + size <= address or address + length <= pointer
        for _, memory, _ in self.graphs:
            if not (inside and memory is self.memory):
                for start, length in memory.regions():
                    assert pointer + size <= start or start + length <= pointer, "baked memory has two owners"
        value = self.next_value()
        self.driver.fill(pointer, value, size, handle or 0)
        if inside:
            for address, (length, _) in list(self.writes.items()):
                if pointer < address + length and address < pointer + size:
                    del self.writes[address]  # reused within the graph
            self.writes[pointer] = (size, value)
        self.live[pointer] = (size, value, self.memory if inside else None)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), other=st.integers(0, 3))
    def free(self, data, other):
        self.free_block(data.draw(st.sampled_from(sorted(self.live))), self.handles[other] if other else None)

    def free_block(self, pointer, stream=None):
        del self.live[pointer]
        self.manager.free(pointer, stream)

    @precondition(lambda self: self.scope is None)
    @rule(stream=st.integers(1, 3), data=st.data())
    def begin(self, stream, data):
        reused = data.draw(st.sampled_from([None, *self.memories]))
        self.captured = self.handles[stream]
        self.scope = self.pool.capture(self.captured, memory=reused)
        self.memory = self.scope.__enter__()
        if reused is None:
            self.memories.append(self.memory)
        self.writes = {}
        self.driver.begin_capture(self.captured)

    @precondition(lambda self: self.scope is not None)
    @rule()
    def end(self):
        graph = self.driver.end_capture(self.captured)  # raises when anything ruined it
        self.scope.__exit__(None, None, None)
        self.graphs.append((graph, self.memory, self.writes))
        # What was captured was not done: the blocks hold what the first replay writes.
        graph.replay()
        self.scope = self.captured = self.memory = None

    @precondition(lambda self: self.scope is None and self.graphs)
    @rule(data=st.data())
    def replay(self, data):
        graph, memory, writes = data.draw(st.sampled_from(self.graphs))
        graph.replay()
        for address, (size, value) in writes.items():
            assert self.driver.read(address, size) == bytes([value]) * size
        for pointer, (_, _, own) in list(self.live.items()):
            if own is memory and pointer not in writes:
                self.free_block(pointer)  # another graph of that memory wrote there: its users know

    @precondition(lambda self: self.scope is None and self.memories)
    @rule(data=st.data())
    def let_go(self, data):
        memory = data.draw(st.sampled_from(self.memories))
        self.memories.remove(memory)
        self.graphs = [entry for entry in self.graphs if entry[1] is not memory]
        memory.close()
        for pointer, (size, value, own) in list(self.live.items()):
            if own is memory:
                self.live[pointer] = (size, value, None)

    @rule()
    def trim(self):
        self.pool.trim()

    @invariant()
    def others_are_untouched(self):
        with self.driver.beside_capture():
            for pointer, (size, value, memory) in self.live.items():
                if memory is None:
                    assert self.driver.read(pointer, size) == bytes([value]) * size
        self.pool.check()


TestGraphMemory = GraphMachine.TestCase
TestGraphMemory.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.fixture
def pool():
    pool = make_pool()
    yield pool
    pool.check()
    pool.close()


@pytest.fixture
def driver(pool):
    return pool.managers[0].driver


@pytest.fixture
def stream(driver):
    return driver.create_stream()


# ------------------------------------------------------------------ what a scope holds


def test_freed_memory_is_reused_inside_and_by_nobody_else(pool, driver, stream):
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        first = pool.malloc(MiB, stream)
        pool.free(first)
        assert pool.malloc(300 * KiB, stream) == first  # a piece of it
        second = pool.malloc(700 * KiB, stream)
        assert first < second < first + MiB
        driver.end_capture(stream)
    for pointer in (first, second):
        pool.free(pointer)
    assert held.held_bytes == MiB
    assert held.holds(second)
    assert not held.holds(first + MiB)
    others = [pool.malloc(MiB, stream) for _ in range(20)]
    assert all(not held.holds(pointer) for pointer in others)
    assert pool.managers[0].live_bytes == 20 * MiB
    held.close()
    assert held.held_bytes == 0
    for pointer in others:
        pool.free(pointer)


def test_memory_of_one_graph_serves_the_next(pool, driver, stream):
    with pool.capture(stream) as held:
        pool.free(first := pool.malloc(MiB, stream))
    with pool.capture(stream, memory=held) as again:
        assert again is held
        assert pool.malloc(MiB, stream) == first
    assert held.held_bytes == MiB
    pool.free(first)
    held.close()
    with pytest.raises(CaptureError, match="closed"), pool.capture(stream, memory=held):
        pass


def test_what_is_live_at_the_close_becomes_ordinary(pool, stream):
    manager = pool.managers[0]
    with pool.capture(stream) as held:
        small, large = pool.malloc(1000, stream), pool.malloc(2 * MiB, stream)
    pool.free(large)
    held.close()
    assert held.closed
    assert manager.owns(small)
    assert 0 < held.held_bytes < 2 * MiB  # the region of what lives
    pool.check()
    pool.free(small)
    pool.trim()
    assert held.held_bytes == 0
    assert type(manager) is AdvancedMemoryPoolManager
    held.close()


def test_what_several_streams_used_rests_until_the_close(pool, driver, stream):
    other = driver.create_stream()
    with pool.capture(stream) as held:
        pointer = pool.malloc(MiB, stream)
        pool.managers[0].record_stream(pointer, other)
        pool.free(pointer)
        assert pool.malloc(MiB, stream) != pointer
        by_free = pool.malloc(MiB, stream)
        pool.free(by_free, other)
        third = pool.malloc(MiB, stream)
        assert third not in (pointer, by_free)
    late = third
    held.close()
    driver.pause(other)
    work = pool.malloc(64, other)
    driver.fill(work, 1, 64, other)
    pool.free(late, other)  # ordinary by now, and used on another stream
    pool.managers[0].flush()
    again = pool.malloc(MiB, stream)
    driver.fill(again, 1, MiB, stream)
    driver.resume(other)
    pool.free(again)
    pool.free(work)


def test_a_capture_that_fails_leaves_no_memory_behind(pool, driver, stream):
    def program():
        nonlocal held
        with pool.capture(stream) as held:
            driver.begin_capture(stream)
            pool.free(pool.malloc(MiB, stream))
            raise ZeroDivisionError

    held = None
    with pytest.raises(ZeroDivisionError):
        program()
    driver.end_capture(stream)
    assert held.closed
    assert held.held_bytes == 0


def test_aligned_requests(pool, stream):
    with pool.capture(stream) as held:
        assert pool.managers[0].malloc_aligned(1000, 1 << 16, stream) % (1 << 16) == 0
        pool.free(pool.managers[0].malloc_aligned(0, 4096, stream))
    held.close()
    for pointer in pool.managers[0].live_blocks():
        pool.free(pointer)


def test_bins_come_back_as_they_were(pool, driver, stream):
    manager = pool.managers[0]
    warm = pool.malloc(5000, stream)
    pool.free(pool.malloc(5000, stream))
    with pool.capture(stream) as held:
        pool.free(warm)  # an ordinary block, freed meanwhile
        inside = pool.malloc(5000, stream)
        assert inside != warm
        other = driver.create_stream()
        pool.free(pool.malloc(7000, other))
        pool.free(pool.malloc(7000))
    assert pool.malloc(5000, stream) == warm
    for pointer in (warm, inside):
        pool.free(pointer)
    held.close()
    assert manager.live_bytes == 0


def test_other_threads_go_on(pool, driver, stream):
    errors = []

    def work(own):
        try:
            for size in range(1, 200):
                pointer = pool.malloc(size * 1000, own)
                pool.free(pointer)
        except smartpool.SmartPoolError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in (None, driver.create_stream())]
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        for thread in threads:
            thread.start()
        for size in range(1, 100):
            pool.free(pool.malloc(size * 1000, stream))
        for thread in threads:
            thread.join()
        driver.end_capture(stream)
    assert not errors
    held.close()


def test_memory_does_not_grow_beside_a_capture_that_lasts(pool, driver, stream):
    own = driver.create_stream()
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        reserved = set()
        for _ in range(200):
            for other in (None, own):
                pool.free(pool.malloc(3 * MiB, other), other)
                pool.free(pool.malloc(700, other), other)
            reserved.add(pool.managers[0].reserved_bytes)
        driver.end_capture(stream)
    assert len(reserved) == 1
    held.close()


def test_recorders_see_captured_requests(pool, stream):
    pool.start_recording()
    with pool.capture(stream) as held:
        pool.free(pool.malloc(MiB, stream))
    trace = pool.stop_recording()
    assert trace.allocations == 1
    assert trace.peak_live_bytes == MiB
    held.close()


# ------------------------------------------------------------------ what is refused


def test_what_cannot_be_captured(pool, driver, stream):
    with pytest.raises(CaptureError, match="default stream"), pool.capture(None):
        pass
    driver.begin_capture(stream)
    with pytest.raises(CaptureError, match="not being captured yet"), pool.capture(stream):
        pass
    driver.end_capture(stream)
    with pytest.raises(smartpool.StreamError), pool.capture(777):
        pass
    with pytest.raises(smartpool.DeviceNotFoundError), pool.capture(stream, device_id=3):
        pass
    with pool.capture(stream) as held:
        with pytest.raises(CaptureError, match="take turns"), pool.capture(driver.create_stream()):
            pass
        with pytest.raises(CaptureError, match="end it first"):
            held.close()
        with pytest.raises(CaptureError, match="outside of a capture"), pool.step():
            pass
    held.close()
    with make_pool() as other, other.capture(other.managers[0].driver.create_stream()) as foreign:
        pass
    with pytest.raises(CaptureError, match="open graph memory"), pool.capture(stream, memory=foreign):
        pass
    with pool.step(), pytest.raises(CaptureError, match="planned step"), pool.capture(stream):
        pass
    with make_pool(debug=True) as watched:
        own = watched.managers[0].driver.create_stream()
        with pytest.raises(UnsupportedError, match="debug mode"), watched.capture(own):
            pass
    with make_pool(enable_advanced_pooling=False) as raw:
        own = raw.managers[0].driver.create_stream()
        with pytest.raises(UnsupportedError, match="enable_advanced_pooling"), raw.capture(own):
            pass


def test_exports_beside_a_capture(pool, driver, stream):
    outside, inside = pool.allocate(100), None
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        inside = pool.allocate(100, stream)
        manager = pool.managers[0]
        manager.order_after(inside.pointer, stream)
        with pytest.raises(CaptureError, match="before the capture"):
            manager.order_after(outside.pointer, stream)
        with pytest.raises(CaptureError, match="before the capture"):
            manager.order_after(inside.pointer, 0)
        manager.order_after(outside.pointer, driver.create_stream())
        driver.end_capture(stream)
    inside.free()
    held.close()


def test_a_pool_that_is_closed_meanwhile(driver, pool, stream):
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        pool.close()
        with pytest.raises(PoolClosedError):
            pool.malloc(100, stream)
        driver.end_capture(stream)
    held.close()
    assert not any(driver.held().values())
    with pytest.raises(PoolClosedError), pool.capture(stream):
        pass


def test_a_closed_pool_keeps_a_graphs_memory_until_it_is_closed_too(driver, pool, stream):
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        pool.free(pointer := pool.malloc(MiB, stream))
        driver.fill(pointer, 3, MiB, stream)
        graph = driver.end_capture(stream)
    pool.close()
    graph.replay()
    assert driver.read(pointer, 1) == b"\x03"
    held.close()
    assert not any(driver.held().values())


def test_out_of_memory_inside_of_a_capture(stream):
    pool = make_pool(8 * MiB)
    driver = pool.managers[0].driver
    own = driver.create_stream()
    with pool.capture(own) as held:
        driver.begin_capture(own)
        kept = pool.malloc(6 * MiB, own)
        with pytest.raises(OutOfMemoryError):
            pool.malloc(6 * MiB, own)
        driver.end_capture(own)
    pool.free(kept)
    pool.check()
    held.close()
    pool.close()


def test_a_step_that_ends_nothing_and_a_region_that_becomes_free(pool, driver, stream):
    """The region of a planned step whose last block dies beside a capture is given back after it."""
    for _ in range(3):
        with pool.step(wait_for_plan=True):
            late = pool.malloc(MiB)
            pool.free(late)
    with pool.step(wait_for_plan=True):
        late = pool.malloc(MiB)
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        pool.free(late)
        with pytest.raises(OutOfMemoryError):
            pool.malloc(200 * MiB, stream)
        big = pool.malloc(90 * MiB, stream) if driver.memory_info().free > 90 * MiB else None
        pool.check()
        driver.end_capture(stream)
    if big:
        pool.free(big)
    held.close()


def test_without_virtual_memory():
    class Plain(CpuDriver):
        def __init__(self):
            super().__init__(capacity=64 * MiB)
            self.granularity = 0

    pool = make_pool(driver=Plain())
    driver = pool.managers[0].driver
    stream = driver.create_stream()
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        pool.free(pool.malloc(MiB, stream))  # a raw allocation beside the capture, with leave
        driver.end_capture(stream)
    held.close()
    pool.close()


def test_on_the_model():
    pool = make_pool(driver=ModelDriver(64 * MiB))
    stream = pool.managers[0].driver.create_stream()
    with pool.capture(stream) as held:
        pool.free(pool.malloc(MiB, stream))
    assert "1 MiB held" in repr(held)
    held.close()
    pool.close()


def test_memory_that_was_never_used_and_a_pool_that_is_dropped():
    pool = make_pool()
    GraphMemory(pool.managers[0]).close()
    stream = pool.managers[0].driver.create_stream()
    pool.managers[0].begin_capture(GraphMemory(pool.managers[0]))
    assert pool.managers[0].capturing
    pool.managers[0].end_capture()
    with pool.capture(stream) as held:
        pool.free(pool.malloc(MiB, stream))
    del pool, held
    gc.collect()


def test_after_a_fork_the_memory_is_the_parents(pool, stream):
    with pool.capture(stream) as held:
        pool.free(pool.malloc(MiB, stream))
    child = os.fork()
    if not child:
        held.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert held.held_bytes == MiB
    held.close()


def test_a_request_that_is_interrupted_inside_of_a_capture(pool, driver, stream):
    with pool.capture(stream) as held:
        driver.begin_capture(stream)
        kept = pool.malloc(MiB, stream)
        driver.faults.fail("map_chunk", error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            pool.malloc(8 * MiB, stream)
        driver.fill(pool.malloc(8 * MiB, stream), 1, 8 * MiB, stream)
        driver.fill(kept, 2, MiB, stream)
        graph = driver.end_capture(stream)
    graph.replay()
    assert driver.read(kept, 1) == b"\x02"
    pool.check()
    for pointer in list(pool.managers[0].live_blocks()):
        pool.free(pointer)
    held.close()


def test_a_pool_that_was_closed_in_a_capture_serves_nothing_behind_it():
    pool = make_pool()
    manager = pool.managers[0]
    stream, other = (manager.driver.create_stream() for _ in range(2))
    keep = manager.malloc(1000)
    manager.free(manager.malloc(5000, other))
    with pool.capture(stream) as memory:
        manager.free(manager.malloc(5000, other))
        pool.close()
    memory.close()
    with pytest.raises(PoolClosedError):
        manager.malloc(5000, other)
    manager.free(keep)
    assert not any(manager.driver.held().values())


def test_regions_that_a_capture_owes_are_given_back_though_no_event_is_recorded():
    """The end of a capture asks the driver for nothing: a plan's region goes with a mark."""
    config = smartpool.SmartPoolConfig(max_bytes=128 * MiB, enable_auto_defragmentation=False)
    with smartpool.SmartPool("model:1GiB", config) as pool:
        manager = pool.managers[0]
        stream, other = (manager.driver.create_stream() for _ in range(2))
        for repetition in range(3):
            held = []
            with pool.step(wait_for_plan=True):
                held += [manager.malloc(20 * MiB), manager.malloc(20 * MiB, other)]
                if repetition < 2:
                    for pointer in held:
                        manager.free(pointer)
        with pool.capture(stream) as memory:
            for pointer in held:
                manager.free(pointer)
            with pytest.raises(OutOfMemoryError):
                manager.malloc(120 * MiB)
            assert len(manager.graphs.owed) == 2
            manager.driver.faults.fail("record_event")
        memory.close()
        manager.flush()
        pool.check()
        assert manager.live_bytes == 0
