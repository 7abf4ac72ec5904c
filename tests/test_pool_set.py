"""Several devices as one pool: whose a block is, and what is done on all of them."""

from __future__ import annotations

import threading
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool import AllocationRequest, MiB, SmartPool, SmartPoolConfig
from smartpool.errors import (
    ConfigurationError,
    DeviceNotFoundError,
    DoubleFreeError,
    InvalidRequestError,
    OutOfMemoryError,
    UnknownPointerError,
)
from smartpool.manager import AdvancedMemoryPoolManager


def test_a_request_without_a_device_goes_where_most_is_free():
    with SmartPool(["model:1GiB", "model:2GiB"]) as pool:
        buffer, _ = pool.allocate_memory(AllocationRequest(size=1400 * MiB))
        assert buffer.device == "model:2GiB"
        buffer, number = pool.allocate_memory(AllocationRequest(size=800 * MiB))
        assert buffer.device == "model:1GiB"
        pool.deallocate_memory(number)
        assert pool.managers[0].live_bytes == 0


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_malloc_and_free_find_the_device_of_a_pointer(count, debug):
    with SmartPool(["model:1GiB"] * count, debug=debug) as pool:
        held = [manager.malloc(1 << step % 23) for step in range(100) for manager in pool.managers]
        Random(0).shuffle(held)
        for pointer in held:
            pool.free(np.int64(pointer) if pointer % 3 else pointer)
            with pytest.raises(DoubleFreeError):
                pool.free(pointer)
        assert [manager.live_bytes for manager in pool.managers] == [0] * count
        for stranger in (12345, -1, 1.0, "0", None, True):
            with pytest.raises(UnknownPointerError):
                pool.free(stranger)


def test_a_free_asks_as_few_devices_of_many_as_of_two(monkeypatch):
    asked = []
    owns = AdvancedMemoryPoolManager.owns

    def counted(manager, pointer):
        asked.append(manager)
        return owns(manager, pointer)

    monkeypatch.setattr(AdvancedMemoryPoolManager, "owns", counted)
    for count in (2, 4, 16):
        with SmartPool(["model:1GiB"] * count) as pool:
            held = [manager.malloc(1 << 16) for _ in range(100) for manager in pool.managers]
            Random(0).shuffle(held)
            half = len(held) // 2
            for pointer in held[:half]:
                pool.free(pointer)
            before = len(asked)
            for pointer in held[half:]:
                pool.free(pointer)
            assert len(asked) - before <= half  # one each; none for the first device


DEVICE_IDS = st.sampled_from(
    [None, 2, -1, "0", b"0", 0.0, True, [0], 10**400, -(10**400), np.float32(1), "x"]
)


@given(DEVICE_IDS)
def test_a_wrong_device_id_is_named_wherever_one_is_taken(device_id):
    with SmartPool(["model:1GiB"] * 2, enable_auto_defragmentation=False) as pool:
        calls = [
            lambda: pool.empty(3, device_id=device_id),
            lambda: pool.memory_map(device_id),
            lambda: pool.recording(device_id),
            lambda: pool.capture(None, device_id=device_id).__enter__(),
            lambda: pool.allocate_memory(AllocationRequest(size=1, device_id=device_id)),
        ]
        if device_id is None:  # means the first, all of them, and any
            calls = [calls[1], calls[3]]
        with pool.profile("scope") as scope:
            for call in (*calls, lambda: scope.record(device_id)):
                with pytest.raises((DeviceNotFoundError, InvalidRequestError), match=r"^device_id: expected"):
                    call()


def test_a_device_id_may_be_any_integer():
    with SmartPool(["model:1GiB", "model:2GiB"]) as pool:
        for number in (1, np.int64(1), np.uint8(1)):
            assert pool.empty(3, device_id=number).device == "model:2GiB"
            assert pool.memory_map(number).device == "model:2GiB"


def test_two_models_share_no_address():
    with SmartPool(["model:1GiB", "model:1GiB"]) as pool:
        first, second = (manager.malloc(1000) for manager in pool.managers)
        pool.free(second)
        assert [manager.live_bytes for manager in pool.managers] == [1000, 0]
        pool.free(first)


def test_a_callback_can_make_room_before_a_request_fails():
    with SmartPool("model:1GiB", SmartPoolConfig(max_bytes="64MiB")) as pool:
        caches = [pool.allocate(20 * MiB) for _ in range(3)]
        asked = []

        def drop_one(nbytes):
            asked.append(nbytes)
            return bool(caches and caches.pop())

        pool.add_out_of_memory_callback(drop_one)
        wanted = pool.allocate(40 * MiB)
        assert asked == [40 * MiB] * 2
        assert len(caches) == 1
        with pytest.raises(OutOfMemoryError):
            pool.allocate(50 * MiB)
        assert not caches
        pool.remove_out_of_memory_callback(drop_one)
        for remove in (pool.remove_out_of_memory_callback, pool.remove_pressure_callback):
            with pytest.raises(InvalidRequestError, match=r"^callback: expected one that add_"):
                remove(drop_one)
        del wanted
        pool.check()


def test_a_callback_that_lies_does_not_hang_the_pool():
    with SmartPool("model:64MiB") as pool:
        asked = []
        pool.add_out_of_memory_callback(lambda nbytes: not asked.append(nbytes))
        held = pool.malloc(60 * MiB)
        with pytest.raises(OutOfMemoryError):
            pool.malloc(10 * MiB)
        assert len(asked) == 1
        with pytest.raises(InvalidRequestError):
            pool.add_out_of_memory_callback(5)
        pool.free(held)


def test_equal_devices_are_told_apart_in_statistics():
    with SmartPool(["model:1GiB", "model:1GiB"]) as pool:
        assert list(pool.get_statistics()["devices"]) == ["model:1GiB", "model:1GiB#1"]


def test_devices_are_opened_all_or_none():
    before = threading.active_count()
    with pytest.raises(DeviceNotFoundError):
        SmartPool(["model:1GiB", "nonsense"])
    for device in ("nonsense", [], 5, None, {"devices": ["cpu"]}, ["cpu", 3], object()):
        with pytest.raises(DeviceNotFoundError):
            SmartPool(device)
    for wrong in ({"record": 1}, {"recording": True}, 5, ["record"]):
        with pytest.raises(ConfigurationError):
            SmartPool("cpu", wrong)
    assert threading.active_count() == before
