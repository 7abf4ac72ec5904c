"""Debug mode finds what was planted: overruns, uses after free, double frees, leaks; and invents nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from processes import FORKED
from waiting import PATIENCE_S

import smartpool
from smartpool import (
    ConfigurationError,
    DoubleFreeError,
    KiB,
    MiB,
    OutOfMemoryError,
    OverrunError,
    PoolClosedError,
    ReentrantCallError,
    SmartPool,
    SmartPoolConfig,
    UnknownPointerError,
    UseAfterFreeError,
)
from smartpool.debug.debugging import DebuggingManager
from smartpool.debug.inspection import FREED_BYTE
from smartpool.debug_options import VARIABLE, DebugOptions


def debugged(device="cpu", *, config=None, **options):
    return SmartPool(device, SmartPoolConfig(debug=DebugOptions(**options), **(config or {})))


def write(pool, address, data):
    pool.managers[0].driver.write(address, data)


@settings(max_examples=40)
@given(st.integers(0, 3000), st.integers(-512, 511), st.integers(1, 20), st.booleans())
def test_one_byte_outside_of_a_block_is_found_when_it_is_freed(nbytes, distance, count, aligned):
    """Whatever the size: behind the last byte that was asked for, and before the first."""
    with debugged() as pool:
        block = pool.empty(nbytes, "uint8", alignment=4096 if aligned else None)
        offset = distance if distance < 0 else nbytes + distance
        count = min(count, -offset) if offset < 0 else min(count, 512 - distance)
        pointer = block.pointer
        write(pool, pointer + offset, b"\x01" * count)
        with pytest.raises(OverrunError) as caught:
            block.free()
        error = caught.value
        assert (error.pointer, error.nbytes, error.offset) == (pointer, nbytes, offset)
        assert f"{count} bytes were written" in str(error)
        assert "0x01 instead of 0xa5" in str(error)
        pool.check()
        assert pool.managers[0].live_blocks() == {}


@pytest.mark.parametrize("nbytes", [0, 1, 511, 512, 1000])
def test_the_guard_behind_reaches_to_the_end_of_the_block(nbytes):
    with debugged() as pool:
        block = pool.malloc(nbytes)
        last = -(-nbytes // 512) * 512 + 511
        write(pool, block + last, b"\0")
        with pytest.raises(OverrunError) as caught:
            pool.free(block)
        assert caught.value.offset == last


def test_the_books_of_debug_mode_are_empty_when_all_is_free():
    with debugged() as pool:
        blocks = [pool.malloc(100) for _ in range(10)]
        for block in blocks:
            pool.free(block)
        pool.trim()
        manager = pool.managers[0]
        for book in (manager._inners, manager._live, manager._quarantine, manager._pending):
            assert not book
        assert manager._quarantined_bytes == 0
        assert manager._inner.live_blocks() == {}


@settings(max_examples=30)
@given(st.integers(1, 5000), st.data())
def test_a_write_into_a_freed_block_is_found_before_it_is_reused(nbytes, data):
    with debugged() as pool:
        block = pool.malloc(nbytes)
        pool.free(block)
        offset = data.draw(st.integers(0, nbytes - 1))
        write(pool, block + offset, b"\x07")
        with pytest.raises(UseAfterFreeError) as caught:
            pool.check()
        assert (caught.value.pointer, caught.value.nbytes, caught.value.offset) == (block, nbytes, offset)
        pool.check()  # told once


def requested_here(pool):
    return pool.malloc(1000)


def freed_here(pool, pointer):
    pool.free(pointer)


def test_errors_name_the_stacks_of_request_and_free():
    with debugged() as pool:
        block = requested_here(pool)
        freed_here(pool, block)
        with pytest.raises(DoubleFreeError) as caught:
            pool.free(block)
        assert "requested_here" in str(caught.value)
        assert "freed_here" in str(caught.value)
        write(pool, block + 5, b"x")
        with pytest.raises(UseAfterFreeError) as caught:
            pool.trim()
        assert "requested_here" in caught.value.allocated_at
        assert "freed_here" in caught.value.freed_at
        assert caught.value.allocated_at.splitlines()[0].startswith(__file__)
        with pytest.raises(DoubleFreeError, match="freed_here"):
            pool.free(block)  # out of quarantine, and not forgotten


def test_a_write_is_found_when_the_block_leaves_the_quarantine():
    with debugged(quarantine_bytes=8 * KiB) as pool:
        block = pool.malloc(1000)
        pool.free(block)
        write(pool, block, b"\0")
        for _ in range(3):  # there is room for four, of 2 KiB each with their guards
            pool.free(pool.malloc(1000))
        last = pool.malloc(1000)
        with pytest.raises(UseAfterFreeError):
            pool.free(last)
        pool.check()


def test_freed_blocks_are_not_reused_while_in_quarantine_and_are_poisoned():
    with debugged(quarantine_bytes=64 * KiB) as pool:
        freed = []
        for _ in range(15):
            block = pool.malloc(3000)
            assert block not in freed
            pool.free(block)
            freed.append(block)
        assert pool.managers[0].driver.read(block, 3000) == bytes([FREED_BYTE]) * 3000
        assert pool.managers[0]._quarantined_bytes <= 64 * KiB


def test_the_quarantine_gives_way_to_a_request_that_would_fail():
    with debugged("model:64MiB", config={"max_bytes": "64MiB"}, quarantine_bytes=1 << 30) as pool:
        for _ in range(10):
            pool.free(pool.malloc(40 * MiB))
        held = pool.malloc(40 * MiB)
        with pytest.raises(OutOfMemoryError):
            pool.malloc(40 * MiB)
        pool.free(held)


def test_both_ends_of_a_large_freed_block_are_looked_at():
    with debugged(check_bytes=8 * KiB) as pool:
        block = pool.malloc(MiB)
        for offset, found in ((4 * KiB - 1, True), (512 * KiB, False), (MiB - 4 * KiB, True)):
            pool.free(block)
            write(pool, block + offset, b"\0")
            if found:
                with pytest.raises(UseAfterFreeError):
                    pool.trim()
            else:
                pool.trim()
            block = pool.malloc(MiB)
        pool.free(block)


def test_a_buffer_that_dies_is_looked_at_by_the_next_request():
    with debugged() as pool:
        buffer = pool.empty(100, "uint8")
        write(pool, buffer.pointer + 100, b"\0")
        del buffer  # a destructor: nothing is raised here
        with pytest.raises(OverrunError):
            pool.malloc(10)
        assert pool.managers[0].live_blocks() == {}  # nothing was requested


def test_numpy_writes_through_dlpack_stay_inside():
    with debugged() as pool:
        array = np.from_dlpack(pool.empty((10, 10), "float32"))
        array[:] = 7
        assert array.sum() == 700
        del array
        pool.check()


def test_work_of_streams_is_judged_in_order():
    """A kernel that was queued before the free may write; one that was queued behind it may not."""
    with debugged() as pool:
        driver = pool.managers[0].driver
        stream, other = driver.create_stream(), driver.create_stream()
        block = pool.malloc(1000, stream)
        pool.managers[0].record_stream(block, other)
        driver.fill(block, 1, 1000, other)
        driver.fill(block, 2, 1000, stream)
        pool.free(block)
        pool.check()
        again = pool.malloc(1000, stream)
        pool.free(again, other)
        driver.fill(again, 3, 10, other)
        with pytest.raises(UseAfterFreeError):
            pool.check()


def test_a_stream_that_is_gone_is_no_obstacle():
    with debugged() as pool:
        driver = pool.managers[0].driver
        stream = driver.create_stream()
        block = pool.malloc(1000, stream)
        driver.destroy_stream(stream)
        pool.free(block)
        pool.trim()
        pool.check()


def test_steps_are_planned_and_guarded():
    with debugged(quarantine_bytes=0) as pool:
        for repetition in range(4):
            with pool.step(wait_for_plan=True):
                first, second = pool.malloc(3 * KiB), pool.malloc(5 * KiB)
                if repetition == 3:
                    write(pool, first + 3 * KiB, b"\0")
                    with pytest.raises(OverrunError):
                        pool.free(first)
                else:
                    pool.free(first)
                pool.free(second)
        assert pool.statistics.devices[0].steps.hits > 0
        pool.check()


def test_a_pointer_into_a_block_is_told_from_one_of_nobody():
    with debugged() as pool:
        block = pool.malloc(1000)
        with pytest.raises(UnknownPointerError, match="at offset -512"):
            pool.free(block - 512)
        with pytest.raises(UnknownPointerError, match="at offset 10"):
            pool.free(block + 10)
        with pytest.raises(UnknownPointerError):
            pool.free(12345)
        with pytest.raises(UnknownPointerError):
            pool.free("nonsense")
        pool.free(block)


def test_what_was_never_freed_is_reported_at_close():
    pool = debugged()
    held = [requested_here(pool) for _ in range(3)]
    with pool.tag("weights"):
        held.append(pool.malloc(5 * MiB))
    with pytest.warns(RuntimeWarning, match="4 blocks of cpu") as caught:
        pool.close()
    text = str(caught[0].message)
    assert "2.93 KiB in 3 blocks" in text
    assert "requested_here" in text
    assert text.index("tag weights") < text.index("requested_here")  # the largest first
    for pointer in held:
        pool.free(pointer)  # what is live stays valid
    pool.close()


def test_nothing_is_reported_where_nothing_leaked_or_nobody_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with debugged() as pool:
            pool.free(pool.malloc(100))
        with debugged(leaks=False) as pool:
            pool.malloc(100)


def test_an_overrun_of_a_live_block_is_found_at_close():
    pool = debugged(leaks=False)
    block = pool.malloc(100)
    write(pool, block - 1, b"\0")
    with pytest.raises(OverrunError) as caught:
        pool.close()
    assert caught.value.offset == -1
    pool.free(block)
    assert not any(pool.managers[0].driver.held().values())


@pytest.mark.parametrize("in_a_destructor", [False, True])
def test_leaks_are_told_before_an_overrun_is_raised(in_a_destructor):
    pool = debugged()
    held = [requested_here(pool) for _ in range(5)]
    if in_a_destructor:
        buffer = pool.empty(100, "uint8")
        write(pool, buffer.pointer + 100, b"!")
        del buffer
    else:
        write(pool, held[0] + 1000, b"!")
    with pytest.warns(RuntimeWarning, match="5 blocks of cpu"), pytest.raises(OverrunError):
        pool.close()
    pool.close()  # told once
    for pointer in held:
        pool.free(pointer)


def test_an_overrun_is_raised_where_the_warning_of_leaks_is_an_error():
    pool = debugged()
    held = pool.malloc(100)
    write(pool, held + 100, b"!")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OverrunError) as caught:
            pool.close()
    assert isinstance(caught.value.__context__, RuntimeWarning)
    pool.free(held)


def test_every_device_is_closed_though_one_was_overwritten():
    pool = SmartPool(["cpu", "cpu"], SmartPoolConfig(debug=True))
    held = [manager.malloc(100) for manager in pool.managers]
    for manager, pointer in zip(pool.managers, held, strict=True):
        manager.driver.write(pointer + 100, b"!")
    with pytest.warns(RuntimeWarning) as warned, pytest.raises(OverrunError) as caught:
        pool.close()
    assert len(warned) == 2
    assert f"{held[0]:#x}" in str(caught.value)
    assert f"{held[1]:#x}" in caught.value.__notes__[0]
    for manager, pointer in zip(pool.managers, held, strict=True):
        manager.free(pointer)
        assert not any(manager.driver.held().values())


def at_exit(program):
    """Run a program of its own in debug mode, and return what it printed on its error stream.

    What Python itself says of a fork beside a thread, from 3.12 on, is left out.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            FORKED,
            "-c",
            "import smartpool\npool = smartpool.SmartPool('cpu')\n" + program,
        ],
        env={**os.environ, VARIABLE: "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return done.stderr


def test_a_program_that_never_closes_is_told_of_leaks_and_overruns_at_its_end():
    told = at_exit(
        "held = [pool.malloc(1000) for _ in range(5)]\n"
        "kept = pool.empty(100, 'uint8')\n"
        "driver = pool.managers[0].driver\n"
        "driver.write(held[0] + 1000, b'!')\n"
        "freed = pool.malloc(64); pool.free(freed); driver.write(freed + 3, b'!')\n"
    )
    assert "5 blocks of cpu" in told
    assert "of 1000 bytes" in told
    assert "at offset 1000" in told
    assert "after it was freed" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "program",
    [
        "pool.free(pool.malloc(1000))",
        "kept = pool.empty(100)\nimport numpy\narray = numpy.from_dlpack(pool.empty(100))",
        "kept = [pool.empty(100)]; kept.append(kept)",
        "pool.close()",
        "import os\npid = os.fork()\nheld = None if pid else pool\nif pid: os.waitpid(pid, 0)",
        "import threading\nthreading.Thread(target=lambda: pool.managers[0].check(), daemon=True).start()",
    ],
)
def test_the_end_of_a_program_where_nothing_is_wrong_is_silent(program):
    assert at_exit(program) == ""


def test_the_end_does_not_wait_for_a_thread_that_holds_the_pool():
    told = at_exit(
        "import threading, time\n"
        "lock, taken = pool.managers[0].slow_path.section.lock, threading.Event()\n"
        "def hold():\n    lock.acquire(); taken.set(); time.sleep(1000)\n"
        "threading.Thread(target=hold, daemon=True).start(); taken.wait()\n"
        "held = pool.managers[0].live_bytes\n"
    )
    assert "a thread holds the pool's lock" in told


def test_a_pool_that_nobody_holds_tells_of_its_leaks():
    assert "1 blocks of cpu" in at_exit("pool.malloc(100); del pool; print('going on')")
    pool = debugged(config={"enable_auto_defragmentation": False})
    pool.malloc(100)
    kept = [pool]
    del pool
    with pytest.warns(RuntimeWarning, match="1 blocks of cpu"):
        kept.clear()


def test_a_pool_that_nobody_holds_gives_everything_back():
    pool = debugged(config={"enable_auto_defragmentation": False})
    pool.free(pool.malloc(1000))
    buffer = pool.empty(10)
    driver = pool.managers[0].driver
    del pool
    del buffer
    gc.collect()
    assert not any(driver.held().values())


def test_several_findings_are_told_together():
    with debugged() as pool:
        blocks = [pool.allocate(100) for _ in range(3)]
        for block in blocks:
            write(pool, block.pointer + 100, b"\0")
        blocks.clear()
        del block
        with pytest.raises(OverrunError) as caught:
            pool.check()
        assert len(caught.value.__notes__) == 2
        pool.check()


def test_the_options_can_be_switched_one_by_one():
    with debugged(guard_bytes=0) as pool:
        block = pool.malloc(512)
        pool.free(block)
        write(pool, block, b"\0")
        with pytest.raises(UseAfterFreeError):
            pool.check()
    with debugged(poison=False) as pool:
        block = pool.malloc(512)
        pool.free(block)
        write(pool, block, b"\0")
        pool.check()


def test_without_debug_mode_there_is_nothing_of_it(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with SmartPool("cpu") as pool:
        assert type(pool.managers[0]) is smartpool.AdvancedMemoryPoolManager
    with SmartPool("cpu", SmartPoolConfig(debug=False)) as pool:
        assert type(pool.managers[0]) is smartpool.AdvancedMemoryPoolManager
    assert smartpool.AdvancedMemoryPoolManager.drop is smartpool.AdvancedMemoryPoolManager.free


def test_the_environment_switches_it_on(monkeypatch):
    monkeypatch.setenv(VARIABLE, "guard_bytes=2000, leaks=0")
    with SmartPool("cpu") as pool:
        assert isinstance(pool.managers[0], DebuggingManager)
        assert pool.managers[0].options.guard_bytes == 2048
    with SmartPool("cpu", SmartPoolConfig(debug=False)) as pool:
        assert not isinstance(pool.managers[0], DebuggingManager)
    for wrong in ("guard_bytes=many", "gard=1", "poison=maybe"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ConfigurationError, match="debug"):
            SmartPool("cpu")


@pytest.mark.parametrize("wrong", [{"guard_bytes": -1}, {"poison": 1}, {"stack_depth": 1.5}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        DebugOptions(**wrong)


def test_every_face_works_on_it():
    with debugged(config={"record": True, "track": True}) as pool:
        manager = pool.managers[0]
        buffer = pool.empty((3, 5), "float16")
        assert manager.owns(buffer.pointer)
        assert manager.live_bytes == 30
        assert sum(piece.size for piece in manager.pieces_of(buffer.pointer)) == 30
        assert manager.stream_of(buffer.pointer) == 0
        manager.order_after(buffer.pointer, manager.driver.create_stream())
        result = pool.allocate_memory(smartpool.AllocationRequest(size=100, alignment=1 << 16))
        assert result.buffer.pointer % (1 << 16) == 0
        pool.deallocate_memory(result.allocation_id)
        assert pool.statistics.devices[0].tracked.total.allocations == 2
        assert pool.recording().events >= 2
        assert sum(pool.memory_map().ranges.nbytes) == manager.reserved_bytes
        pool.optimize_memory()
        manager.on_pressure = None  # set on the pool behind
        assert manager._inner.on_pressure is None
        buffer.free()


def test_a_request_of_a_destructor_in_the_middle_of_a_look_is_refused():
    with debugged() as pool:
        manager, refused = pool.managers[0], []
        read = manager.driver.read

        def read_with_a_destructor(address, size):
            try:
                pool.malloc(10)
            except ReentrantCallError:
                refused.append(size)
            return read(address, size)

        manager.driver.read = read_with_a_destructor
        pool.free(pool.malloc(100))
        manager.driver.read = read
        assert len(refused) == 2  # at both guards
        pool.check()


def test_threads_find_nothing_where_nothing_is():
    with debugged(quarantine_bytes=MiB) as pool:
        failures = []

        def work(seed):
            random = np.random.default_rng(seed)
            try:
                for _ in range(60):
                    cycle = [np.from_dlpack(pool.empty(int(random.integers(0, 5000)), "uint8"))]
                    cycle[0][:] = seed
                    cycle.append(cycle)  # freed by the collector, anywhere
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        assert not failures
        pool.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_touches_nothing():
    with debugged() as pool:
        live, freed = pool.malloc(1000), pool.malloc(2000)
        pool.free(freed)
        calls = dict(pool.managers[0].driver.calls)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with suppress(PoolClosedError):
                    pool.malloc(10)
                    status = 2
                pool.free(live)
                pool.close()
                status += dict(pool.managers[0].driver.calls) != calls
            finally:
                os._exit(status - 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        pool.free(live)
        pool.check()


def test_no_fill_follows_a_block_out_of_quarantine():
    """It would overwrite, on the default stream, what the next owner writes on its own."""
    with debugged(config={"enable_auto_defragmentation": False}) as pool:
        manager, driver = pool.managers[0], pool.managers[0].driver
        stream = driver.create_stream()
        pointer = pool.malloc(8192, stream)
        pool.free(pointer)
        manager._look()
        write(pool, pointer, b"\x01" * 16)
        driver.pause(0)
        with pytest.raises(UseAfterFreeError):
            pool.trim()
        pending = driver.pending(0)
        driver.resume(0)
        assert pending == 0


class DebugMachine(RuleBasedStateMachine):
    """A program without faults: contents stay, nothing is reported, and the pool behind is sound."""

    def __init__(self):
        super().__init__()
        self.pool = debugged(config={"max_bytes": "8MiB", "enable_auto_defragmentation": False},
                             quarantine_bytes=64 * KiB, leaks=False)  # fmt: skip
        driver = self.pool.managers[0].driver
        self.streams = [None, driver.create_stream()]
        self.live = {}

    @rule(nbytes=st.sampled_from([0, 1, 512, 5000, 70_000, MiB]), stream=st.integers(0, 1))
    def request(self, nbytes, stream):
        with suppress(OutOfMemoryError):
            pointer = self.pool.malloc(nbytes, self.streams[stream])
            pattern = pointer.to_bytes(8, "little") * (nbytes // 8 + 1)
            self.live[pointer] = pattern[:nbytes]
            write(self.pool, pointer, pattern[:nbytes]) if nbytes else None

    @precondition(lambda self: self.live)
    @rule(index=st.integers(0, 1000), stream=st.integers(0, 1))
    def free(self, index, stream):
        pointer = sorted(self.live)[index % len(self.live)]
        pattern = self.live.pop(pointer)
        assert self.pool.managers[0].driver.read(pointer, len(pattern)) == pattern if pattern else True
        self.pool.free(pointer, self.streams[stream])

    @rule()
    def trim(self):
        self.pool.trim()

    @invariant()
    def sound(self):
        self.pool.check()
        assert self.pool.managers[0].live_blocks().keys() == self.live.keys()

    def teardown(self):
        for pointer in self.live:
            self.pool.free(pointer)
        self.pool.close()
        assert not any(self.pool.managers[0].driver.held().values())


DebugMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
test_a_program_without_faults = DebugMachine.TestCase


@pytest.mark.parametrize("quarantine_bytes", [0, 1 << 20])
def test_a_request_in_the_middle_of_any_call_of_the_driver_waits_for_nothing(quarantine_bytes):
    """A destructor or a signal handler makes it, on the thread that holds the driver's lock already."""
    pool = debugged(quarantine_bytes=quarantine_bytes)
    driver, told, inside = pool.managers[0].driver, [], []

    def request(call, _):
        if not inside:
            inside.append(call)
            try:
                pool.free(pool.malloc(5_000_000))
            except (ReentrantCallError, PoolClosedError) as error:
                told.append((call, error))
            inside.clear()
        return False

    def program():
        for _ in range(2):
            blocks = [pool.malloc(nbytes) for nbytes in (1000, 3_000_000)]
            for block in blocks:
                pool.free(block)
            held = pool.malloc(500)
            pool.check()
            pool.free(held)
            pool.trim()
        pool.close()

    driver.faults.fail("*", when=request)
    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), f"hangs in a request in the middle of {inside}"
    assert {"fill", "read", "synchronize"} <= {call for call, _ in told}
