"""Where prices come from, and that they change what a pool does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.driver.costs import H200
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import DriverError
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.elastic import ElasticHeap
from smartpool.heap.policy import POLICY_OF_NAME, Policy
from smartpool.heap.pricing import REFERENCE, REPEATS, find_prices, measure_prices
from smartpool.heap.stream_order import StreamClock
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.prices import Cost
from smartpool.units import GiB, MiB

CALLS = ("create_chunk", "map_chunk", "enable_access", "unmap", "release_chunk")
VIRTUAL = (*CALLS, "reserve", "unreserve")


class LikeCuda(CpuDriver):
    """A device that has no table to read and says that it is CUDA's."""

    def __init__(self):
        super().__init__(capacity=64 * MiB)
        self.dl_device = (2, 0)


def test_the_model_tells_its_table_and_the_configuration_wins():
    costs = replace(H200, map_chunk=Cost(7.0))
    assert find_prices(ModelDriver(1 * GiB, costs)) == costs.prices
    dear = REFERENCE.scaled(map=50)
    for driver in (ModelDriver(1 * GiB), LikeCuda()):
        assert find_prices(driver, dear) is dear
        assert not driver.calls
    assert find_prices(CpuDriver(capacity=64 * MiB)) is REFERENCE


def test_a_measurement_says_what_the_calls_cost_and_leaves_nothing():
    driver = ModelDriver(1 * GiB, replace(H200, create_chunk=Cost(40.0, 0.02), unmap=Cost(5.0)))
    measured = measure_prices(driver, clock=lambda: driver.seconds)
    assert measured is not None
    for name in ("create", "map", "access", "unmap", "release"):
        table = getattr(driver.costs.prices, name)
        assert getattr(measured, name).base == pytest.approx(table.seconds(2 * MiB) * 1e6)
        assert getattr(measured, name).per_mib == getattr(REFERENCE, name).per_mib
    assert not any(driver.held().values())
    assert all(driver.calls[call] == REPEATS for call in CALLS)


def test_a_slow_device_is_not_asked_again():
    driver = ModelDriver(1 * GiB, replace(H200, create_chunk=Cost(1e6)))
    measured = measure_prices(driver, clock=lambda: driver.seconds)
    assert driver.calls["create_chunk"] == 1
    assert measured.create.base == pytest.approx(1e6)


@given(st.sampled_from(VIRTUAL), st.integers(1, REPEATS))
def test_a_failed_measurement_is_none_and_gives_back_what_it_can(call, nth):
    driver = LikeCuda()
    driver.faults.fail(call, nth=nth)
    failed = call != "unreserve" and not (call == "reserve" and nth > 1)
    assert (measure_prices(driver, clock=lambda: 0.0) is None) == failed  # no deadline passes
    driver.faults.clear()
    held = driver.held()
    if call in {"unmap", "release_chunk"}:
        assert held["chunks"] <= 1
    else:
        assert not held["chunks"]
    driver.check()


def test_a_pool_on_cuda_measures_once_and_not_before_it_grows():
    driver = LikeCuda()
    with AdvancedMemoryPoolManager(driver) as pool:
        assert not driver.calls["create_chunk"]
        pool.free(pool.malloc(1 * MiB))
        measured = driver.calls["create_chunk"] - 1
        assert 1 <= measured <= REPEATS  # as the machine is busy
        pool.trim()
        pool.free(pool.malloc(1 * MiB))
        assert driver.calls["create_chunk"] == measured + 2
        pool.check()


def test_a_pool_where_measuring_fails_has_the_reference_prices():
    driver = LikeCuda()
    driver.faults.fail("map_chunk")
    with AdvancedMemoryPoolManager(driver) as pool:
        pool.free(pool.malloc(1 * MiB))
        assert pool.slow_path.heap._growing.policy.prices is REFERENCE
        pool.check()
    assert not any(driver.held().values())


# ---------------------------------------------------------------------- what prices decide


def bytes_for_a_stitchable_request(prices):
    """Return what a heap creates for 100 MiB that 50 idle chunks of 2 MiB, all apart, could hold."""
    driver = ModelDriver(16 * GiB)
    policy = Policy(slack=0.0, chunk_share=1 / 16, smallest_chunk=2 * MiB, mib_price=20.0)
    memory = DeviceMemory(driver, 16 * GiB)
    heap = ElasticHeap(memory, StreamClock(driver), policy, prices)
    blocks = [heap.extend(2 * MiB, 512, 0) for _ in range(100)]
    large = heap.extend(4 * GiB, 512, 0)  # what is created from now on comes in large chunks
    heap.free_all([blocks[::2]], 2 * MiB, None)
    before = memory.reserved_bytes
    heap.extend(100 * MiB, 512, 0)
    assert heap.block_size(large) == 4 * GiB
    heap.check()
    return memory.reserved_bytes - before


def test_twice_the_price_of_a_mapping_turns_stitching_into_growing():
    assert bytes_for_a_stitchable_request(REFERENCE) == 0
    assert bytes_for_a_stitchable_request(REFERENCE.scaled(create=10, release=10)) == 0
    assert bytes_for_a_stitchable_request(REFERENCE.scaled(map=2, access=2)) == 100 * MiB


@pytest.mark.parametrize("name", POLICY_OF_NAME)
def test_chunks_grow_with_the_root_of_the_price(name):
    policy = POLICY_OF_NAME[name]
    assert policy.priced(REFERENCE) == policy
    assert policy.priced(REFERENCE.scaled(create=1.2, map=1.2, access=1.2)).smallest_chunk == (
        policy.smallest_chunk
    )
    for times in (4, 16):
        dearer = policy.priced(REFERENCE.scaled(create=times, map=times, access=times))
        assert dearer.smallest_chunk == policy.smallest_chunk * times**0.5
        assert dearer.chunk_share == policy.chunk_share * times**0.5
    free = policy.priced(REFERENCE.scaled(create=0, map=0, access=0))
    assert free.smallest_chunk == policy.smallest_chunk // 8


@given(
    st.integers(1, 200),
    st.integers(0, 200),
    st.integers(0, 60),
    st.integers(0, 100),
    st.floats(1, 1000),
)
def test_a_dearer_mapping_never_makes_stitching_more_likely(missing, create, shown, budget, factor):
    def pays(prices):
        return POLICY_OF_NAME["balanced"].priced(prices).growing_pays(
            missing * 2 * MiB,
            create * 2 * MiB,
            shown,
            chunk_bytes=16 * MiB,
            budget_bytes=budget * 2 * MiB,
            block_bytes=100 * MiB,
        )  # fmt: skip

    cheap = REFERENCE.scaled(create=0)  # so that what is dearer is showing alone
    if create >= missing:
        assert pays(cheap)
    elif shown + -(-create * 2 // 16) >= -(-missing * 2 // 16):
        assert pays(cheap) <= pays(cheap.scaled(map=factor, access=factor))


def test_failing_calls_while_measuring_do_not_hide_real_ones():
    driver = LikeCuda()
    driver.faults.fail("create_chunk", times=2, error="CUDA_ERROR_ECC_UNCORRECTABLE")
    with AdvancedMemoryPoolManager(driver) as pool:
        with pytest.raises(DriverError):
            pool.malloc(1 * MiB)
        pool.free(pool.malloc(1 * MiB))
