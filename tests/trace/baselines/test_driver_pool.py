"""The model of the driver's own pool against every address that the real one returned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from smartpool.driver import ModelDriver
from smartpool.errors import OutOfMemoryError
from smartpool.trace.baselines.driver_pool import DriverPool
from smartpool.trace.trace import ALLOCATE, Trace
from smartpool.units import GiB, MiB

DATA = Path(__file__).parents[2] / "data"
OBSERVED = np.load(DATA / "anchors" / "cumemallocasync_h200.npz")


@pytest.mark.parametrize("name", ["dataframe-mix", "llama-train", "multistream-mix", "multistream-mix:own"])
def test_every_address_is_that_of_the_driver(name):
    trace_name, _, own_streams = name.partition(":")
    trace = Trace.load(DATA / "traces" / f"{trace_name}.npz")
    pool = DriverPool(ModelDriver(141 * GiB))
    pointers, reserved = [], []
    columns = (trace.op, trace.allocation_numbers(), trace.size, trace.stream * bool(own_streams))
    for op, number, size, stream in zip(*(column.tolist() for column in columns), strict=True):
        if op == ALLOCATE:
            pointers.append(pool.malloc(size, stream))
            reserved.append(pool.reserved_bytes())
        else:
            pool.free(pointers[number], stream)
    pool.check()
    addresses = (np.array(pointers) - pointers[0]) // 512
    np.testing.assert_array_equal(addresses, OBSERVED[f"{name}/address_512"])
    np.testing.assert_array_equal(np.array(reserved) // (32 * MiB), OBSERVED[f"{name}/reserved_32mib"])


def make(capacity=GiB):
    return DriverPool(ModelDriver(capacity))


def test_blocks_lie_one_behind_another_in_chunks_of_32_mib():
    pool = make()
    first = pool.malloc(20 * MiB + 1, 0)
    assert pool.malloc(MiB, 0) == first + 20 * MiB + 512
    assert pool.reserved_bytes() == 32 * MiB
    pool.malloc(20 * MiB, 0)
    assert pool.reserved_bytes() == 64 * MiB


def test_idle_chunks_move_to_where_memory_is_needed():
    pool = make(capacity=128 * MiB)
    first = pool.malloc(64 * MiB, 0)
    second = pool.malloc(64 * MiB, 0)
    pool.free(first, 0)
    pool.free(second, 0)
    pool.malloc(MiB, 0)
    pool.malloc(96 * MiB, 0)
    assert pool.reserved_bytes() == 128 * MiB
    pool.check()


def test_a_refused_request_changes_nothing_that_matters():
    pool = make(capacity=128 * MiB)
    kept = pool.malloc(40 * MiB, 0)
    with pytest.raises(OutOfMemoryError):
        pool.malloc(90 * MiB, 0)
    pool.check()
    assert pool.malloc(64 * MiB, 0) == kept + 40 * MiB
    pool.check()


def test_other_streams_are_asked_before_fresh_memory():
    pool = make()
    pointer = pool.malloc(60 * MiB, 1)
    pool.free(pointer, 1)
    assert pool.malloc(50 * MiB, 2) == pointer
    assert pool.reserved_bytes() == 64 * MiB
    pool.check()
