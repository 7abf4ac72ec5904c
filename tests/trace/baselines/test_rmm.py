from __future__ import annotations

import pytest
from peers import make

from smartpool.errors import (
    OutOfMemoryError,
)
from smartpool.trace.baselines.rmm import RmmPool
from smartpool.units import MiB


def test_rmm_doubles():
    baseline = make(RmmPool)
    for expected in (1, 2, 4, 4, 8):
        baseline.malloc(MiB, 0)
        assert baseline.reserved_bytes() == expected * MiB


def test_rmm_tries_less_when_it_cannot_double():
    baseline = make(RmmPool, capacity=100 * MiB)
    baseline.malloc(64 * MiB, 0)
    baseline.malloc(30 * MiB, 0)
    assert baseline.reserved_bytes() == 96 * MiB
    with pytest.raises(OutOfMemoryError):
        baseline.malloc(10 * MiB, 0)
    baseline.check()


def test_rmm_initial_size():
    baseline = make(RmmPool, initial_bytes=64 * MiB)
    baseline.malloc(10 * MiB, 0)
    baseline.malloc(10 * MiB, 1)  # what is free belongs to the default stream: taken from there
    assert baseline.reserved_bytes() == 64 * MiB


def test_rmm_takes_from_another_stream_behind_its_event():
    baseline = make(RmmPool)
    pointer = baseline.malloc(10 * MiB, 1)
    baseline.free(pointer, 1)
    assert baseline.malloc(MiB, 2) == pointer
    assert dict(baseline.driver_calls)["wait_event"] == 1
    assert baseline.reserved_bytes() == 10 * MiB
    baseline.check()


def test_rmm_takes_all_blocks_of_other_streams_over_before_it_grows():
    baseline = make(RmmPool, initial_bytes=30 * MiB)
    first, second, third = (baseline.malloc(10 * MiB, 0) for _ in range(3))
    baseline.free(first, 1)
    baseline.free(second, 2)
    baseline.free(third, 1)
    assert baseline.malloc(30 * MiB, 0) == first
    assert baseline.reserved_bytes() == 30 * MiB
    baseline.check()
