from __future__ import annotations

import pytest
from peers import make

from smartpool.errors import (
    OutOfMemoryError,
)
from smartpool.trace.baselines.pytorch_expandable import PyTorchExpandableAllocator
from smartpool.units import MiB


def test_expandable_segments_grow_by_chunks_in_one_reservation():
    baseline = make(PyTorchExpandableAllocator)
    first = baseline.malloc(15 * MiB, 0)
    second = baseline.malloc(30 * MiB, 0)
    assert second == first + 15 * MiB
    assert baseline.reserved_bytes() == 60 * MiB
    calls = dict(baseline.driver_calls)
    assert (calls["reserve"], calls["create_chunk"], calls["enable_access"]) == (1, 3, 2)


def test_expandable_segments_give_back_the_chunks_under_free_blocks():
    baseline = make(PyTorchExpandableAllocator, capacity=100 * MiB)
    first, second, third = (baseline.malloc(30 * MiB, 0) for _ in range(3))
    assert baseline.reserved_bytes() == 100 * MiB
    baseline.free(second, 0)  # [30, 60) of 100: one chunk of 20 MiB lies under it alone
    baseline.malloc(512, 1)
    assert baseline.reserved_bytes() == 82 * MiB
    # Both free blocks of 10 MiB lie before unmapped addresses; the one that could grow less goes first.
    assert baseline.malloc(10 * MiB, 0) == second
    assert baseline.malloc(10 * MiB, 0) == third + 30 * MiB
    baseline.check()
    with pytest.raises(OutOfMemoryError):
        baseline.malloc(31 * MiB, 0)
    baseline.check()
    baseline.free(first, 0)
    baseline.check()


def test_expandable_segment_is_unreserved_when_it_is_empty():
    baseline = make(PyTorchExpandableAllocator, capacity=40 * MiB)
    baseline.free(baseline.malloc(40 * MiB, 0), 0)
    baseline.malloc(40 * MiB, 1)
    calls = dict(baseline.driver_calls)
    assert (calls["unreserve"], calls["unmap"], calls["release_chunk"]) == (1, 2, 2)
    baseline.check()
