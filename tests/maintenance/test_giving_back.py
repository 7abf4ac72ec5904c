"""Upkeep: idle memory goes back by age, faster where fragmented, and never what is in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import GiB, MiB


class RawModel(ModelDriver):
    """Raw memory only, as where the platform lacks the virtual-memory calls."""

    def __init__(self, capacity):
        super().__init__(capacity)
        self.granularity = 0


def make(driver_class=ModelDriver, **fields):
    config = {"optimization_interval": 30.0, "idle_age": 60.0, "fragmentation_threshold": 1.0} | fields
    return AdvancedMemoryPoolManager(driver_class(8 * GiB), SmartPoolConfig(**config))


@pytest.mark.parametrize("driver_class", [ModelDriver, RawModel])
def test_idle_memory_goes_back_when_it_is_old_enough(driver_class):
    with make(driver_class) as pool:
        held = pool.malloc(100 * MiB)
        for pointer in [pool.malloc(64 * MiB) for _ in range(10)]:
            pool.free(pointer)
        reserved = pool.reserved_bytes
        assert [pool.maintenance.keep_up(now) for now in (0.0, 30.0, 59.0)] == [0, 0, 0]
        given = pool.maintenance.keep_up(60.0)
        assert given >= 600 * MiB
        assert pool.reserved_bytes == reserved - given >= 100 * MiB
        assert pool.maintenance.keep_up(90.0) == 0
        pool.check()
        pool.free(held)


@pytest.mark.parametrize("driver_class", [ModelDriver, RawModel])
def test_memory_that_is_used_between_passes_stays(driver_class):
    with make(driver_class, idle_age=1.0) as pool:
        for now in range(0, 300, 30):
            for pointer in [pool.malloc(64 * MiB) for _ in range(10)]:
                pool.free(pointer)
            if now % 60:
                pool.flush()  # no trace of it in the bins
            assert pool.maintenance.keep_up(float(now)) == 0
        pool.check()


def test_fragmented_pools_wait_for_one_pass_only():
    with make(fragmentation_threshold=0.3) as pool:
        pool.free(pool.malloc(1 * GiB))
        assert [pool.maintenance.keep_up(now) > 0 for now in (0.0, 30.0)] == [False, True]
    with make(fragmentation_threshold=0.3, idle_age=None) as pool:
        pool.free(pool.malloc(1 * GiB))
        assert [pool.maintenance.keep_up(now) > 0 for now in (0.0, 30.0)] == [False, True]


def test_without_an_age_only_fragmentation_counts():
    with make(idle_age=None) as pool:
        pool.free(pool.malloc(1 * GiB))
        assert not any(pool.maintenance.keep_up(30.0 * turn) for turn in range(100))


def test_what_the_device_may_still_touch_stays_for_the_next_time():
    with make(idle_age=30.0) as pool:
        stream = pool.driver.create_stream()
        pool.driver.pause(stream)
        pointer = pool.malloc(1 * GiB, stream)
        pool.driver.fill(pointer, 1, 1 * GiB, stream)
        pool.free(pointer)
        assert [pool.maintenance.keep_up(now) for now in (0.0, 30.0, 60.0)] == [0, 0, 0]
        pool.driver.resume(stream)
        assert pool.maintenance.keep_up(90.0) == 1 * GiB
        pool.check()


def test_the_region_of_a_step_that_rests_goes_back():
    with make() as pool:
        for _ in range(4):
            pool.begin_step("step", wait_for_plan=True)
            pool.free(pool.malloc(300 * MiB))
            pool.end_step()
        assert pool.maintenance.keep_up(0.0) == 0
        for now in range(10, 100, 10):  # it goes on, and keeps its memory
            pool.begin_step("step")
            pool.free(pool.malloc(300 * MiB))
            pool.end_step()
            assert pool.maintenance.keep_up(float(now)) == 0
        given = sum(pool.maintenance.keep_up(float(now)) for now in range(100, 400, 10))
        assert given >= 300 * MiB
        assert pool.reserved_bytes == 0
        pool.check()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("malloc"), st.integers(1, 40)),
            st.tuples(st.just("free"), st.integers(0, 30)),
            st.tuples(st.just("pass"), st.integers(1, 90)),
        ),
        max_size=60,
    ),
    st.sampled_from([ModelDriver, RawModel]),
)
def test_upkeep_never_touches_what_is_live(actions, driver_class):
    pool = make(driver_class, idle_age=30.0)
    live, now = {}, 0.0
    for action, number in actions:
        if action == "malloc":
            pointer = pool.malloc(number * MiB)
            live[pointer] = number * MiB
        elif action == "free" and live:
            pool.free(live_pointer := list(live)[number % len(live)])
            del live[live_pointer]
        elif action == "pass":
            now += number
            given = pool.maintenance.keep_up(now)
            assert given >= 0
        assert pool.live_blocks() == live
        assert pool.reserved_bytes >= sum(live.values())
        pool.check()
    for pointer in live:
        pool.free(pointer)
    for turn in range(100):
        pool.maintenance.keep_up(now + 30 * turn)
    assert pool.reserved_bytes == 0
    pool.check()
