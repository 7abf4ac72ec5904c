"""What the strategies draw is what it says, and every shape has its shape."""

from __future__ import annotations

from attacks import FEW, TOY
from hypothesis import given
from hypothesis import strategies as st
from toys import ToyPool

from smartpool.driver import ModelDriver
from smartpool.driver.faults import CALLS
from smartpool.errors import DriverError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.planner import plan
from smartpool.testing import (
    Contract,
    arm,
    fault_scripts,
    interval_sets,
    requests,
    sizes,
)
from smartpool.units import MiB


@FEW
@given(st.data())
def test_sizes_stay_in_their_limits(data):
    assert 1 <= data.draw(sizes(1000)) <= 1000
    assert 0 <= data.draw(sizes(1000, zero=True)) <= 1000
    assert 0 <= data.draw(sizes(TOY)) <= 4097
    no_zero = Contract(factory=ToyPool, zero_size="undefined", max_bytes=50)
    assert data.draw(sizes(no_zero)) in {*range(1, 51), 1 << 62}


@FEW
@given(requests(1000, devices=2))
def test_requests_are_requests(request):
    assert request.size <= 1000
    assert request.device_id in (None, 0, 1)


@FEW
@given(interval_sets(max_intervals=12))
def test_interval_sets_can_be_planned(intervals):
    made = plan(intervals, time_limit=0.02)
    assert made.height >= intervals.load


@FEW
@given(fault_scripts())
def test_fault_scripts_can_be_armed_and_a_pool_survives_them(script):
    assert all(fault.call in CALLS for fault in script)
    driver = ModelDriver(64 * MiB)
    pool = AdvancedMemoryPoolManager(driver)
    arm(driver, script)
    for nbytes in (1000, 5 * MiB):
        try:
            pool.free(pool.malloc(nbytes))
        except (DriverError, MemoryError):
            pool.check()
    driver.faults.clear()
    pool.close()
