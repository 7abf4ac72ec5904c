"""How long exported memory lives: until its last consumer is gone, on any thread, and no longer."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.dlpack import DType, export, host_array, outstanding
from smartpool.dlpack.capsule import _pointer_of
from smartpool.dlpack.structs import LEGACY_NAME, VERSIONED_NAME, ManagedTensor, ManagedTensorVersioned

pytestmark = pytest.mark.usefixtures("nothing_outstanding")

VERSIONS = [None, (1, 0)]
NAMES = {None: LEGACY_NAME, (1, 0): VERSIONED_NAME}
USED = {version: b"used_" + name for version, name in NAMES.items()}  # capsules keep the pointer
STRUCTS = {None: ManagedTensor, (1, 0): ManagedTensorVersioned}

# The same function by an own prototype, so that the argument types do not meet those of others.
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)


class Owner:
    """Sixteen bytes that note in `released` when and on which thread they are given back."""

    def __init__(self, released: list[int], dtype: str = "int32") -> None:
        self.released = released
        self.dtype = DType.parse(dtype)
        self.memory = ctypes.create_string_buffer(16)

    def __dlpack__(self, *, stream: Any = None, **asked: Any) -> Any:
        address = ctypes.addressof(self.memory)
        return export(self, pointer=address, shape=(2, 2), dtype=self.dtype, device=(1, 0), **asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __del__(self) -> None:
        self.released.append(threading.get_ident())


def consumed(capsule: Any, version: tuple[int, int] | None) -> tuple[int, int]:
    """Do what a consumer does, and return the addresses of the structure and its deleter."""
    address = _pointer_of(capsule, NAMES[version])
    assert _rename(capsule, USED[version]) == 0
    return address, STRUCTS[version].from_address(address).deleter


@pytest.mark.parametrize("version", VERSIONS)
def test_a_capsule_without_a_consumer_gives_the_memory_back(version: tuple[int, int] | None) -> None:
    released: list[int] = []
    owner = Owner(released)
    capsule = owner.__dlpack__(max_version=version)
    del owner
    gc.collect()
    assert not released
    del capsule
    assert len(released) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_a_consumed_capsule_leaves_the_release_to_the_consumer(version: tuple[int, int] | None) -> None:
    released: list[int] = []
    capsule = Owner(released).__dlpack__(max_version=version)
    address, deleter = consumed(capsule, version)
    del capsule
    gc.collect()
    assert not released
    ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(deleter)(address)
    assert len(released) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_numpy_holds_the_memory(version: tuple[int, int] | None) -> None:
    released: list[int] = []

    class Through(Owner):
        def __dlpack__(self, *, max_version: Any = None, **asked: Any) -> Any:
            return super().__dlpack__(max_version=version, **asked)

    array = np.from_dlpack(Through(released))
    part = array[1:].T
    del array
    gc.collect()
    assert not released
    del part
    assert len(released) == 1


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["export", "consume", "drop"]), st.integers(0, 7), st.integers(0, 2)),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_consumers_dropped_in_any_order_on_any_thread_release_once(
    steps: list[tuple[str, int, int]], threads: list[ThreadPoolExecutor]
) -> None:
    """A model: each of eight owners is alive while its owner object or a consumer of it is."""
    released: dict[int, list[int]] = {}
    owners: dict[int, Owner] = {}
    consumers: dict[int, list[tuple[int, Any]]] = {}
    generation = 0
    for action, slot, thread in steps:
        run = threads[thread].submit
        if action == "export":
            # A new owner in the slot; consumers of the previous one stay.
            generation += 1
            released[generation] = []
            owners[slot] = run(Owner, released[generation]).result()
            owners[slot].generation = generation  # type: ignore[attr-defined]
        elif action == "consume" and slot in owners:
            array = run(np.from_dlpack, owners[slot]).result()
            consumers.setdefault(slot, []).append((owners[slot].generation, array))  # type: ignore[attr-defined]
            del array
        elif action == "drop" and consumers.get(slot):
            run(consumers[slot].pop).result()
        alive = {owner.generation for owner in owners.values()}  # type: ignore[attr-defined]
        alive |= {number for held in consumers.values() for number, _ in held}
        # Workers let go of a result a moment after they hand it over.
        [worker.submit(int).result() for worker in threads]
        assert {number for number, calls in released.items() if not calls} == alive
        assert all(len(calls) <= 1 for calls in released.values())
    owners.clear()
    consumers.clear()
    [worker.submit(int).result() for worker in threads]
    assert all(len(calls) == 1 for calls in released.values())


@pytest.fixture(scope="module")
def threads() -> Any:
    workers = [ThreadPoolExecutor(1) for _ in range(3)]
    yield workers
    for worker in workers:
        worker.shutdown()


def test_the_thread_that_drops_is_the_thread_that_releases() -> None:
    released: list[int] = []
    held = [np.from_dlpack(Owner(released))]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert released == [thread.ident]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="starts a thread through the C library")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_native_thread_without_the_lock_can_release(version: tuple[int, int] | None) -> None:
    """The deleter itself is the start routine of a thread that Python has never seen."""
    libc = ctypes.CDLL(None)
    released: list[int] = []
    for _ in range(50):
        address, deleter = consumed(Owner(released).__dlpack__(max_version=version), version)
        handle = ctypes.c_ulong()
        start = libc.pthread_create(
            ctypes.byref(handle), None, ctypes.c_void_p(deleter), ctypes.c_void_p(address)
        )
        assert start == 0
        assert libc.pthread_join(handle, None) == 0
    assert len(released) == 50
    assert threading.get_ident() not in released


# ------------------------------------------------------------------ while an exception is on its way


def test_an_exception_in_flight_survives_the_release() -> None:
    """Arguments already evaluated are dropped with the error indicator set.

    This is what deleters and destructors in Python cannot bear.
    """

    def call(*_: object) -> None:
        raise AssertionError

    released: list[int] = []
    with pytest.raises(ZeroDivisionError):
        call(np.from_dlpack(Owner(released)), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(Owner(released).__dlpack__(max_version=(1, 0)), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(Owner(released).__dlpack__(), Owner(released, "bfloat16").__dlpack__(), 1 / 0)
    assert len(released) == 4


def test_a_consumer_that_refuses_releases_and_its_error_arrives() -> None:
    released: list[int] = []
    with pytest.raises((BufferError, RuntimeError), match="Unsupported dtype"):
        np.from_dlpack(Owner(released, "bfloat16"))
    gc.collect()
    assert len(released) == 1


def test_pytorch_too_drops_tensors_while_an_exception_is_in_flight() -> None:
    torch = pytest.importorskip("torch")

    def call(*_: object) -> None:
        raise AssertionError

    released: list[int] = []
    with pytest.raises(ZeroDivisionError):
        call(torch.from_dlpack(Owner(released)), torch.from_dlpack(Owner(released, "bfloat16")), 1 / 0)
    assert len(released) == 2


# ------------------------------------------------------------------ many, and none left


def test_exports_leave_nothing_behind() -> None:
    def rounds(count: int) -> None:
        for _ in range(count):
            owner = Owner(released, "float32")
            np.from_dlpack(owner)
            owner.__dlpack__()
            owner.__dlpack__(max_version=(1, 0))
            strange = Owner(released, "float8_e5m2")
            strange.__dlpack__(max_version=(1, 0))
            released.clear()

    released: list[int] = []
    rounds(200)
    gc.collect()
    before, alive = sys.getallocatedblocks(), outstanding()
    rounds(25_000)  # 100,000 exports
    gc.collect()
    assert sys.getallocatedblocks() - before < 500
    assert outstanding() == alive


def test_outstanding_counts_exports_and_host_arrays() -> None:
    owner = Owner([])
    before = outstanding()
    held = [
        np.from_dlpack(owner),
        owner.__dlpack__(),
        host_array(owner, pointer=ctypes.addressof(owner.memory), shape=(4,), dtype=owner.dtype),
    ]
    assert outstanding() - before == 3
    held.clear()
    assert outstanding() == before


def test_parts_of_a_host_array_hold_the_owner() -> None:
    released: list[int] = []
    owner = Owner(released)
    part = host_array(owner, pointer=ctypes.addressof(owner.memory), shape=(4,), dtype=owner.dtype)[2:]
    view = memoryview(part)
    del owner, part
    gc.collect()
    assert not released
    view.release()
    del view
    assert len(released) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_drop_what_its_parent_exported() -> None:
    released: list[int] = []
    array: Any = np.from_dlpack(Owner(released))
    child = os.fork()
    if child == 0:
        del array
        os._exit(0 if len(released) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not released
    del array
    assert len(released) == 1
