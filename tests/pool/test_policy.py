"""Policies: the numbers do what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.config import POLICIES
from smartpool.pool.policy import POLICY_OF_NAME
from smartpool.units import GiB, KiB, MiB, TiB


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


@given(st.sampled_from(sorted(POLICIES)), st.integers(1, 500), st.integers(0, 80 * GiB), st.integers(0, 500))
def test_growing_ahead_stays_in_its_room(name, missing, peak, room):
    granularity = 2 * MiB
    policy = POLICY_OF_NAME[name]
    grown = policy.growth_bytes(missing * granularity, peak, room * granularity, granularity)
    assert grown % granularity == 0
    assert missing * granularity <= grown <= max(missing, room) * granularity


@pytest.mark.parametrize("smaller, larger", [("tight", "balanced"), ("balanced", "fast")])  # noqa: PT006
def test_tight_pays_with_calls_and_fast_with_bytes(smaller, larger):
    assert POLICY_OF_NAME[smaller].slack <= POLICY_OF_NAME[larger].slack
    assert POLICY_OF_NAME[smaller].smallest_chunk <= POLICY_OF_NAME[larger].smallest_chunk
