"""Movable buffers on a device without virtual memory: moved with their bytes, and never under a user."""

from __future__ import annotations

import copy
import gc
import threading
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smartpool import SmartPool, SmartPoolConfig
from smartpool.dlpack import DType
from smartpool.driver.cpu import CpuDriver
from smartpool.errors import BufferReleasedError, DriverError, OutOfMemoryError, UnsupportedError
from smartpool.movable import MovableBuffer
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.units import KiB, MiB

BYTES = DType.parse("uint8")
CONFIG = SmartPoolConfig(enable_auto_defragmentation=False, enable_predictive_allocation=False)


class RawCpu(CpuDriver):
    """Raw memory only, as where the platform lacks the virtual-memory calls."""

    def __init__(self):
        super().__init__(capacity=130 * MiB)
        self.granularity = 0


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr("smartpool.smart_pool.open_driver", lambda name: RawCpu())
    with SmartPool("cpu", CONFIG) as pool:
        yield pool
        pool.check()


def fill(handle, value):
    with handle.pinned() as view:
        np.asarray(view)[:] = value


def values(handle):
    with handle.pinned() as view:
        return set(np.unique(np.asarray(view)))


def half_empty_segments(pool):
    """Return twelve handles of 8 MiB, of which three lie in each segment of 32."""
    handles = [pool.movable(8 * MiB) for _ in range(16)]
    kept = [handle for index, handle in enumerate(handles) if index % 4 == 1]
    for index, handle in enumerate(kept):
        fill(handle, index + 1)
    return kept


def test_segments_are_emptied_and_given_back_with_their_bytes_intact(pool):
    kept = half_empty_segments(pool)
    gc.collect()
    assert pool.managers[0].reserved_bytes == 128 * MiB  # four segments
    outcome = pool.optimize_memory()
    assert outcome.moved_bytes == 24 * MiB
    assert outcome.memory_freed_bytes == 96 * MiB
    assert outcome.fragmentation_after < outcome.fragmentation_before
    assert pool.managers[0].reserved_bytes == 32 * MiB
    for index, handle in enumerate(kept):
        assert values(handle) == {index + 1}


def test_what_is_pinned_stays_where_it_is(pool):
    kept = half_empty_segments(pool)
    views = [handle.pin() for handle in kept]
    where = [view.pointer for view in views]
    assert pool.optimize_memory().moved_bytes == 0
    assert [handle.pin().pointer for handle in kept] == where
    del views
    assert not any(handle.is_pinned for handle in kept)
    assert pool.optimize_memory().moved_bytes > 0


def test_an_export_pins_as_long_as_its_consumer_lives(pool):
    kept = half_empty_segments(pool)
    arrays = [np.from_dlpack(handle) for handle in kept]
    assert all(handle.is_pinned for handle in kept)
    assert pool.optimize_memory().moved_bytes == 0
    for index, array in enumerate(arrays):
        assert set(np.unique(array)) == {index + 1}
    del arrays, array
    gc.collect()
    assert not any(handle.is_pinned for handle in kept)
    assert pool.optimize_memory().moved_bytes == 24 * MiB


def test_a_freed_handle_is_of_no_use_and_its_consumers_keep_the_memory(pool):
    handle = pool.movable((2, 3), "float32")
    array = np.from_dlpack(handle)
    array[:] = 5
    live = pool.managers[0].live_bytes
    handle.free()
    assert handle.released
    assert pool.managers[0].live_bytes == live == 24
    for use in (handle.pin, handle.free):
        with pytest.raises(BufferReleasedError):
            use()
    assert array.sum() == 30
    del array
    gc.collect()
    assert pool.managers[0].live_bytes == 0
    assert repr(handle) == "<MovableBuffer: released>"


def test_a_handle_frees_itself_once_its_last_view_is_gone(pool):
    handle = pool.movable(1000)
    view = handle.pin()
    del handle
    gc.collect()
    assert pool.managers[0].live_bytes == 1000
    np.asarray(view)[:] = 1
    del view
    gc.collect()
    assert pool.managers[0].live_bytes == 0


def test_a_handle_is_not_copied(pool):
    with pytest.raises(UnsupportedError):
        copy.copy(pool.movable(10))


def test_a_copy_that_fails_leaves_everything_in_place(pool):
    kept = half_empty_segments(pool)
    driver = pool.managers[0].driver
    driver.faults.fail("copy", nth=2)
    with pytest.raises(DriverError):
        pool.optimize_memory()
    pool.check()
    for index, handle in enumerate(kept):
        assert values(handle) == {index + 1}
    assert pool.optimize_memory().moved_bytes > 0


def test_captured_streams_are_left_alone(pool):
    manager = pool.managers[0]
    stream = manager.driver.create_stream()
    handles = [pool.movable(8 * MiB, stream=stream) for _ in range(8)]
    del handles[2:7]
    gc.collect()
    manager.driver.is_capturing = lambda asked: asked == stream
    assert pool.optimize_memory().moved_bytes == 0
    del manager.driver.is_capturing
    assert pool.optimize_memory().moved_bytes > 0


def test_with_virtual_memory_nothing_moves():
    with SmartPool("cpu", CONFIG) as pool:
        handles = [pool.movable(3 * MiB) for _ in range(8)]
        del handles[::2]
        gc.collect()
        assert pool.optimize_memory().moved_bytes == 0


def test_users_on_other_threads_meet_their_own_bytes(pool):
    handles = [pool.movable(64 * KiB) for _ in range(64)]
    for index, handle in enumerate(handles):
        fill(handle, index)
    wrong, stop = [], threading.Event()

    def use(part):
        while not stop.is_set():
            for index in part:
                with handles[index].pinned() as view:
                    array = np.asarray(view)
                    if not (array == index).all():
                        wrong.append(index)

    threads = [threading.Thread(target=use, args=(range(start, 64, 2),)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    moved = 0
    for _ in range(20):
        hole = pool.movable(64 * KiB)
        more = pool.movable(64 * KiB)
        fill(more, 7)
        del hole
        moved += pool.optimize_memory().moved_bytes
        assert values(more) == {7}
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert moved


def test_an_interrupt_of_the_books_in_a_move_loses_no_block(pool):
    """Who watches may raise when a block is entered at its new place: then it lies in its bin."""
    manager = pool.managers[0]
    kept = half_empty_segments(pool)

    class Interrupter:
        def allocated(self, pointer, nbytes, stream):
            manager.remove_observer(self)
            raise KeyboardInterrupt

        def freed(self, pointer, stream):
            pass

    manager.flush()
    manager.add_observer(Interrupter())
    with pytest.raises(KeyboardInterrupt):
        manager.compact()
    pool.check()
    blocks = [manager.malloc(8 * MiB) for _ in range(8)]
    assert len(set(blocks)) == 8
    pool.check()
    for index, handle in enumerate(kept):
        assert values(handle) == {index + 1}
    for block in blocks:
        manager.free(block)


def test_an_interrupt_before_the_moves_leaves_every_handle_usable(pool, monkeypatch):
    handles = [pool.movable(MiB) for _ in range(4)]
    begin, calls = MovableBuffer.begin_move, []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return begin(self)

    monkeypatch.setattr(MovableBuffer, "begin_move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.optimize_memory()
    for handle in handles:
        handle.pin().free()
        handle.free()
    assert pool.managers[0].live_bytes == 0


def test_a_free_on_a_stream_takes_the_locks_in_a_compactions_order(pool, monkeypatch):
    manager = pool.managers[0]
    handle, record, could_take = pool.movable(MiB), type(manager).record_stream, []

    def other():
        could_take.append(manager._lock.acquire(blocking=False))
        if could_take[0]:
            manager._lock.release()

    def recorded(self, *arguments):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return record(self, *arguments)

    monkeypatch.setattr(type(manager), "record_stream", recorded)
    handle.free(manager.driver.create_stream())
    assert could_take == [False]  # the movables' lock is held here: the pool's is, too


class CompactionMachine(RuleBasedStateMachine):
    """Any program with movable and other blocks, on several streams, with queued work and refused copies."""

    def __init__(self):
        super().__init__()
        self.driver = RawCpu()
        self.pool = AdvancedMemoryPoolManager(self.driver, CONFIG)
        self.streams = [0, self.driver.create_stream(), self.driver.create_stream()]
        self.handles = {}  # handle -> (value, stream)
        self.views = []
        self.fixed = {}
        self.value = 0

    def _next(self):
        self.value = self.value % 250 + 1
        return self.value

    @rule(
        nbytes=st.one_of(st.integers(0, 4 * KiB), st.integers(1 * MiB, 3 * MiB)),
        stream=st.sampled_from([0, 1, 2]),
    )
    def make(self, nbytes, stream):
        stream = self.streams[stream]
        try:
            pointer = self.pool.malloc(nbytes, stream)
        except OutOfMemoryError:
            return
        handle = MovableBuffer(self.pool, pointer, nbytes, (nbytes,), BYTES)
        value = self._next()
        if nbytes:
            with handle.pinned() as view:
                self.driver.fill(view.pointer, value, nbytes, stream)
        self.handles[handle] = (value, stream)

    @rule(nbytes=st.integers(1, 2 * MiB))
    def malloc(self, nbytes):
        try:
            pointer = self.pool.malloc(nbytes)
        except OutOfMemoryError:
            return
        value = self._next()
        self.driver.fill(pointer, value, nbytes, 0)
        self.fixed[pointer] = (nbytes, value)

    @precondition(lambda self: self.fixed)
    @rule(data=st.data())
    def free(self, data):
        pointer = data.draw(st.sampled_from(sorted(self.fixed)))
        del self.fixed[pointer]
        self.pool.free(pointer)

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), explicitly=st.booleans())
    def drop(self, data, explicitly):
        handle = list(self.handles)[data.draw(st.integers(0, len(self.handles) - 1))]
        del self.handles[handle]
        if explicitly:
            handle.free()

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def pin(self, data):
        handle = list(self.handles)[data.draw(st.integers(0, len(self.handles) - 1))]
        view = handle.pin()
        self.views.append((view, view.pointer, *self.handles[handle][:1]))

    @precondition(lambda self: self.views)
    @rule()
    def unpin(self):
        self.views.pop()

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), stream=st.sampled_from([0, 1, 2]))
    def use_elsewhere(self, data, stream):
        handle = list(self.handles)[data.draw(st.integers(0, len(self.handles) - 1))]
        other, value = self.streams[stream], self._next()
        _, own = self.handles[handle]
        with handle.pinned() as view:
            if not view.nbytes:
                return
            if other != own:
                self.pool.order_after(view.pointer, other)
            self.driver.fill(view.pointer, value, view.nbytes, other)
            if other != own:  # and back: later work on the own stream sees it
                self.pool._clock.wait(self.pool._clock.stamp(other), own)
        self.handles[handle] = (value, own)
        for index, (held, where, _) in enumerate(self.views):
            if where == view.pointer:
                self.views[index] = (held, where, value)

    @rule(stream=st.sampled_from([0, 1, 2]))
    def pause(self, stream):
        self.driver.pause(self.streams[stream])

    @rule()
    def resume(self):
        for stream in self.streams:
            self.driver.resume(stream)

    @rule()
    def refuse_a_copy(self):
        self.driver.faults.fail("copy")

    @rule(trim=st.booleans())
    def compact(self, trim):
        with suppress(DriverError):
            self.pool.compact()
        if trim:
            self.pool.trim()

    @rule()
    def look(self):
        self.resume()
        self.driver.faults.clear()
        for handle, (value, _) in self.handles.items():
            with handle.pinned() as view:
                if view.nbytes:
                    assert self.driver.read(view.pointer, view.nbytes) == bytes([value]) * view.nbytes
        for pointer, (nbytes, value) in self.fixed.items():
            assert self.driver.read(pointer, nbytes) == bytes([value]) * nbytes

    @invariant()
    def everything_holds(self):
        self.pool.check()
        for view, where, _ in self.views:
            assert view.pointer == where
            assert where in self.pool.live_blocks()

    def teardown(self):
        self.look()
        self.views.clear()
        self.handles.clear()
        for pointer in self.fixed:
            self.pool.free(pointer)
        assert self.pool.live_bytes == 0
        self.pool.trim(wait=True)
        assert self.pool.reserved_bytes == 0
        self.pool.close()
        assert not any(self.driver.held().values())


CompactionMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestCompaction = CompactionMachine.TestCase
