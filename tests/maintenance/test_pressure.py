"""Soft pressure: told once when it rises, in time, and again only after it fell."""

from __future__ import annotations

import threading

import pytest
from waiting import PATIENCE_S

from smartpool import SmartPool, SmartPoolConfig
from smartpool.errors import ConfigurationError, InvalidRequestError
from smartpool.maintenance.pressure import PressureCallbacks
from smartpool.units import MiB


def quiet(**fields):
    return SmartPoolConfig(optimization_interval=3600, fragmentation_threshold=1.0, **fields)


def test_a_callback_is_told_before_memory_runs_out_and_what_it_frees_goes_back():
    told, done = [], threading.Event()
    with SmartPool("model:1GiB", quiet(memory_pressure_threshold=0.5)) as pool:
        held = [pool.malloc(100 * MiB)]

        def free_all(pressure):
            told.append(pressure)
            while held:
                pool.free(held.pop())
            done.set()
            return True

        pool.add_pressure_callback(free_all)
        held.append(pool.malloc(500 * MiB))
        assert done.wait(PATIENCE_S)
        while pool.managers[0].reserved_bytes:  # the pass goes on behind the callback
            assert pool._maintenance.background.running
        pool.remove_pressure_callback(free_all)
    (pressure,) = told
    assert pressure.device == "model:1GiB"
    assert pressure.share > pressure.threshold == 0.5
    assert 80 * MiB < pressure.excess_bytes < 200 * MiB


def test_nobody_is_asked_all_the_time():
    told = []
    callbacks = PressureCallbacks(0.5)
    callbacks.add(lambda pressure: told.append(pressure.share) or False)
    callbacks.add(lambda pressure: True)
    with SmartPool("model:1GiB", quiet(enable_auto_defragmentation=False)) as pool:
        manager = pool.managers[0]

        def look(size):
            pointer = manager.malloc(size)
            outcome = callbacks.look(0, manager.snapshot())
            again = callbacks.look(0, manager.snapshot())
            manager.free(pointer)
            manager.trim()
            return outcome, again

        assert look(100 * MiB) == (False, False)
        assert look(600 * MiB) == (True, False)
        assert look(700 * MiB) == (False, False)  # it never was seen to fall
        assert look(100 * MiB) == (False, False)
        assert look(600 * MiB) == (True, False)
    assert len(told) == 2


def test_wrong_callbacks_and_pools_without_an_optimizer_are_refused():
    with SmartPool("model:1GiB", quiet(enable_auto_defragmentation=False)) as pool:
        with pytest.raises(ConfigurationError, match="enable_auto_defragmentation"):
            pool.add_pressure_callback(print)
        with pytest.raises(InvalidRequestError):
            pool.add_pressure_callback(3)
        with pytest.raises(ValueError, match="add_pressure_callback was given"):
            pool.remove_pressure_callback(print)
