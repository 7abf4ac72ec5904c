"""Policies: the numbers do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.heap.policy import POLICY_OF_NAME, policy_of
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.trace.replay import replay
from smartpool.trace.targets import open_target
from smartpool.units import GiB, KiB, MiB, TiB, align_up

TRACES = Path(__file__).parents[1] / "data" / "traces"


@given(
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 3000),
    st.integers(0, 1 * TiB),
    st.integers(1, 1 * TiB),
    st.sampled_from([64 * KiB, 2 * MiB, 64 * MiB]),
)
def test_cuts_add_up_and_are_granular(name, units, peak, cap, granularity):
    policy = POLICY_OF_NAME[name]
    size = units * granularity
    parts = list(policy.cut(size, peak_live_bytes=peak, cap_bytes=cap, granularity=granularity))
    assert sum(parts) == size
    assert all(part > 0 and part % granularity == 0 for part in parts)
    assert max(parts) - min(parts) <= granularity
    largest = max(policy.smallest_chunk, int(policy.chunk_share * peak), granularity)
    assert max(parts) <= largest


@given(st.sampled_from(sorted(POLICIES)), st.integers(0, 1 * TiB), st.integers(0, 1 * TiB))
def test_the_budget_covers_the_peak_and_grows_with_it(name, small, large):
    policy = POLICY_OF_NAME[name]
    small, large = sorted((small, large))
    assert policy.budget_bytes(small) >= small
    assert policy.budget_bytes(small) <= policy.budget_bytes(large)
    assert policy.budget_bytes(large) <= (1 + policy.slack) * large + 1


@given(st.sampled_from(sorted(POLICIES)), st.lists(st.integers(1, 200 * MiB), min_size=1, max_size=20))
def test_growing_ahead_stays_within_the_budget(name, sizes):
    policy, granularity = POLICY_OF_NAME[name], 2 * MiB
    pool = AdvancedMemoryPoolManager(ModelDriver(8 * GiB), SmartPoolConfig(policy=name))
    for size in sizes:
        before = pool.reserved_bytes
        pool.malloc(size)
        needed = before + align_up(size, granularity)
        assert pool.reserved_bytes <= max(needed, policy.budget_bytes(pool.slow_path.heap.peak_live_bytes))
        assert pool.reserved_bytes % granularity == 0
    pool.disown()


@given(st.floats(0, 1), st.floats(0, 1))
def test_every_number_on_the_axis_is_a_policy_and_more_is_never_tighter(low, high):
    low, high = sorted((low, high))
    tighter, looser = policy_of(low), policy_of(high)
    for field in ("slack", "ahead", "chunk_share", "smallest_chunk"):
        assert getattr(tighter, field) <= getattr(looser, field)
    for field in ("mib_price", "edge_price"):
        assert getattr(tighter, field) >= getattr(looser, field)
    for name, place in POLICIES.items():
        assert policy_of(place) is policy_of(name)


def test_fragmentation_and_driver_time_follow_the_axis():
    trace = Trace.load(TRACES / "dataframe-mix.npz")
    reserved, seconds = [], []
    for policy in (0.0, 0.25, 0.5, 1.0):
        with open_target("smartpool", "model:8GiB", policy=policy) as target:
            run = replay(trace, target)
        reserved.append(run.peak_reserved_bytes)
        seconds.append(run.driver_seconds)
    assert reserved == sorted(reserved)
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("smaller, larger", [("tight", "balanced"), ("balanced", "fast")])  # noqa: PT006
def test_tight_pays_with_calls_and_fast_with_bytes(smaller, larger):
    assert POLICY_OF_NAME[smaller].slack <= POLICY_OF_NAME[larger].slack
    assert POLICY_OF_NAME[smaller].smallest_chunk <= POLICY_OF_NAME[larger].smallest_chunk
