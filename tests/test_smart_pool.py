"""The faces: the everyday one, the runtime author's, and the original design's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40 * MiB), st.sampled_from([-3, -1, 0, 2])), max_size=30),
    threshold=st.sampled_from([0.25, 0.85, 1.0]),
)
def test_requests_below_0_leave_a_share_to_others(sizes, threshold):
    config = {"memory_pressure_threshold": threshold, "enable_auto_defragmentation": False}
    with SmartPool("model:128MiB", **config) as pool:
        manager = pool.managers[0]
        for size, priority in sizes:
            available = manager.available_bytes
            share = (1 - threshold) * (available + manager.live_bytes)
            told = ""
            try:
                pool.allocate_memory(AllocationRequest(size=size, priority=priority))
            except OutOfMemoryError as error:
                told = str(error)
            refused = priority < 0 and size > available - share
            assert told.startswith("expected a priority of at least 0") == refused
            assert refused or not told or size > available - 4 * MiB  # what chunks round up
        pool.check()


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


def test_errors_do_not_tell_of_the_quick_path():
    with SmartPool("model:64MiB") as pool:
        for call in (lambda: pool.malloc(-1), lambda: pool.allocate(-1), lambda: pool.malloc(65 * MiB)):
            with pytest.raises(smartpool.SmartPoolError) as caught:
                call()
            assert caught.value.__context__ is None


def test_repr_and_version():
    with SmartPool("model:1GiB") as pool:
        pool.malloc(1000)
        assert repr(pool) == "<SmartPool on model:1GiB: 1000 B live, 2 MiB reserved>"
    assert smartpool.__version__.count(".") == 2
