"""Mapping ahead: nothing beyond what was needed before, less where it was for nothing, off the callers."""

from __future__ import annotations

import threading
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from smartpool import SmartPool, SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import DriverError
from smartpool.maintenance.ahead import SHARE, Forecast
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import GiB, MiB


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.sampled_from(["grow", "give"]), st.integers(0, 10**6), st.integers(0, 10**6))),
)
def test_what_is_foreseen_was_needed_before(expected, story):
    forecast, most = Forecast(expected), expected
    for event, live, idle in story:
        ahead = forecast.ahead(live, live + idle)
        assert ahead >= 0
        assert ahead == 0 or live + idle + ahead <= SHARE * most
        assert ahead <= live  # never more than doubles
        forecast.mapped(ahead)
        if event == "give":
            extent = live + idle + ahead
            forecast.gave_back(extent_before=extent, high_water=live, live_bytes=live // 2)
            most = max(most, extent)
    assert 0 <= forecast.used_bytes <= forecast.mapped_bytes


def test_a_pool_that_maps_for_nothing_stops():
    forecast = Forecast(10_000)
    for _ in range(10):
        forecast.mapped(forecast.ahead(1000, 1000))
        forecast.gave_back(extent_before=2000, high_water=1000, live_bytes=0)
    assert forecast.ahead(1000, 1000) == 0
    assert forecast.used_bytes == 0


def test_a_pool_whose_forecasts_come_true_goes_on():
    forecast = Forecast(10_000)
    forecast.factor = 0.25
    for _ in range(3):
        forecast.mapped(forecast.ahead(1000, 1000))
        forecast.gave_back(extent_before=2000, high_water=2000, live_bytes=0)
    assert forecast.factor == 1.0
    assert forecast.used_bytes == forecast.mapped_bytes > 0


def make(**fields):
    return AdvancedMemoryPoolManager(ModelDriver(8 * GiB), SmartPoolConfig(**fields))


def test_nothing_is_mapped_ahead_of_a_first_growth():
    with make() as pool:
        for _ in range(10):
            pool.malloc(50 * MiB)
            assert pool.maintenance.map_ahead() == 0
        for pointer in pool.live_blocks():
            pool.free(pointer)


def test_growing_to_where_it_was_takes_few_calls_of_the_caller():
    def grown_by_caller(pool):
        pointers, created = [], 0
        calls = pool.driver.calls
        for _ in range(64):
            before = calls["create_chunk"]
            pointers.append(pool.malloc(16 * MiB))
            created += calls["create_chunk"] - before
            while pool.maintenance.map_ahead():
                pool.check()
        for pointer in pointers:
            pool.free(pointer)
        return created

    with make(idle_age=1.0) as pool:
        first = grown_by_caller(pool)
        peak = pool.peak_reserved_bytes
        given = sum(pool.maintenance.keep_up(30.0 * turn) for turn in range(4))
        assert given == peak
        again = grown_by_caller(pool)
        assert 0 < again <= first / 3
        assert pool.peak_reserved_bytes == peak
        pool.check()


def test_mapping_ahead_keeps_to_the_cap_and_survives_a_device_that_has_no_more():
    with make(expected_bytes=4 * GiB, max_bytes=256 * MiB) as pool:
        pointer = pool.malloc(200 * MiB)
        while pool.maintenance.map_ahead():
            pass
        assert pool.reserved_bytes <= 256 * MiB
        pool.free(pointer)
    with make(expected_bytes="4GiB") as pool:
        pointer = pool.malloc(200 * MiB)
        pool.driver.faults.fail("create_chunk")
        assert pool.maintenance.map_ahead() == 0
        assert pool.maintenance.map_ahead() > 0
        pool.check()
        pool.free(pointer)


def test_the_mapper_runs_on_a_thread_of_its_own_and_only_where_something_is_foreseen():
    with SmartPool("model:8GiB") as pool:
        pool.malloc(100 * MiB)
        assert not pool._maintenance.mapping.running
        pool.free(next(iter(pool.managers[0].live_blocks())))
    with SmartPool("model:8GiB", SmartPoolConfig(expected_bytes="1GiB")) as pool:
        mappers = [thread for thread in threading.enumerate() if thread.name == "smartpool-mapper"]
        assert mappers
        pointer = pool.malloc(300 * MiB)
        wait_until(lambda: pool.managers[0].reserved_bytes >= 550 * MiB)
        assert pool.managers[0].reserved_bytes <= 1 * GiB
        pool.free(pointer)
        pool.check()
    assert not pool._maintenance.mapping.running
    config = SmartPoolConfig(expected_bytes="1GiB", enable_predictive_allocation=False)
    with SmartPool("model:8GiB", config) as pool:
        assert not pool._maintenance.mapping.running


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("malloc"), st.integers(1, 60)),
            st.tuples(st.just("free"), st.integers(0, 30)),
            st.tuples(st.just("map"), st.integers(1, 4)),
            st.tuples(st.just("pass"), st.integers(1, 60)),
            st.tuples(st.just("fail"), st.sampled_from(["create_chunk", "map_chunk", "enable_access"])),
            st.tuples(st.just("trim"), st.just(0)),
        ),
        max_size=50,
    )
)
def test_mapping_ahead_among_everything_else_with_failing_calls(actions):
    pool = make(expected_bytes="1GiB", idle_age=20.0, max_bytes="2GiB")
    live, now = {}, 0.0
    for action, value in actions:
        with suppress(DriverError):
            if action == "malloc":
                live[pool.malloc(value * MiB)] = value * MiB
            elif action == "free" and live:
                pointer = list(live)[value % len(live)]
                pool.free(pointer)
                del live[pointer]
            elif action == "map":
                for _ in range(value):
                    pool.maintenance.map_ahead()
            elif action == "pass":
                now += value
                pool.maintenance.keep_up(now)
            elif action == "fail":
                pool.driver.faults.fail(value)
            elif action == "trim":
                pool.trim()
        pool.check()
        assert pool.live_blocks() == live
        assert pool.reserved_bytes <= 2 * GiB
    pool.driver.faults.clear()
    for pointer in live:
        pool.free(pointer)
    pool.trim(wait=True)
    assert pool.reserved_bytes == 0
    pool.close()
    assert not any(pool.driver.held().values())
