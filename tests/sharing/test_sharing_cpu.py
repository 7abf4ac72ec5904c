"""Buffers of the `cpu` device in two processes, for real; and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import pickle
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import sharing_peers as peers
from sharing_contract import SharingContract

import smartpool
from smartpool.errors import DLPackError, SharingError, UnsupportedError
from smartpool.sharing import exports
from smartpool.sharing.lease import Lease
from smartpool.sharing.shared import Description, SharedBuffer

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
    assert exports._ended
    opened.free()
    exports.sweep()
    assert not exports._ended


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


def test_a_pass_of_the_optimiser_takes_back_what_nobody_has_open(pool):
    opened = (shared := pool.export(filled(pool, bytes(1000)))).open()
    shared.close()
    opened.free()
    assert pool.managers[0].live_bytes == 1000
    pool.optimize_memory()
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
    with_chunks = SharedBuffer(broken, [os.dup(n) for n in shared._descriptors])
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


def test_more_descriptors_than_one_message_takes(pool, monkeypatch):
    monkeypatch.setattr("smartpool.sharing.shared._MOST_DESCRIPTORS", 2)
    buffer = filled(pool, b"z" * 60 * MiB)
    shared = pool.export(buffer)
    assert len(shared.description.chunks) > 4
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=shared.send, args=(ours,))
        sender.start()
        received = SharedBuffer.receive(theirs)
        sender.join()
        assert bytes(received.open().memoryview()[-3:]) == b"zzz"
        received.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"SPb1" + bytes(8),
        b"SPb1\xff\xff\xff\xff\0\0\0\1",
        b"SPb1\0\0\0\2\0\0\0\0[]",
    ],
)
def test_garbage_from_a_socket(garbage):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(garbage)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(SharingError):
            SharedBuffer.receive(theirs)


def test_descriptions_that_lie_are_refused(pool):
    text = pool.export(pool.empty(4, "uint8")).description.to_json()
    lies = (
        ('"offset": 0', '"offset": -8'),
        ('"nbytes": 4', '"nbytes": 99999999'),
        ('"shape": [4]', '"shape": [17179869184]'),
        ('"dtype": "uint8"', '"dtype": "float64"'),
        ("{", "["),
    )
    for old, new in lies:
        assert old in text
        with pytest.raises(SharingError):
            Description.from_json(text.replace(old, new))


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
            exports.sweep()
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


def test_a_pickle_is_for_other_processes_at_once(pool):
    shared = pool.export(filled(pool, b"bytes"))
    data = pickle.dumps(shared)
    received = pickle.loads(data)
    assert bytes(received.open().memoryview()) == b"bytes"
    received.close()


def test_an_interrupted_wait_leaves_the_block_to_who_has_it_open(pool, monkeypatch):
    buffer = filled(pool, b"theirs")
    shared, where = pool.export(buffer), buffer.pointer
    opened, descriptors = shared.open(), list(shared._descriptors)
    buffer.free()
    revoke = Lease.revoke

    def interrupted(lease, *, wait=False):
        if wait:
            raise KeyboardInterrupt
        return revoke(lease)

    monkeypatch.setattr(Lease, "revoke", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shared.close(wait=True)
    del shared, buffer
    gc.collect()
    other = filled(pool, b"others")
    assert other.pointer != where
    assert bytes(opened.memoryview()) == b"theirs"
    assert not any(Path(f"/proc/self/fd/{number}").exists() for number in descriptors)
    opened.free()
    del opened
    exports.sweep()
    assert pool.managers[0].live_bytes == 6


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


def test_a_fork_during_a_revocation_does_not_keep_the_lease_locked(monkeypatch):
    descriptor, children, pwrite = Lease.create(), [], os.pwrite

    def forked(*arguments):
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
        return pwrite(*arguments)

    monkeypatch.setattr("smartpool.sharing.lease.os.pwrite", forked)
    try:
        assert Lease(descriptor).revoke()
        assert not Lease(descriptor).held  # nobody has a lock that a late importer would wait for
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(descriptor)


def test_a_close_that_fails_leaks_no_descriptor(pool, monkeypatch):
    buffer = filled(pool, b"bytes!")
    shared, live = pool.export(buffer), pool.managers[0].live_bytes
    descriptors = list(shared._descriptors)
    buffer.free()

    def full(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "revoke", full)
        with pytest.raises(OSError, match="open files"):
            shared.close()
    assert shared.closed
    assert not any(Path(f"/proc/self/fd/{number}").exists() for number in descriptors)
    assert pool.managers[0].live_bytes == live
    del shared, buffer
    gc.collect()
    exports.sweep()
    assert pool.managers[0].live_bytes == 0


def test_an_export_beside_a_capture_does_not_ruin_it(pool):
    buffer, driver = filled(pool, b"bytes!"), pool.managers[0].driver
    stream = driver.create_stream()
    with pool.capture(stream) as memory:
        driver.begin_capture(stream)
        shared = pool.export(buffer)
        driver.end_capture(stream)
    memory.close()
    assert bytes(shared.open().memoryview()) == b"bytes!"
