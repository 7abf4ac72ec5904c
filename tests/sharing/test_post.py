"""Pickles of shared buffers: good while the buffer is open, however often; nothing is left of them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time

import pytest
from sharing_peers import bytes_of, open_files
from waiting import PATIENCE_S, wait_until

import smartpool
from smartpool.errors import SharingError
from smartpool.sharing import post

SHAREABLE = smartpool.SmartPoolConfig(shareable=True, enable_auto_defragmentation=False)


@pytest.fixture
def pool():
    with smartpool.SmartPool("cpu", SHAREABLE) as pool:
        yield pool
        gc.collect()
        pool.trim()
        # A thread that sent a buffer holds it until it ends.
        wait_until(lambda: pool.managers[0].live_bytes == 0)


def exported(pool, data=b"bytes"):
    buffer = pool.empty(len(data), "uint8")
    buffer.memoryview()[:] = data
    return pool.export(buffer)


def test_a_pickle_is_loaded_as_often_as_one_likes(pool):
    shared = exported(pool)
    data = pickle.dumps(shared)
    for _ in range(3):
        with pickle.loads(data) as received:
            assert bytes(received.open().memoryview()) == b"bytes"
            assert bytes(pickle.loads(pickle.dumps(received)).open().memoryview()) == b"bytes"


def test_pickles_that_nobody_loads_keep_nothing(pool):
    exported(pool).close()
    shared = exported(pool)
    pickle.dumps(shared)
    settled(before := open_files())
    for _ in range(50):
        pickle.dumps(shared)
    assert open_files() == before
    shared.close()
    del shared
    gc.collect()
    assert pool.managers[0].live_bytes == 0
    assert not post._Office.current.offered


def settled(count):
    """Wait until the thread that answers has closed what it had open."""
    end = time.monotonic() + PATIENCE_S
    while open_files() > count and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["closed", "gone"])
def test_what_was_closed_before_it_was_loaded_is_closed(pool, how):
    shared = exported(pool)
    data = pickle.dumps(shared)
    if how == "closed":
        shared.close()
    else:
        del shared
        gc.collect()
    received = pickle.loads(data)
    assert received.closed
    assert "closed" in repr(received)
    with pytest.raises(SharingError, match="keep it open"):
        received.open()
    with pytest.raises(SharingError, match="keep it open"):
        pickle.dumps(received)


def test_of_a_process_that_has_ended():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=pickled_and_ended, args=(theirs,))
    process.start()
    data = ours.recv_bytes()
    process.join(PATIENCE_S)
    assert pickle.loads(data).closed


def pickled_and_ended(pipe):
    with smartpool.SmartPool("cpu", SHAREABLE) as pool:
        shared = exported(pool)
        pipe.send_bytes(pickle.dumps(shared))


def test_who_does_not_know_the_key_gets_nothing(pool):
    address, number, _ = post.offer(shared := exported(pool))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(address)
        stranger.sendall(number.to_bytes(8, "big") + bytes(32))
        assert len(stranger.recv(64, socket.MSG_WAITALL)) == 64  # its proof, and what we should prove
        stranger.sendall(bytes(32))
        assert stranger.recv(1) == b""
    assert not shared.closed


def test_who_answers_without_the_key_is_not_believed(pool):
    """As where the process that pickled has ended, and another has taken its socket's name."""
    _, number, description = post.offer(exported(pool))
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind("")
        impostor.listen()

        def answer():
            way, _ = impostor.accept()
            with way:
                way.recv(40, socket.MSG_WAITALL)
                way.sendall(bytes(64))
                way.recv(32)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SharingError, match="the key is another"):
            post.collect(impostor.getsockname(), number, description)
        thread.join()


def test_a_silent_visitor_keeps_nobody_waiting(pool):
    shared = exported(pool)
    data = pickle.dumps(shared)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(post._Office.current.address)
        assert not pickle.loads(data).closed


def test_a_forked_child_does_not_answer_for_its_parent(pool):
    """Nor does it keep the parent's socket open, at which nobody would answer any more."""
    shared = exported(pool)
    data = pickle.dumps(shared)
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(60)
            assert post._Office.current is None
            received = pickle.loads(data)  # by the parent
            assert bytes_of(received.open()) == b"bytes"
            assert pickle.loads(pickle.dumps(received)).description == shared.description  # by itself
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert not pickle.loads(data).closed
