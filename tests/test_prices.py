"""Prices: sums of lines, and only of lines that make sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import ConfigurationError
from smartpool.prices import Cost, Prices
from smartpool.units import MiB

COSTS = st.builds(Cost, st.floats(0, 1e6), st.floats(0, 1e3))
PRICES = st.builds(Prices, create=COSTS, map=COSTS, access=COSTS, unmap=COSTS, release=COSTS)


@given(PRICES, st.integers(0, 1000), st.integers(0, 1 << 40))
def test_totals_are_the_sum_of_the_calls(prices, chunks, nbytes):
    def line(*costs):
        return sum(cost.base * chunks + cost.per_mib * nbytes / MiB for cost in costs)

    assert prices.grow(chunks, nbytes) == pytest.approx(line(prices.create, prices.map, prices.access))
    assert prices.show(chunks, nbytes) == pytest.approx(line(prices.map, prices.access))
    assert prices.give_back(chunks, nbytes) == pytest.approx(line(prices.unmap, prices.release))


@given(PRICES, st.floats(0, 100))
def test_scaling_moves_only_what_is_named(prices, factor):
    scaled = prices.scaled(map=factor)
    assert scaled.map == Cost(prices.map.base * factor, prices.map.per_mib * factor)
    assert (scaled.create, scaled.access, scaled.unmap, scaled.release) == (
        prices.create,
        prices.access,
        prices.unmap,
        prices.release,
    )


@pytest.mark.parametrize("bad", [Cost(-1), Cost(1, -1), 3, None])
def test_a_price_below_nothing_is_refused(bad):
    good = dict.fromkeys(("create", "map", "access", "unmap", "release"), Cost(1))
    with pytest.raises(ConfigurationError, match=r"^prices: expected a Cost .* for unmap"):
        Prices(**good | {"unmap": bad})
