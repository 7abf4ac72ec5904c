"""Who frees the block of a buffer: one step decides, whoever else is there at the same time."""

from __future__ import annotations

import dis
import gc
import threading
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smartpool import AllocationRequest, DebugOptions, SmartPool, SmartPoolConfig
from smartpool.buffer import Buffer
from smartpool.errors import (
    BufferReleasedError,
    CaptureError,
    DoubleFreeError,
    DriverError,
    OverrunError,
    ReentrantCallError,
    StreamError,
    UnknownPointerError,
)
from smartpool.values import shown

CONFIG = SmartPoolConfig(enable_auto_defragmentation=False)


@pytest.fixture
def pool():
    with SmartPool("cpu", CONFIG) as pool:
        yield pool
        gc.collect()
        pool.check()


def live(pool):
    return pool.managers[0].live_bytes


class Held:
    """A call on another thread that is stopped in the middle until it is told to go on."""

    def __init__(self, monkeypatch, owner, name):
        self._inside, self._go_on = threading.Event(), threading.Event()
        self._thread, self.outcome = None, None
        original = getattr(owner, name)

        def stopped(*arguments):
            if threading.current_thread() is self._thread:
                self._inside.set()
                assert self._go_on.wait(60)
            return original(*arguments)

        monkeypatch.setattr(owner, name, stopped)

    def begin(self, call):
        def run():
            try:
                self.outcome = call()
            except BaseException as error:  # noqa: BLE001 - looked at by the test
                self.outcome = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert self._inside.wait(60)

    def finish(self):
        self._go_on.set()
        self._thread.join(60)
        return self.outcome


# ------------------------------------------------------------------ one step decides


@pytest.mark.parametrize("method", [Buffer.free, Buffer._shared])
def test_nothing_comes_between_the_parts_of_the_step_that_decides(method):
    """CPython looks for signals and threads behind calls, as functions begin, and as loops go back."""
    code = list(dis.get_instructions(method))
    deletions = [
        at for at, step in enumerate(code) if step.opname == "DELETE_ATTR" and step.argval == "_pointer"
    ]
    assert len(deletions) == 1
    last = max(
        at
        for at, step in enumerate(code)
        if step.opname == "STORE_ATTR" and step.argval in ("_manager", "holds")
    )
    if method is Buffer.free:  # what puts the block back is not a part of it
        last = min(at for at, step in enumerate(code) if step.opname == "STORE_ATTR" and at > deletions[0])
    between = {step.opname for step in code[deletions[0] : last + 1]}
    assert between <= {
        "DELETE_ATTR", "STORE_ATTR", "LOAD_FAST", "LOAD_CONST", "LOAD_FAST_LOAD_FAST",
        "LOAD_FAST_BORROW", "LOAD_FAST_BORROW_LOAD_FAST_BORROW", "NOP",
    }  # fmt: skip


def test_a_free_is_told_when_another_thread_has_freed(pool, monkeypatch):
    buffer, manager = pool.allocate(4096), pool.managers[0]
    first = Held(monkeypatch, type(manager), "free")
    first.begin(buffer.free)
    for call in (buffer.free, buffer.__dlpack__, lambda: buffer.pointer):
        with pytest.raises(BufferReleasedError):
            call()
    other = pool.malloc(4096)
    assert first.finish() is None
    assert pool.managers[0].owns(other)
    pool.free(other)


@pytest.mark.parametrize("meanwhile", ["freed", "exported"])
def test_what_happens_before_the_step_decides(pool, monkeypatch, meanwhile):
    """A free that has looked at its stream, and at nothing else yet."""
    buffer, driver = pool.allocate(4096), pool.managers[0].driver
    late = Held(monkeypatch, driver, "stream")
    late.begin(lambda: buffer.free(0))
    if meanwhile == "freed":
        buffer.free()
        other = pool.malloc(4096)
        assert isinstance(late.finish(), BufferReleasedError)
        assert pool.managers[0].owns(other)
        pool.free(other)
    else:
        array = np.from_dlpack(buffer)
        assert late.finish() is None
        assert buffer.released
        other = pool.malloc(4096)
        assert other != array.ctypes.data
        pool.free(other)
        del array
    assert live(pool) == 0


def test_many_threads_free_and_export_at_once(pool):
    """Each buffer is given back once, when its last consumer is gone."""
    threads, rounds = 4, 200
    barrier, buffers, freed = threading.Barrier(threads), [pool.allocate(4096) for _ in range(rounds)], []

    def run(number):
        for buffer in buffers:
            barrier.wait()
            with suppress(BufferReleasedError):
                if number % 2:
                    np.from_dlpack(buffer)[:] = number
                else:
                    buffer.free()
                    freed.append(buffer)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(freed) == len(set(freed)) == rounds
    assert live(pool) == 0


@pytest.mark.parametrize("exported", [False, True])
def test_destructors_of_a_cycle_find_the_buffer_released(pool, exported):
    """The collector calls all destructors of a cycle, in any order, and the buffer's is one of them."""
    took, told = [], []

    class User:
        def __del__(self):
            took.append(pool.malloc(4096))
            try:
                self.buffer.free()
            except BufferReleasedError as error:
                told.append(str(error))  # its traceback would keep all of it alive

    first = User()
    buffer = pool.allocate(4096)
    second = User()
    for user in (first, second):
        user.buffer, user.cycle = buffer, (first, second)
    if exported:
        first.capsule = buffer.__dlpack__()
    del first, second, user, buffer
    gc.collect()
    assert len(told) >= 1
    assert len(set(took)) == 2
    assert all(pool.managers[0].owns(pointer) for pointer in took)
    for pointer in took:
        pool.free(pointer)
    gc.collect()
    assert live(pool) == 0


# ------------------------------------------------------------------ what is left behind


def test_a_released_buffer_has_no_address(pool):
    result = pool.allocate_memory(AllocationRequest(size=100))
    pool.deallocate_memory(result.allocation_id)
    freed = pool.allocate(100)
    freed.free()
    exported = pool.allocate(100)
    capsule = exported.__dlpack__()
    assert exported.pointer == exported.ptr
    exported.free()
    for buffer in (result.buffer, freed, exported):
        assert buffer.released
        for name in ("pointer", "ptr", "stream", "device"):
            with pytest.raises(BufferReleasedError):
                getattr(buffer, name)
    del capsule


def test_a_refused_free_leaves_the_buffer_as_it_was(pool):
    buffer = pool.allocate(100)
    pointer = buffer.pointer
    with pytest.raises(StreamError):
        buffer.free(12345)
    assert (buffer.released, buffer.pointer) == (False, pointer)
    driver, stream = pool.managers[0].driver, pool.managers[0].driver.create_stream()
    buffer.free(stream)
    assert buffer.released
    driver.destroy_stream(stream)


def test_a_device_that_fails_leaves_the_buffer_as_it_was(pool, monkeypatch):
    buffer, manager = pool.allocate(100), pool.managers[0]

    def fail(*_):
        raise DriverError("unmap", "INJECTED", {})

    with monkeypatch.context() as patch:
        patch.setattr(type(manager), "free", fail)
        with pytest.raises(DriverError):
            buffer.free()
    assert not buffer.released
    np.from_dlpack(buffer)[:] = 1
    buffer.free()
    assert live(pool) == 0


def test_a_block_that_was_freed_bare_is_not_freed_again(pool):
    buffer = pool.allocate(4096)
    pool.free(buffer.pointer)
    other = pool.malloc(4096)
    pool.free(other)
    with pytest.raises(DoubleFreeError):
        buffer.free()
    assert buffer.released
    other = pool.malloc(4096)
    del buffer
    assert pool.managers[0].owns(other)
    pool.free(other)


def test_an_allocation_is_freed_once_by_whatever_way(pool):
    results = [pool.allocate_memory(AllocationRequest(size=100)) for _ in range(3)]
    results[0].buffer.free()
    pool.deallocate_memory(results[1].allocation_id)
    for result in results[:2]:
        for _ in range(2):
            with pytest.raises(DoubleFreeError):
                pool.deallocate_memory(result.allocation_id)
    with pytest.raises(StreamError):
        pool.deallocate_memory(results[2].allocation_id, stream=12345)
    pool.deallocate_memory(np.int64(results[2].allocation_id))
    assert live(pool) == 0
    assert not pool._allocations


@pytest.mark.parametrize("wrong", [True, 1.0, "1", None, [1], -1, 0, 10**5000], ids=shown)
def test_what_is_no_id_frees_nothing(pool, wrong):
    result = pool.allocate_memory(AllocationRequest(size=100))
    assert result.allocation_id == 1
    with pytest.raises(UnknownPointerError):
        pool.deallocate_memory(wrong)
    assert not result.buffer.released


@pytest.mark.parametrize("config", [{"track": True}, {"debug": DebugOptions(quarantine_bytes=0)}, {}])
@pytest.mark.parametrize("deallocate", [False, True])
def test_an_interrupt_behind_the_free_leaves_no_second_owner(config, deallocate, monkeypatch):
    """Ctrl-C as the pool's own free returns: the block may be another's, whatever becomes of the buffer."""
    pool = SmartPool("cpu", SmartPoolConfig(enable_auto_defragmentation=False, **config))
    manager = pool.managers[0]
    free = type(manager).free

    def interrupted(*arguments):
        free(*arguments)
        raise KeyboardInterrupt

    result = pool.allocate_memory(AllocationRequest(size=4096))
    with monkeypatch.context() as patch:
        patch.setattr(type(manager), "free", interrupted)
        call = partial(pool.deallocate_memory, result.allocation_id) if deallocate else result.buffer.free
        with pytest.raises(KeyboardInterrupt):
            call(stream=0)
    del call
    others = [pool.malloc(4096) for _ in range(3)]
    with pytest.raises(DoubleFreeError):
        pool.deallocate_memory(result.allocation_id)
    assert result.buffer.released
    del result
    assert all(manager.owns(other) for other in others)
    for other in others:
        pool.free(other)
    pool.close()


def test_debug_mode_tells_of_an_overrun_and_the_buffer_is_released():
    with SmartPool("cpu", SmartPoolConfig(debug=True, enable_auto_defragmentation=False)) as pool:
        buffer = pool.allocate(100)
        pool.managers[0].driver.write(buffer.pointer + 100, b"!")
        with pytest.raises(OverrunError):
            buffer.free()
        assert buffer.released


# ------------------------------------------------------------------ copies for consumers


def test_a_copy_on_the_host_has_what_was_queued_before(pool):
    """The consumer reads at once: it does not know streams."""
    driver = pool.managers[0].driver
    stream = driver.create_stream()
    buffer = pool.empty(1000, "uint8", stream=stream)
    np.from_dlpack(buffer)[:] = 1
    driver.pause(stream)
    driver.fill(buffer.pointer, 7, 1000, stream)
    timer = threading.Timer(0.05, driver.resume, [stream])
    timer.start()
    assert set(np.from_dlpack(buffer, copy=True).tolist()) == {7}
    timer.join()


def test_a_copy_beside_a_capture_is_a_copy(pool):
    driver = pool.managers[0].driver
    stream = driver.create_stream()
    buffer = pool.empty(1000, "uint8", stream=stream)
    np.from_dlpack(buffer)[:] = 7
    with pool.capture(stream):
        driver.begin_capture(stream)
        copied = np.from_dlpack(buffer, copy=True)
        graph = driver.end_capture(stream)
    np.from_dlpack(buffer)[:] = 8
    graph.replay()
    assert set(copied.tolist()) == {7}


def test_a_copy_on_a_device_is_refused_where_it_would_become_a_part_of_a_graph(pool, monkeypatch):
    driver = pool.managers[0].driver
    monkeypatch.setattr(driver, "dl_device", (2, 0))  # as a device whose consumers have streams
    stream = driver.create_stream()
    buffer = pool.empty(1000, "uint8", stream=stream)
    driver.fill(buffer.pointer, 7, 1000, stream)
    with pool.capture(stream):
        driver.begin_capture(stream)
        for asked in ({"copy": True}, {"dl_device": (1, 0)}):
            with pytest.raises(CaptureError, match="copy before the capture or behind it"):
                buffer.__dlpack__(stream=-1, max_version=(1, 0), **asked)
        inside = buffer.__dlpack__(stream=stream, max_version=(1, 0), copy=True)
        driver.end_capture(stream)
    assert live(pool) == 2000
    del inside
    assert live(pool) == 1000


def test_a_copy_needs_no_stream_that_is_gone(pool, monkeypatch):
    driver = pool.managers[0].driver
    monkeypatch.setattr(driver, "dl_device", (2, 0))
    stream, consumer = driver.create_stream(), driver.create_stream()
    buffer = pool.empty(1000, "uint8", stream=stream)
    driver.fill(buffer.pointer, 7, 1000, stream)
    driver.destroy_stream(stream)
    capsule = buffer.__dlpack__(stream=consumer, max_version=(1, 0), copy=True)
    copied = next(at for at in pool.managers[0].live_blocks() if at != buffer.pointer)
    assert driver.read(copied, 1000) == b"\x07" * 1000
    del capsule


@pytest.mark.parametrize("target", ["the host", "a device"])
def test_a_request_in_the_middle_of_a_copy_is_refused(pool, monkeypatch, target):
    """A destructor or a signal handler would wait for the driver's lock, which its own thread holds."""
    driver, buffer, told = pool.managers[0].driver, pool.allocate(1000), []
    if target == "a device":
        monkeypatch.setattr(driver, "dl_device", (2, 0))

    def in_between(call, _):
        if call in ("copy", "read", "write"):
            try:
                pool.malloc(5_000_000)
            except ReentrantCallError as error:
                told.append(error)
        return False

    driver.faults.fail("*", when=in_between)
    for asked in ({"copy": True}, {"dl_device": (1, 0), "copy": True}):
        buffer.__dlpack__(max_version=(1, 0), stream=-1, **asked)
    driver.faults.clear()
    assert len(told) == (4 if target == "the host" else 2)


@pytest.mark.parametrize("asked", ["a look at what is available", "an export"])
def test_a_request_in_the_middle_of_other_calls_is_refused(asked):
    with SmartPool("cpu", SmartPoolConfig(shareable=True)) as pool:
        driver, buffer, told = pool.managers[0].driver, pool.allocate(1000), []

        def in_between(call, _):
            with pytest.raises(ReentrantCallError):
                pool.malloc(5_000_000)
            told.append(call)
            return False

        driver.faults.fail("*", when=in_between)
        if asked == "an export":
            pool.export(buffer).close()
        else:
            assert pool.managers[0].available_bytes > 0
        driver.faults.clear()
        assert told


# ------------------------------------------------------------------ any program


class OwnerMachine(RuleBasedStateMachine):
    """Buffers, allocations, consumers and copies in any order, with bytes that are looked at.

    A block is live as long as its buffer is held or somebody reads it, and no longer.
    """

    def __init__(self):
        super().__init__()
        self.pool = SmartPool("cpu", CONFIG)
        self.driver = self.pool.managers[0].driver
        self.streams = [0, self.driver.create_stream()]
        self.held = {}  # buffer -> (allocation id or None, the number that fills it)
        self.readers = []  # (array or capsule, address, number, bytes)
        self.gone = []
        self.value = 0

    def _choose(self, data, things):
        return list(things)[data.draw(st.integers(0, len(things) - 1))]  # what is drawn is kept alive

    @rule(nbytes=st.sampled_from([0, 1, 1000, 70_000]), stream=st.sampled_from([0, 1]), by_id=st.booleans())
    def make(self, nbytes, stream, by_id):
        stream, number = self.streams[stream], None
        if by_id:
            buffer, number = self.pool.allocate_memory(AllocationRequest(size=nbytes, stream=stream))
        else:
            buffer = self.pool.allocate(nbytes, stream)
        self.value = self.value % 250 + 1
        if nbytes:
            self.driver.fill(buffer.pointer, self.value, nbytes, stream)
        self.held[buffer] = (number, self.value)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["array", "capsule", "memoryview", "copy", "asarray"]))
    def read(self, data, how):
        buffer = self._choose(data, self.held)
        ways = {
            "array": np.from_dlpack,
            "capsule": lambda buffer: buffer.__dlpack__(max_version=(1, 0)),
            "memoryview": lambda buffer: np.asarray(buffer.memoryview()),
            "copy": lambda buffer: np.from_dlpack(buffer, copy=True),
            "asarray": np.asarray,
        }
        reader = ways[how](buffer)
        address = buffer.pointer if how in ("capsule", "array") or not buffer.nbytes else reader.ctypes.data
        if how == "copy" and not buffer.nbytes:
            address = None  # of which NumPy does not tell
        self.readers.append((reader, address, self.held[buffer][1], buffer.nbytes))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), stream=st.sampled_from([None, 0, 1]))
    def free(self, data, stream):
        buffer = self._choose(data, self.held)
        number, _ = self.held.pop(buffer)
        given = None if stream is None else self.streams[stream]
        if number is None:
            buffer.free(given)
        else:
            self.pool.deallocate_memory(number, given)
        self.gone.append((buffer, number))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data):
        buffer = self._choose(data, self.held)
        number, _ = self.held.pop(buffer)
        if number is not None:
            self.pool._allocations.pop(number)  # as a pool that is closed

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def drop_a_reader(self, data):
        self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1)))

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def use_what_is_gone(self, data):
        buffer, number = self._choose(data, self.gone)
        for call in (buffer.free, buffer.__dlpack__, lambda: buffer.pointer, lambda: buffer.stream):
            with pytest.raises(BufferReleasedError):
                call()
        if number is not None:
            with pytest.raises(DoubleFreeError):
                self.pool.deallocate_memory(number)

    @invariant()
    def what_is_held_is_live_and_nothing_else(self):
        blocks = {buffer.pointer: buffer.nbytes for buffer in self.held}
        blocks |= {address: nbytes for _, address, _, nbytes in self.readers if address is not None}
        live = self.pool.managers[0].live_blocks()
        assert live.items() >= blocks.items()
        assert all(not nbytes for address, nbytes in live.items() if address not in blocks)
        for buffer, (_, value) in self.held.items():
            if buffer.nbytes:
                assert self.driver.read(buffer.pointer, buffer.nbytes) == bytes([value]) * buffer.nbytes
        for _, address, value, nbytes in self.readers:
            if nbytes:
                assert self.driver.read(address, nbytes) == bytes([value]) * nbytes

    def teardown(self):
        self.held.clear()
        self.readers.clear()
        self.pool.close()
        assert live(self.pool) == 0


TestOwners = OwnerMachine.TestCase
TestOwners.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
