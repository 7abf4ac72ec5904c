"""Recommendations: each comes when its figure says so, with that figure, and not otherwise."""

from __future__ import annotations

from random import Random

import pytest

from smartpool import InvalidRequestError, KiB, MiB, SmartPool, SmartPoolConfig
from smartpool.recommendations import recommend

QUIET = {"enable_auto_defragmentation": False, "fragmentation_threshold": 1.0}


def advice(pool, kind):
    return [one for one in recommend(pool) if one.kind == kind]


def fragmenting(pool):
    """Leave holes that only small chunks give back."""
    random = Random(0)
    live = []
    for size in (2, 3, 5, 9, 14):
        live += [pool.malloc(size * MiB + 512 * random.randrange(2000)) for _ in range(60)]
        for _ in range(30):
            pool.free(live.pop(random.randrange(len(live))))
    return live


def test_without_a_recording_it_asks_for_one():
    with SmartPool("model:1GiB", SmartPoolConfig(**QUIET)) as pool:
        (only,) = recommend(pool)
        assert only.kind == "record"
        assert "start_recording" in only.text


def test_a_policy_is_recommended_by_replaying_the_recording_with_it():
    with SmartPool("model:8GiB", SmartPoolConfig(record=True, policy="fast", **QUIET)) as pool:
        fragmenting(pool)
        found = {one.figures["policy"]: one for one in advice(pool, "policy")}
        best = found["tight"]
        figures = best.figures
        assert best.nbytes == figures["peak_reserved_bytes"] - figures["peak_reserved_bytes_then"] > 16 * MiB
        assert figures["peak_reserved_bytes"] == pool.managers[0].peak_reserved_bytes
        assert figures["events"] == pool.recording().events
    with SmartPool("model:8GiB", SmartPoolConfig(policy="tight", **QUIET)) as pool:
        pool.start_recording()
        fragmenting(pool)
        assert pool.managers[0].peak_reserved_bytes == figures["peak_reserved_bytes_then"]  # as foretold
        assert all(not one.nbytes for one in advice(pool, "policy"))


def test_a_stream_that_is_not_used_any_more_is_named():
    with SmartPool("model:1GiB", SmartPoolConfig(**QUIET)) as pool:
        stream = pool.managers[0].driver.create_stream()
        held = pool.malloc(MiB)
        pool.free(pool.malloc(300 * MiB, stream))
        (found,) = advice(pool, "stream")
        assert found.nbytes == found.figures["cached_bytes"] == 300 * MiB
        assert f"stream {stream}" in found.text
        pool.optimize_memory()
        assert not advice(pool, "stream")
        pool.free(held)


def test_a_limit_that_is_nearly_reached_is_named_where_the_device_has_more():
    for capacity, expected in (("1GiB", 1), ("64MiB", 0)):
        with SmartPool(f"model:{capacity}", SmartPoolConfig(max_bytes="64MiB", **QUIET)) as pool:
            pool.malloc(60 * MiB)
            assert len(advice(pool, "limit")) == expected


def test_idle_memory_is_named_where_nobody_gives_it_back():
    for automatic in (True, False):
        config = SmartPoolConfig(
            enable_auto_defragmentation=automatic, fragmentation_threshold=0.2, optimization_interval=3600
        )
        with SmartPool("model:1GiB", config) as pool:
            blocks = [pool.malloc(30 * MiB) for _ in range(4)]
            for block in blocks[:3]:
                pool.free(block)
            found = advice(pool, "defragmentation")
            assert [one.nbytes for one in found] == ([] if automatic else [90 * MiB])


def test_pooling_that_is_off_is_named_with_what_it_cost():
    with SmartPool("model:1GiB", SmartPoolConfig(enable_advanced_pooling=False, **QUIET)) as pool:
        for _ in range(5):
            pool.free(pool.malloc(MiB))
        (found,) = advice(pool, "pooling")
        assert found.figures["calls"] == 5


def test_steps_that_nobody_marks_are_found_in_the_recording():
    for marked in (True, False):
        config = SmartPoolConfig(record=True, enable_predictive_allocation=marked, **QUIET)
        with SmartPool("model:8GiB", config) as pool:
            for _ in range(150):
                with pool.step(wait_for_plan=True):
                    blocks = [pool.malloc(100 * KiB * number) for number in range(1, 25)]
                    for block in blocks:
                        pool.free(block)
            found = advice(pool, "steps")
            assert [one.figures["period"] for one in found] == ([] if marked else [24])


def test_steps_that_keep_missing_are_told():
    with SmartPool("model:8GiB", SmartPoolConfig(**QUIET)) as pool:
        random = Random(2)
        for repetition in range(8):
            with pool.step(wait_for_plan=True):
                sizes = [MiB * number for number in range(1, 60)]
                if repetition:
                    random.shuffle(sizes)
                for size in sizes:
                    pool.free(pool.malloc(size))
        steps = pool.statistics.devices[0].steps
        (found,) = advice(pool, "steps")
        assert f"{steps.left} of {steps.planned} repetitions were left" in found.text
        assert found.figures == {"hits": steps.hits, "misses": steps.misses, "left": steps.left}


def test_steps_that_come_as_planned_are_not_told():
    with SmartPool("model:8GiB", SmartPoolConfig(**QUIET)) as pool:
        for _ in range(8):
            with pool.step():
                for number in range(1, 60):
                    pool.free(pool.malloc(MiB * number))
        assert pool.statistics.devices[0].steps.hits
        assert not advice(pool, "steps")


def test_several_devices_are_told_apart_and_the_largest_comes_first():
    with SmartPool(["model:1GiB", "model:2GiB"], SmartPoolConfig(**QUIET)) as pool:
        for manager, nbytes in zip(pool.managers, (100 * MiB, 200 * MiB), strict=True):
            manager.free(manager.malloc(nbytes, manager.driver.create_stream()))
        found = recommend(pool)
        assert [(one.kind, one.device) for one in found[:2]] == [
            ("stream", "model:2GiB"),
            ("stream", "model:1GiB"),
        ]


def test_a_trace_is_advised_as_its_recording_is():
    with SmartPool("model:8GiB", SmartPoolConfig(record=True, policy="fast", **QUIET)) as pool:
        fragmenting(pool)
        trace = pool.recording()
        of_pool = [(one.kind, one.text, one.nbytes) for one in recommend(pool) if one.kind == "policy"]
        of_trace = recommend(trace, config=pool.config)
        assert [(one.kind, one.text, one.nbytes) for one in of_trace] == of_pool
        assert {one.device for one in of_trace} == {trace.name}
    for wrong in (None, "trace.npz", pool.config):
        with pytest.raises(InvalidRequestError, match="expected a SmartPool or a Trace, got"):
            recommend(wrong)


def test_the_old_name_says_what_to_call():
    with SmartPool("model:1GiB") as pool:
        with pytest.warns(DeprecationWarning, match=r"smartpool\.recommendations\.recommend\(pool\)"):
            old = pool.recommendations()
        assert old == recommend(pool)
