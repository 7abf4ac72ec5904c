"""The faces: the everyday one, the runtime author's, and the original design's."""

from __future__ import annotations

import gc
import threading
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S, wait_until

import smartpool
from smartpool import (
    AllocationRequest,
    GPUMemoryOptimizer,
    MiB,
    SmartPool,
    SmartPoolConfig,
    integrate_smartpool_with_gpu_optimizer,
)
from smartpool.errors import (
    BackgroundError,
    ConfigurationError,
    DeviceNotFoundError,
    DoubleFreeError,
    InvalidRequestError,
    InvalidSizeError,
    OutOfMemoryError,
    PoolClosedError,
    RequestTooLargeError,
    UnknownPointerError,
)
from smartpool.pool.manager import AdvancedMemoryPoolManager


@pytest.mark.parametrize("device", ["cpu", "model:80GiB"])
def test_the_original_api_works_as_written(device):
    optimizer = GPUMemoryOptimizer(
        {"enable_smart_pool": True, "devices": [device], "fragmentation_threshold": 0.3}
    )
    pool = integrate_smartpool_with_gpu_optimizer(optimizer)
    result = pool.allocate_memory(
        AllocationRequest(
            size=10 * MiB, device_id=0, priority=1, hint_lifetime=300.0, hint_access_pattern="training"
        )
    )
    buffer, allocation_id = result
    assert (result.buffer, result.allocation_id) == (buffer, allocation_id)
    assert buffer.nbytes == 10 * MiB
    pool.deallocate_memory(allocation_id)
    outcome = pool.optimize_memory()
    assert outcome.memory_freed_mb == 10
    assert outcome.fragmentation_reduced >= 0
    assert pool.statistics.target_achieved is False  # nothing was measured, nothing is claimed
    stats = pool.get_statistics()
    assert stats["smartpool_stats"]["current_fragmentation"] == 0
    assert f"{stats['smartpool_stats']['overall_reduction_percentage']:.1f}%" == "nan%"
    assert "nothing was measured" in stats["smartpool_stats"]["overall_reduction_basis"]
    assert integrate_smartpool_with_gpu_optimizer(optimizer) is pool
    config = SmartPoolConfig(
        enable_interval_coloring=True,
        enable_advanced_pooling=True,
        fragmentation_threshold=0.3,
        optimization_interval=30.0,
        target_fragmentation_reduction=0.133,
        enable_predictive_allocation=True,
        enable_auto_defragmentation=True,
        memory_pressure_threshold=0.85,
    )
    SmartPool(optimizer, config).close()
    pool.close()


def test_the_reduction_is_measured_on_the_recorded_requests():
    with SmartPool("model:8GiB", SmartPoolConfig(record=True)) as pool:
        held = [pool.malloc(3 * MiB + 512 * step) for step in range(200)]
        for pointer in held[::2]:
            pool.free(pointer)
        held = held[1::2] + [pool.malloc(40 * MiB) for _ in range(5)]
        assert pool.statistics.reduction is None  # a look measures nothing
        reduction = pool.measured_reduction()
        statistics = pool.statistics
        assert statistics.reduction is reduction
        assert reduction.events == 305
        assert 0 <= reduction.fragmentation < reduction.baseline_fragmentation < 1
        expected = 100 * (1 - reduction.fragmentation / reduction.baseline_fragmentation)
        assert statistics.as_dict()["smartpool_stats"]["overall_reduction_percentage"] == expected
        assert statistics.target_achieved is (expected >= 13.3)


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


def test_errors_about_arguments_name_the_pool_that_the_user_holds():
    for devices in ("model:1GiB", ["model:1GiB"] * 2):
        with SmartPool(devices) as pool:
            for call, name in ((pool.malloc, "malloc"), (pool.free, "free")):
                with pytest.raises(TypeError, match=rf"^SmartPool\.{name}\(\) missing 1 required"):
                    call()
                with pytest.raises(TypeError, match=rf"^SmartPool\.{name}\(\) got an unexpected"):
                    call(1, device=3)
                assert call.__doc__


def test_settings_may_be_keywords():
    optimizer = GPUMemoryOptimizer({"devices": ["model:1GiB"], "policy": "fast", "record": True})
    config = SmartPoolConfig(policy="tight")
    for pool, expected in (
        (SmartPool("model:1GiB", max_bytes="64MiB", policy="tight"), {"policy": "tight"}),
        (SmartPool("model:1GiB", config, max_bytes="64MiB"), {"policy": "tight"}),
        (SmartPool("model:1GiB", {"policy": "tight", "max_bytes": "64MiB"}), {"policy": "tight"}),
        (SmartPool("model:1GiB", {"max_bytes": "1MiB"}, max_bytes="64MiB"), {}),
        (SmartPool(optimizer, max_bytes="64MiB"), {"policy": "fast", "record": True}),
        (SmartPool(optimizer, {"max_bytes": "64MiB"}), {}),
    ):
        with pool:
            assert pool.config == SmartPoolConfig(max_bytes="64MiB", **expected)
            with pytest.raises(RequestTooLargeError):
                pool.malloc(65 * MiB)
    assert config == SmartPoolConfig(policy="tight")
    with pytest.raises(ConfigurationError, match=r"^max_byte: .* did you mean max_bytes\?"):
        SmartPool("model:1GiB", max_byte="64MiB")


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


def test_empty_takes_shapes_dtypes_devices_and_alignments():
    with SmartPool("cpu") as pool:
        assert pool.empty((2, 3), "float64").nbytes == 48
        assert pool.empty(5, np.int16).shape == (5,)
        assert pool.empty((), bool).shape == ()
        assert pool.empty((0, 7), "float32").nbytes == 0
        assert pool.empty(3, "float32", alignment=1 << 21).pointer % (1 << 21) == 0
        for bad, error in (
            ("shape", InvalidRequestError),
            ((2, -1), InvalidSizeError),
            ((1.5,), InvalidSizeError),
        ):
            with pytest.raises(error):
                pool.empty(bad)
        with pytest.raises(InvalidRequestError):
            pool.empty(3, "floot32")
        with pytest.raises(InvalidRequestError, match="alignment"):
            pool.empty(3, "float32", alignment=3)
        with pytest.raises(DeviceNotFoundError):
            pool.empty(3, device_id=1)


def test_deallocation_ids():
    with SmartPool("model:1GiB") as pool:
        buffer, number = pool.allocate_memory(AllocationRequest(size=100))
        pool.deallocate_memory(number)
        assert buffer.released
        with pytest.raises(DoubleFreeError):
            pool.deallocate_memory(number)
        for stranger in (number + 1, 0, "1", None, True, 1.0, -1, [1], 10**400):
            with pytest.raises(UnknownPointerError):
                pool.deallocate_memory(stranger)
        buffer, number = pool.allocate_memory(AllocationRequest(size=100))
        buffer.free()
        with pytest.raises(DoubleFreeError):
            pool.deallocate_memory(number)
        with pytest.raises(InvalidRequestError):
            pool.allocate_memory(100)


def test_a_closed_pool_refuses_everything():
    pool = SmartPool("model:1GiB")
    pool.close()
    pool.close()
    for call in (
        lambda: pool.malloc(1),
        lambda: pool.allocate(1),
        lambda: pool.empty(1),
        pool.optimize_memory,
        pool.trim,
        pool.start_recording,
        pool.__enter__,
        pool.managers[0].__enter__,
    ):
        with pytest.raises(PoolClosedError, match="expected an open pool, this one on model:1GiB was closed"):
            call()
    assert "closed" in repr(pool)


def test_recording_can_be_switched_on_and_off():
    with SmartPool("model:1GiB") as pool:
        malloc, free = pool.malloc, pool.free  # bound before: still recorded
        early = malloc(100)
        pool.start_recording()
        free(malloc(2000))
        free(early)
        assert pool.recording().events == 2
        trace = pool.stop_recording()
        free(malloc(100))
        assert trace.events == 2
        assert trace.size.tolist() == [2000, 2000]
        assert pool.recording() is None


def test_out_of_memory_tells_the_story_and_is_a_memory_error():
    with SmartPool("model:1GiB", SmartPoolConfig(max_bytes="64MiB")) as pool:
        held = pool.malloc(60 * MiB)
        with pytest.raises(MemoryError) as caught:
            pool.malloc(8 * MiB)
        assert isinstance(caught.value, OutOfMemoryError)
        for part in ("60 MiB live in 1 blocks", "largest free range", "interval_graph", "pool", "gpu", "max"):
            assert part in str(caught.value) or part == "max"
        with pytest.raises(RequestTooLargeError):
            pool.malloc(65 * MiB)
        pool.check()
        pool.free(held)
        pool.free(pool.malloc(64 * MiB))


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


def test_errors_do_not_tell_of_the_quick_path():
    with SmartPool("model:64MiB") as pool:
        for call in (lambda: pool.malloc(-1), lambda: pool.allocate(-1), lambda: pool.malloc(65 * MiB)):
            with pytest.raises(smartpool.SmartPoolError) as caught:
                call()
            assert caught.value.__context__ is None


def test_equal_devices_are_told_apart_in_statistics():
    with SmartPool(["model:1GiB", "model:1GiB"]) as pool:
        assert list(pool.get_statistics()["devices"]) == ["model:1GiB", "model:1GiB#1"]


# ---------------------------------------------------------------------- the background optimiser


def test_the_background_optimiser_gives_idle_memory_back():
    with SmartPool(
        "model:1GiB", SmartPoolConfig(optimization_interval=0.01, fragmentation_threshold=0.0)
    ) as pool:
        pool.free(pool.malloc(100 * MiB))
        wait_until(lambda: pool.managers[0].reserved_bytes == 0)
        assert pool.statistics.background_running
    assert not pool._maintenance.background.running


def test_pressure_wakes_it_without_waiting_for_the_interval():
    config = SmartPoolConfig(
        optimization_interval=3600, memory_pressure_threshold=0.5, fragmentation_threshold=1.0
    )
    with SmartPool("model:1GiB", config) as pool:
        pool.free(pool.malloc(400 * MiB))
        held = pool.malloc(600 * MiB)
        pool.free(pool.malloc(300 * MiB))
        wait_until(lambda: pool._maintenance.background.passes > 0)
        pool.free(held)


def test_it_can_be_switched_off():
    with SmartPool("model:1GiB", SmartPoolConfig(enable_auto_defragmentation=False)) as pool:
        assert not pool._maintenance.background.running


def test_its_errors_surface(monkeypatch, caplog):
    with SmartPool(
        "model:1GiB", SmartPoolConfig(optimization_interval=0.01, fragmentation_threshold=0.0)
    ) as pool:
        pool.managers[0].driver.faults.fail("unmap", times=1)
        pool.free(pool.malloc(100 * MiB))
        wait_until(lambda: pool._maintenance.background.error is not None)
        assert "unmap" in pool.get_statistics()["background"]["error"]
        with pytest.raises(BackgroundError) as caught:
            pool.optimize_memory()
        assert "unmap" in str(caught.value.__cause__)
        wait_until(lambda: pool.managers[0].reserved_bytes == 0)  # it went on
        assert any("optimiser failed" in record.message for record in caplog.records)


def test_it_does_not_keep_the_pool_alive():
    pool = SmartPool("model:1GiB", SmartPoolConfig(optimization_interval=0.01))
    thread = pool._maintenance.background._thread
    del pool
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"enable_smart_pool": 1}, "enable_smart_pool"),
        ({"device_ids": ["0"]}, "device_ids"),
        ({"device_ids": []}, "device_ids"),
        ({"device_ids": [-1]}, "device_ids"),
        ({"devices": "cpu"}, "devices"),
        ({"devices": ["cpu", 3]}, "devices"),
        ([("devices", ["cpu"])], "config"),
        ("cpu", "config"),
        ({3: 4, "devices": ["cpu"]}, "3"),
        ({"optimization_interval": 10**400}, "optimization_interval"),
        ({"devices": ["cpu"], "device_ids": [0]}, "devices"),
        ({"devices": ["cpu"], "fragmentation_treshold": 0.3}, "fragmentation_treshold"),
        ({"devices": ["cpu"], "fragmentation_threshold": 3}, "fragmentation_threshold"),
    ],
)
def test_a_wrong_setting_is_named(settings, field):
    with pytest.raises(ConfigurationError) as caught:
        GPUMemoryOptimizer(settings)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


def test_a_pool_that_does_not_come_by_itself_is_made_by_hand():
    with GPUMemoryOptimizer({"enable_smart_pool": False, "devices": ["model:1GiB"]}) as optimizer:
        with pytest.raises(ConfigurationError, match=r"^enable_smart_pool: .*integrate_smartpool_with"):
            _ = optimizer.pool
        assert optimizer.smart_pool is None
        assert "no pool yet" in repr(optimizer)
        pool = integrate_smartpool_with_gpu_optimizer(optimizer)
        assert optimizer.pool is optimizer.smart_pool is pool
        assert integrate_smartpool_with_gpu_optimizer(optimizer) is pool
    assert pool.closed
    with pytest.raises(ConfigurationError):
        integrate_smartpool_with_gpu_optimizer({"devices": ["cpu"]})


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


def test_repr_and_version():
    with SmartPool("model:1GiB") as pool:
        pool.malloc(1000)
        assert repr(pool) == "<SmartPool on model:1GiB: 1000 B live, 2 MiB reserved>"
    assert smartpool.__version__.count(".") == 2
