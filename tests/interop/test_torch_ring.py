"""The ring of PyTorch's frees: what C stores is what Python reads, once, from any thread."""

from __future__ import annotations

import ctypes
import os
import platform
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.errors import UnsupportedError
from smartpool.interop import _torch_ring
from smartpool.interop._torch_ring import SLOTS, FreeRing

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the code is for x86-64"
)

Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)


@pytest.fixture(scope="module")
def ring():
    """One for all tests: rings are for good."""
    return FreeRing(RECEIVED.append)


RECEIVED: list[int] = []


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.lists(st.integers(1, (1 << 64) - 1), max_size=30), max_size=10))
def test_addresses_come_back_in_order(ring, steps):
    free = Free(ring.address)
    RECEIVED.clear()
    for addresses in steps:
        for address in addresses:
            free(address, 512, 0, None)
        ring.drain()
        assert not ring.slots[ring.cursor[0]]
    assert [address for addresses in steps for address in addresses] == RECEIVED


def test_threads_push_while_others_drain(ring):
    free = Free(ring.address)
    RECEIVED.clear()

    def work(number):
        for step in range(1, 4001):
            free(number << 32 | step, 0, 0, None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 6)]
    threads += [threading.Thread(target=ring.drain) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ring.drain()
    assert sorted(RECEIVED) == [number << 32 | step for number in range(1, 6) for step in range(1, 4001)]
    for number in range(1, 6):  # in the order of each thread
        own = [address for address in RECEIVED if address >> 32 == number]
        assert own == sorted(own)


def test_around_the_end_of_the_ring(ring):
    free = Free(ring.address)
    RECEIVED.clear()
    while ring.cursor[0] < SLOTS - 2:
        for _ in range(min(50_000, SLOTS - 2 - ring.cursor[0])):
            free(1, 0, 0, None)
        ring.drain()
    RECEIVED.clear()
    for address in range(1, 6):
        free(address, 0, 0, None)
    ring.drain()
    assert RECEIVED == [1, 2, 3, 4, 5]
    assert ring.cursor == [3]


def test_an_address_that_cannot_be_given_back_does_not_hold_the_others():
    taken = []

    def give(pointer):
        if pointer == 2:
            raise KeyError(pointer)
        taken.append(pointer)

    ring = FreeRing(give)
    for address in (1, 2, 3):
        Free(ring.address)(address, 0, 0, None)
    with pytest.raises(KeyError):
        ring.drain()
    ring.drain()
    assert taken == [1, 3]


def test_draining_within_draining_returns_at_once():
    ring = FreeRing(lambda _: ring.drain())
    Free(ring.address)(1, 0, 0, None)
    ring.drain()
    assert not ring.slots[ring.cursor[0]]


def test_a_forked_child_has_a_ring_of_its_own(ring):
    RECEIVED.clear()
    child = os.fork()
    if not child:
        Free(ring.address)(7, 0, 0, None)
        os._exit(0)
    os.waitpid(child, 0)
    ring.drain()
    assert RECEIVED == []


def test_other_machines_are_told(monkeypatch):
    monkeypatch.setattr(_torch_ring.platform, "machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match=r"expected Linux on x86-64.*linux on aarch64; use .*mem_pool"):
        FreeRing(print)


def test_a_system_that_runs_no_written_code_is_told(monkeypatch):
    monkeypatch.setattr(_torch_ring, "_READ_EXECUTE", 1 << 30)  # which mprotect refuses
    with pytest.raises(UnsupportedError, match=r"errno 22; use smartpool\.interop\.torch\.mem_pool"):
        FreeRing(print)
