"""Leases: who holds one, who may, and what is none."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest
from waiting import PATIENCE_S

from smartpool.descriptors import Descriptor
from smartpool.errors import SharingError
from smartpool.sharing import lease
from smartpool.sharing.lease import end_lease, hold_lease, is_held, new_lease


def test_those_that_hold_it_count_apart():
    file = new_lease()
    first, second = hold_lease(file), hold_lease(file)
    assert is_held(file)
    first.close()
    assert is_held(file)
    second.close()
    assert not is_held(file)
    assert is_held(Descriptor.of(os.dup, file.fileno())) is False


def test_once_ended_nobody_can_hold_it():
    file = new_lease()
    reader = hold_lease(file)
    assert not end_lease(file)
    with pytest.raises(SharingError, match="closed it before"):
        hold_lease(file)
    reader.close()
    assert end_lease(file)
    assert end_lease(file)
    with pytest.raises(SharingError, match="closed it before"):
        hold_lease(file)


def test_asking_is_in_nobodys_way():
    """Whoever asks takes no lock: others that ask, or open, at the same time do not notice."""
    file, wrong, over = new_lease(), [], threading.Event()

    def ask():
        while not over.is_set():
            if is_held(file):
                wrong.append(True)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        assert not is_held(file)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_wait_ends_with_the_last_holder():
    file = new_lease()
    reader = hold_lease(file)
    ended = threading.Thread(target=end_lease, args=(file,), kwargs={"wait": True})
    ended.start()
    ended.join(0.05)
    assert ended.is_alive()
    reader.close()
    ended.join(PATIENCE_S)
    assert not ended.is_alive()
    assert not is_held(file)


def test_a_wait_is_interrupted_by_a_signal():
    class Alarm(BaseException):
        pass

    def ring(*_):
        raise Alarm

    file = new_lease()
    reader = hold_lease(file)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            end_lease(file, wait=True)
    finally:
        signal.signal(signal.SIGALRM, before)
    reader.close()
    assert end_lease(file)


def a_pipe():
    return os.pipe()[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.open("/dev/null", os.O_RDONLY),
        lambda: os.open(__file__, os.O_RDONLY),
        a_pipe,
        lambda: socket.socket().detach(),
    ],
)
def test_what_is_none(make):
    """Nor is it waited for: who opens the end of a pipe waits for the other end."""
    with Descriptor.of(make) as file, pytest.raises(SharingError, match="none"):
        hold_lease(file)


def test_one_that_a_stranger_keeps_locked():
    file = new_lease()
    with Descriptor(f"/proc/self/fd/{file.fileno()}", "r+") as stranger:
        lease._lock(stranger, lease.fcntl.F_OFD_SETLK, lease.fcntl.F_WRLCK)
        with pytest.raises(SharingError, match="keeps locked"):
            hold_lease(file)


def test_without_descriptors(monkeypatch):
    file = new_lease()

    def none_left(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("smartpool.sharing.lease.Descriptor", none_left)
    with pytest.raises(SharingError, match="ulimit -n"):
        hold_lease(file)
