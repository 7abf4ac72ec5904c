from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.trace.baselines.addresses import AddressOrder
from smartpool.units import MiB

OBSERVED = Path(__file__).parents[2] / "data" / "anchors" / "cumemalloc_order_h200.jsonl"
ROWS = [json.loads(line) for line in OBSERVED.read_text().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['allocator']}-{row['trace']}")
def test_order_is_that_of_the_driver(row):
    order = AddressOrder()
    order.place(8 * MiB)  # what the process had taken of a slab before: seen in the observed addresses
    placed = [order.place(size * MiB) for size in row["size_mib"]]
    order.check()
    assert np.argsort(placed).tolist() == np.argsort(row["address_mib"]).tolist()


def test_slabs_fall_and_fill_upwards():
    order = AddressOrder()
    first, second, third = (order.place(size * MiB) for size in (20, 20, 12))
    assert second == first - 32 * MiB
    assert third == second + 20 * MiB  # the youngest slab with room


def test_the_end_of_a_large_slab_takes_small_requests():
    order = AddressOrder()
    large = order.place(48 * MiB)
    assert order.place(16 * MiB) == large + 48 * MiB


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200 * MiB)), max_size=60))
def test_ranges_never_overlap_and_come_back(steps):
    order = AddressOrder()
    live: dict[int, int] = {}
    for release, size in steps:
        if release and live:
            address = min(live, key=lambda start: (start * 2654435761) % 1009)
            order.release(address, live.pop(address))
        else:
            address = order.place(size)
            end = address + size
            assert all(end <= start or start + length <= address for start, length in live.items())
            live[address] = size
        order.check()
    for address, size in live.items():
        order.release(address, size)
    order.check()
    assert order.place(MiB) == AddressOrder().place(MiB)
