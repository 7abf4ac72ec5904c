"""Buffers of the `cpu` device in two processes, for real; and what is refused."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import sharing_peers as peers
from sharing_contract import SharingContract
from waiting import PATIENCE_S

import smartpool
from smartpool.errors import DLPackError, SharingError, UnsupportedError
from smartpool.sharing import endings, exports
from smartpool.sharing.shared import SharedBuffer

MiB = 1 << 20
SHAREABLE = smartpool.SmartPoolConfig(shareable=True, enable_auto_defragmentation=False)


class TestCpu(SharingContract):
    @pytest.fixture
    def device(self):
        return "cpu"


@pytest.fixture
def pool():
    with smartpool.SmartPool("cpu", SHAREABLE) as pool:
        yield pool
        gc.collect()
        pool.trim()
        pool.check()


def filled(pool, data):
    buffer = pool.empty(len(data), "uint8")
    buffer.memoryview()[:] = data
    return buffer


# ------------------------------------------------------------------ within one process


def test_an_opened_buffer_is_a_buffer(pool):
    buffer = pool.empty((2, 2), "int32").freeze()
    opened = pool.export(buffer).open()
    assert (opened.shape, opened.dtype.name, opened.nbytes, opened.read_only) == ((2, 2), "int32", 16, True)
    assert opened.pointer != buffer.pointer
    assert not np.from_dlpack(opened).flags.writeable
    assert "(2, 2) int32 on cpu" in repr(opened)
    with pytest.raises(DLPackError, match="another process"):
        np.from_dlpack(opened, copy=True)
    opened.record_stream(None)
    opened.free()
    opened = None


def test_an_array_keeps_an_opened_buffer_open(pool):
    buffer = filled(pool, b"kept")
    shared = pool.export(buffer)
    array = np.from_dlpack(shared.open())
    gc.collect()
    assert shared.in_use
    array[0] = ord("w")
    assert bytes(buffer.memoryview()) == b"wept"
    del array
    gc.collect()
    assert not shared.in_use


def test_the_export_outlives_the_buffer_and_ends_with_the_shared_object(pool):
    manager = pool.managers[0]
    shared = pool.export(filled(pool, b"only the export holds it"))
    gc.collect()
    assert manager.live_bytes == 24
    assert bytes(shared.open().memoryview()) == b"only the export holds it"
    gc.collect()
    del shared
    gc.collect()
    assert manager.live_bytes == 0


def test_a_buffer_that_the_user_freed_stays_readable(pool):
    buffer = filled(pool, b"freed")
    shared = pool.export(buffer)
    buffer.free()
    assert bytes(shared.open().memoryview()) == b"freed"
    with pytest.raises(smartpool.BufferReleasedError):
        pool.export(buffer)


def test_a_dropped_pool_lives_until_its_export_ends():
    pool = smartpool.SmartPool("cpu", SHAREABLE)
    shared = pool.export(filled(pool, b"pool is gone"))
    del pool
    gc.collect()
    opened = shared.open()
    shared.close()
    gc.collect()
    assert bytes(opened.memoryview()) == b"pool is gone"
    assert endings._kept
    opened.free()
    endings.sweep()
    assert not endings._kept


def test_empty_buffers_travel_too(pool):
    assert pool.export(pool.empty((0, 3), "float32")).open().shape == (0, 3)


def test_several_exports_of_one_buffer_count_apart(pool):
    buffer = filled(pool, b"twice")
    first, second = pool.export(buffer), pool.export(buffer)
    opened = first.open()
    first.close()
    second.close()
    del buffer
    assert pool.managers[0].live_bytes == 5
    opened.free()
    pool.trim()
    assert pool.managers[0].live_bytes == 0


@pytest.mark.parametrize(
    "ask", [lambda pool: pool.optimize_memory(), lambda pool: pool._maintenance.background_pass()]
)
def test_a_pass_of_the_optimizer_takes_back_what_nobody_has_open(pool, ask):
    opened = (shared := pool.export(filled(pool, bytes(1000)))).open()
    shared.close()
    opened.free()
    assert pool.managers[0].live_bytes == 1000
    ask(pool)
    assert pool.managers[0].live_bytes == 0


def test_close_waits_when_told(pool):
    shared = pool.export(filled(pool, b"wait"))
    opened = shared.open()
    threading.Timer(0.05, opened.free).start()
    shared.close(wait=True)
    assert pool.managers[0].live_bytes == 0
    assert shared.closed
    shared.close()


# ------------------------------------------------------------------ what is refused


def test_a_pool_that_is_not_shareable():
    with smartpool.SmartPool("cpu") as pool, pytest.raises(SharingError, match="shareable=True"):
        pool.export(pool.empty(1))


def test_what_is_not_a_buffer_of_this_pool(pool):
    with smartpool.SmartPool("cpu", SHAREABLE) as other:
        for wrong in (other.empty(1), 7, None, np.ones(2)):
            with pytest.raises(SharingError, match="by the pool that made it"):
                pool.export(wrong)
    with pytest.raises(SharingError, match=r"SmartPool\.export"):
        smartpool.open_shared(b"bytes")


def test_the_model_and_raw_memory():
    with pytest.raises(UnsupportedError, match="no memory"):
        smartpool.SmartPool("model:1GiB", SHAREABLE)
    config = smartpool.SmartPoolConfig(shareable=True, enable_advanced_pooling=False)
    with smartpool.SmartPool("cpu", config) as pool, pytest.raises(UnsupportedError, match="raw allocation"):
        pool.export(pool.empty(1))


def test_a_failure_on_the_way_leaves_nothing(pool):
    buffer = filled(pool, bytes(20 * MiB))
    before = peers.open_files()
    pool.managers[0].driver.faults.fail("export_chunk", nth=2)
    with pytest.raises(smartpool.DriverError):
        pool.export(buffer)
    assert peers.open_files() == before
    shared = pool.export(buffer)
    broken = dataclasses.replace(shared.description, chunks=(MiB, *shared.description.chunks[1:]))
    with_chunks = SharedBuffer(broken, shared._files)
    count = peers.open_files()
    with pytest.raises(smartpool.DriverError):
        with_chunks.open()
    assert peers.open_files() == count
    assert not shared.in_use


# ------------------------------------------------------------------ over a socket


def test_over_a_socket(pool):
    buffer = filled(pool, bytes(range(200)) * 100_000)
    shared = pool.export(buffer)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = peers.open_files()
        shared.send(ours)
        received = SharedBuffer.receive(theirs)
        assert received.description == shared.description
        assert bytes(received.open().memoryview()) == bytes(range(200)) * 100_000
        received.close()
        gc.collect()
        assert peers.open_files() == before


# ------------------------------------------------------------------ close, and who waits


def numbers_of(shared):
    return [file.fileno() for file in shared._files]


def is_open(number):
    return Path(f"/proc/self/fd/{number}").exists()


def test_who_closes_lets_nobody_open_any_more(pool):
    """Even while somebody has it open: the block is kept for him alone."""
    shared = pool.export(filled(pool, b"bytes!"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        shared.send(ours)
        received = SharedBuffer.receive(theirs)
    opened = received.open()
    shared.close()
    with pytest.raises(SharingError, match="closed it before"):
        received.open()
    assert bytes(opened.memoryview()) == b"bytes!"
    assert pool.managers[0].live_bytes == 6
    opened.free()
    pool.trim()
    assert pool.managers[0].live_bytes == 0


def test_an_interrupted_wait_leaves_the_block_to_who_has_it_open(pool, monkeypatch):
    buffer = filled(pool, b"theirs")
    shared, where = pool.export(buffer), buffer.pointer
    opened, numbers = shared.open(), numbers_of(shared)
    buffer.free()
    end_lease = exports.end_lease

    def interrupted(file, *, wait=False):
        if wait:
            raise KeyboardInterrupt
        return end_lease(file)

    with monkeypatch.context() as patch:
        patch.setattr(exports, "end_lease", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shared.close(wait=True)
    assert shared.closed
    other = filled(pool, b"others")
    assert other.pointer != where
    assert bytes(opened.memoryview()) == b"theirs"
    assert [number for number in numbers if is_open(number)] == numbers[-1:]  # the lease, until it is over
    opened.free()
    shared.close(wait=True)
    assert pool.managers[0].live_bytes == 6
    del opened, shared
    assert not any(map(is_open, numbers))


def test_who_is_in_the_middle_of_sending_keeps_the_descriptors(pool):
    """A number that was closed is another file's at once: it is not sent for the buffer's."""
    buffer = filled(pool, bytes(range(256)) * (60 * MiB // 256))
    shared = pool.export(buffer)
    assert len(shared.description.chunks) > 4
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # a few messages
        begun = threading.Event()

        class Slow(socket.socket):
            def sendall(self, data):
                super().sendall(data)
                begun.set()
                closed.wait(PATIENCE_S)

        closed = threading.Event()
        with Slow(fileno=ours.detach()) as slow:
            sender = threading.Thread(target=shared.send, args=(slow,))
            sender.start()
            assert begun.wait(PATIENCE_S)
            numbers = numbers_of(shared)
            opened = shared.open()
            shared.close()
            strangers = [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]
            assert not set(strangers) & set(numbers)
            closed.set()
            with SharedBuffer.receive(theirs) as received:
                sender.join()
                assert all(
                    Path(f"/proc/self/fd/{n}").readlink() != Path("/dev/null") for n in numbers_of(received)
                )
    for number in strangers:
        os.close(number)
    assert [number for number in numbers if is_open(number)] == numbers[-1:]  # the lease, until it is over
    opened.free()
    pool.trim()
    assert not is_open(numbers[-1])


def test_a_close_by_many_threads_is_one(pool):
    for _ in range(50):
        shared = pool.export(filled(pool, b"closed"))
        numbers = numbers_of(shared)
        start = threading.Barrier(4)

        def close(shared=shared, start=start):
            start.wait()
            shared.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        del shared
        threads.clear()
        pool.trim()
        assert pool.managers[0].live_bytes == 0
        close = None
        assert not any(map(is_open, numbers))


def test_without_descriptors_nothing_fails_but_what_needs_them(pool):
    """And what needs them says what to do, and leaves the pool as it was."""
    script = """
import resource, smartpool
config = smartpool.SmartPoolConfig(shareable=True, enable_auto_defragmentation=False)
pool = smartpool.SmartPool("cpu", config)
buffer = pool.empty(1000, "uint8")
shared = pool.export(buffer)
opened, other = shared.open(), pool.export(buffer)
shared.close()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError:
    pass
pool.trim(), pool.optimize_memory(), pool._maintenance.background_pass(), other.in_use
for ask in (lambda: pool.export(buffer), other.open, lambda: pool.empty(300 << 20, "uint8")):
    try:
        ask()
    except smartpool.SmartPoolError as error:
        assert "ulimit -n" in str(error), error
    else:
        raise AssertionError(ask)
for one in held:
    one.close()
pool.export(buffer).close()
other.open().free()
opened.free()
pool.trim()
pool.check()
assert not smartpool.sharing.endings._kept.keys() - {id(other._export)}
print("as it was")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.stdout, done.stderr) == ("as it was\n", "")


# ------------------------------------------------------------------ forks


def test_a_fork_leaves_the_export_to_the_parent(pool):
    shared = pool.export(filled(pool, b"forked"))
    opened = shared.open()
    child = os.fork()
    if not child:
        code = 1
        try:
            assert bytes(opened.memoryview()) == b"forked"
            opened.free()
            shared.close()
            endings.sweep()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(opened.memoryview()) == b"forked"
    assert shared.in_use
    assert bytes(shared.open().memoryview()) == b"forked"
    del opened


def test_a_killed_fork_of_the_importer_counts_until_it_is_gone(pool):
    """A fork shares the lock of the one who opened: it holds the mapping too."""
    shared = pool.export(filled(pool, b"forked"))
    opened = shared.open()
    child = os.fork()
    if not child:
        signal.pause()
    opened.free()
    assert shared.in_use
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not shared.in_use


def test_a_fork_that_frees_its_copy_lets_go_of_the_lease(pool):
    shared = pool.export(filled(pool, b"forked"))
    opened, (told, tell) = shared.open(), os.pipe()
    child = os.fork()
    if not child:
        opened.free()
        os.write(tell, b"x")
        signal.pause()
    try:
        os.read(told, 1)
        opened.free()
        assert not shared.in_use
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)


def test_an_export_beside_a_capture_does_not_ruin_it(pool):
    buffer, driver = filled(pool, b"bytes!"), pool.managers[0].driver
    stream = driver.create_stream()
    with pool.capture(stream) as memory:
        driver.begin_capture(stream)
        shared = pool.export(buffer)
        driver.end_capture(stream)
    memory.close()
    assert bytes(shared.open().memoryview()) == b"bytes!"
