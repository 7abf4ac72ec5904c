"""Captures that nobody announced: the pool finds them, and what their graphs have baked in stays theirs."""

from __future__ import annotations

import gc
import logging
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import smartpool
from smartpool.driver import CpuDriver, ModelDriver
from smartpool.errors import CaptureError, OutOfMemoryError, UnsupportedError
from smartpool.manager import AdvancedMemoryPoolManager

MiB = 1 << 20

if sys.platform != "linux":
    pytest.skip("needs the cpu device's virtual memory", allow_module_level=True)


def make_pool(driver=None, **options):
    options.setdefault("enable_auto_defragmentation", False)
    driver = driver or CpuDriver(capacity=96 * MiB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smartpool.pool_set.open_driver", lambda _, **__: driver)
        return smartpool.SmartPool("cpu", smartpool.SmartPoolConfig(**options))


@pytest.fixture(params=["virtual", "raw", "pooling off"])
def pool(request):
    driver = CpuDriver(capacity=96 * MiB)
    if request.param == "raw":
        driver.granularity = 0
    pool = make_pool(driver, enable_advanced_pooling=request.param != "pooling off")
    yield pool
    pool.check()
    pool.close()
    assert not any(driver.held().values())


@pytest.fixture
def manager(pool):
    return pool.managers[0]


@pytest.fixture
def driver(manager):
    return manager.driver


@pytest.fixture
def stream(driver):
    stream = driver.create_stream()
    yield stream
    driver.destroy_stream(stream)


def test_a_capture_that_nobody_announced_is_served(pool, manager, driver, stream):
    eager = pool.malloc(MiB, stream)
    driver.begin_capture(stream)
    first = pool.malloc(MiB, stream)
    driver.fill(first, 7, MiB, stream)
    pool.free(first)
    again = pool.malloc(MiB // 2, stream)  # reused inside of the graph
    driver.fill(again, 8, MiB // 2, stream)
    if driver.granularity and manager.config.enable_advanced_pooling:
        pool.free(pool.malloc(3 * MiB))  # the default stream goes on; a raw allocation no capture allows
    graph = driver.end_capture(stream)
    assert first <= again < first + MiB
    pool.free(again)
    others = {
        pool.malloc(size, on): size
        for size in (MiB, MiB // 2, 4096)
        for on in (None, stream)
        for _ in range(4)
    }
    for pointer, size in others.items():
        driver.fill(pointer, 1, size, 0)
    graph.replay()
    driver.synchronize()
    for pointer, size in others.items():
        assert not first - size < pointer < first + MiB
        assert driver.read(pointer, size) == b"\1" * size
        pool.free(pointer)
    assert driver.read(first, MiB) == b"\10" * (MiB // 2) + b"\7" * (MiB // 2)
    pool.free(eager)
    pool.check()
    assert manager.reserved_bytes >= 2 * MiB
    assert manager.snapshot().reserved_bytes == pool.statistics.devices[0].reserved_bytes
    assert manager.memory_map() is not None
    assert pool.trim(captures=True) > 0
    assert manager.reserved_bytes == 0
    assert type(manager) is AdvancedMemoryPoolManager


def test_each_capture_has_memory_of_its_own(pool, manager, driver, stream):
    blocks = []
    for _ in range(3):
        driver.begin_capture(stream)
        blocks.append(pool.malloc(MiB, stream))
        driver.fill(blocks[-1], len(blocks), MiB, stream)
        pool.free(blocks[-1])
        blocks[-1] = blocks[-1], driver.end_capture(stream)
    assert len({pointer for pointer, _ in blocks}) == 3
    for value, (pointer, graph) in enumerate(blocks, 1):
        graph.replay()
        assert driver.read(pointer, 1) == bytes([value])
    pool.trim()
    assert all(
        memory.holds(pointer) for memory, (pointer, _) in zip(manager.graphs.memories, blocks, strict=True)
    )
    pool.trim(captures=True, wait=True)
    assert manager.reserved_bytes == 0


def test_what_was_freed_before_is_not_given_to_the_graph_unseen(pool, driver, stream):
    """Blocks of the stream lie ready in bins; from the first search in the capture on, none is taken."""
    for size in (1000, 5000):
        pool.free(pool.malloc(size, stream))
    driver.begin_capture(stream)
    seen = pool.malloc(MiB, stream)
    inside = [pool.malloc(size, stream) for size in (1000, 5000)]
    (memory,) = pool.managers[0].graphs.memories
    assert all(map(memory.holds, [seen, *inside]))
    for pointer in (seen, *inside):
        pool.free(pointer)
    driver.end_capture(stream)
    outside = [pool.malloc(size, stream) for size in (1000, 5000)]
    assert not any(map(memory.holds, outside))
    for pointer in outside:
        pool.free(pointer)


def test_aligned_and_empty_requests(pool, manager, driver, stream):
    driver.begin_capture(stream)
    blocks = [manager.malloc_aligned(size, 1 << 16, stream) for size in (1, 70_000, 5 * MiB)]
    assert not any(block % (1 << 16) for block in blocks)
    blocks.append(pool.malloc(0, stream))
    for block in blocks:
        pool.free(block)
    driver.end_capture(stream)


def test_it_is_said_once(pool, driver, stream, caplog):
    for _ in range(3):
        driver.begin_capture(stream)
        pool.free(pool.malloc(MiB, stream))
        driver.end_capture(stream)
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "trim(captures=True)" in told[0].getMessage()


def test_what_is_live_keeps_its_memory(pool, manager, driver, stream):
    driver.begin_capture(stream)
    live = pool.malloc(MiB, stream)
    driver.fill(live, 9, MiB, stream)
    driver.end_capture(stream).replay()
    pool.trim(captures=True)
    assert driver.read(live, 1) == b"\x09"
    assert manager.owns(live)
    pool.free(live)
    pool.trim(wait=True)
    assert manager.reserved_bytes == 0


def test_buffers_of_a_capture(pool, driver, stream):
    outside = pool.empty(4, "float32")
    driver.begin_capture(stream)
    buffer = pool.empty((4, 4), "float32", stream=stream)
    assert pool.managers[0].graphs.memories[0].holds(buffer.pointer)
    with pytest.raises(CaptureError, match="before the capture"):
        pool.managers[0].order_after(outside.pointer, stream)
    driver.end_capture(stream)
    del buffer, outside
    gc.collect()
    assert not pool.managers[0].live_blocks()


def test_a_pool_that_is_closed(manager, driver, stream, pool):
    driver.begin_capture(stream)
    kept = pool.malloc(MiB, stream)
    pool.free(pool.malloc(5 * MiB, stream))
    driver.end_capture(stream)
    pool.close()
    assert manager.reserved_bytes < 5 * MiB  # what was free has gone, what is live has not
    manager.free(kept)
    assert driver.held()["chunks"] == driver.held()["raw"] == 0


def test_no_memory(driver, stream, pool):
    taken = pool.malloc(93 * MiB)
    driver.begin_capture(stream)
    with pytest.raises(OutOfMemoryError, match="out of memory") as caught:
        pool.malloc(40 * MiB, stream)
    assert "pool.capture(stream)" in caught.value.__notes__[0]
    driver.end_capture(stream)
    pool.free(taken)


def test_a_driver_that_fails(driver, stream, pool, manager):
    driver.begin_capture(stream)
    driver.faults.fail("allocate")
    with pytest.raises(OutOfMemoryError):
        pool.malloc(MiB, stream)
    pool.free(pool.malloc(MiB, stream))
    driver.end_capture(stream)
    driver.faults.fail("free")
    with pytest.raises(smartpool.DriverError):
        pool.trim(captures=True)
    pool.check()
    pool.trim(captures=True, wait=True)
    assert manager.reserved_bytes == 0


def test_debug_mode_refuses():
    pool = make_pool(debug=True)
    driver = pool.managers[0].driver
    stream = driver.create_stream()
    driver.begin_capture(stream)
    with pytest.raises(UnsupportedError, match="without debug mode"):
        pool.malloc(1000, stream)
    driver.end_capture(stream)
    pool.close()


def test_an_interrupt_in_the_middle(pool, manager, driver, stream):
    """The books are made anew, and what the graph has stays."""
    driver.begin_capture(stream)
    kept = pool.malloc(MiB, stream)
    driver.fill(kept, 3, MiB, stream)
    graph = driver.end_capture(stream)
    with pytest.raises(KeyboardInterrupt), manager.working():
        raise KeyboardInterrupt
    pool.free(pool.malloc(2 * MiB))  # mends
    pool.check()
    graph.replay()
    assert driver.read(kept, 1) == b"\x03"
    assert manager.graphs.memories[0].holds(kept)
    pool.free(kept)


class FoundMachine(RuleBasedStateMachine):
    """Captures begin and end at any time; a replay changes nobody else's bytes, and the pool stays sound."""

    def __init__(self):
        super().__init__()
        self.pool = make_pool()
        self.manager = self.pool.managers[0]
        self.driver = self.manager.driver
        self.handles = [None, *(self.driver.create_stream() for _ in range(2))]
        self.live = {}  # address -> (size, value, whether a graph's)
        self.graphs = []  # (graph, {address: (size, value)} as its replay leaves it)
        self.captured = None
        self.writes = {}
        self.value = 0

    def teardown(self):
        if self.captured is not None:
            self.end()
        for pointer in list(self.live):
            self.pool.free(pointer)
        self.pool.check()
        self.pool.trim(captures=True, wait=True)
        assert self.manager.reserved_bytes == 0
        self.pool.close()
        assert not any(self.driver.held().values())

    @rule(size=st.integers(1, 2 * MiB), stream=st.integers(0, 2))
    def allocate(self, size, stream):
        inside = self.captured is not None
        if inside:  # eager requests beside a capture need one that was announced
            stream = self.handles.index(self.captured)
        try:
            pointer = self.manager.malloc_aligned(size, 512, self.handles[stream])
        except OutOfMemoryError:
            return
        for address, (length, _, _) in self.live.items():
            assert pointer + size <= address or address + length <= pointer
        for _, wrote in self.graphs:
            for address, (length, _) in wrote.items():
                assert pointer + size <= address or address + length <= pointer
        self.value = self.value % 255 + 1
        self.driver.fill(pointer, self.value, size, self.handles[stream] or 0)
        self.live[pointer] = size, self.value, inside
        if inside:
            for address, (length, _) in list(self.writes.items()):
                if address < pointer + size and pointer < address + length:
                    del self.writes[address]
            self.writes[pointer] = size, self.value

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data):
        pointer = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[pointer]
        self.pool.free(pointer)

    @precondition(lambda self: self.captured is None)
    @rule(stream=st.integers(1, 2))
    def begin(self, stream):
        self.captured, self.writes = self.handles[stream], {}
        self.driver.begin_capture(self.captured)

    @precondition(lambda self: self.captured is not None)
    @rule()
    def end(self):
        self.graphs.append((self.driver.end_capture(self.captured), self.writes))
        self.captured = None
        self.graphs[-1][0].replay()

    @precondition(lambda self: self.graphs and self.captured is None)
    @rule(data=st.data())
    def replay(self, data):
        graph, wrote = data.draw(st.sampled_from(self.graphs))
        graph.replay()
        for pointer, (size, value) in wrote.items():
            assert self.driver.read(pointer, size) == bytes([value]) * size

    @precondition(lambda self: self.captured is None)
    @rule()
    def give_up(self):
        self.graphs.clear()
        self.pool.trim(captures=True)

    @invariant()
    def sound(self):
        if self.captured is None:
            self.pool.check()
            for pointer, (size, value, graphs) in self.live.items():
                if not graphs:
                    assert self.driver.read(pointer, size) == bytes([value]) * size


TestFound = FoundMachine.TestCase
TestFound.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_on_the_model():
    pool = make_pool(ModelDriver(1 << 30))
    driver = pool.managers[0].driver
    stream = driver.create_stream()
    driver.begin_capture(stream)
    pool.free(pool.malloc(MiB, stream))
    driver.end_capture(stream)
    assert pool.managers[0].graphs.memories
    pool.close()
    driver.destroy_stream(stream)
    assert not any(driver.held().values())
