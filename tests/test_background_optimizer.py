"""What keeps a pool in order: memory given back at once, and by the background optimizer."""

from __future__ import annotations

import gc

import pytest
from waiting import PATIENCE_S, wait_until

from smartpool import MiB, SmartPool, SmartPoolConfig, background_optimizer
from smartpool.errors import (
    BackgroundError,
)
from smartpool.manager import AdvancedMemoryPoolManager


def test_an_optimization_does_what_it_says_in_that_order(monkeypatch):
    done = []
    with SmartPool(["model:1GiB"] * 2, enable_auto_defragmentation=False) as pool:
        for manager in pool.managers:
            manager.free(manager.malloc(100 * MiB))
        trim = AdvancedMemoryPoolManager.trim
        monkeypatch.setattr(background_optimizer, "sweep", lambda: done.append("shared"))
        monkeypatch.setattr(
            AdvancedMemoryPoolManager, "trim", lambda manager: done.append(manager) or trim(manager)
        )
        outcome = pool.optimize_memory()
        assert done == ["shared", *pool.managers]
        assert outcome.memory_freed_mb == 200
        assert outcome.devices == ("model:1GiB", "model:1GiB")
        assert [manager.reserved_bytes for manager in pool.managers] == [0, 0]


def test_the_background_optimizer_gives_idle_memory_back():
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
        assert any("optimizer failed" in record.message for record in caplog.records)


def test_it_does_not_keep_the_pool_alive():
    pool = SmartPool("model:1GiB", SmartPoolConfig(optimization_interval=0.01))
    thread = pool._maintenance.background._thread
    del pool
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
