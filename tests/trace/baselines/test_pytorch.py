from __future__ import annotations

import pytest
from peers import make

from smartpool.errors import (
    InvalidRequestError,
)
from smartpool.trace.baselines.pytorch import PyTorchAllocator, round_request
from smartpool.units import MiB


@pytest.mark.parametrize(
    ("nbytes", "reserved_mib"),
    [(1, 2), (MiB, 2), (MiB + 1, 20), (10 * MiB - 512, 20), (10 * MiB, 10), (10 * MiB + 1, 12)],
)
def test_pytorch_segment_sizes(nbytes, reserved_mib):
    baseline = make(PyTorchAllocator)
    baseline.malloc(nbytes, 0)
    assert baseline.reserved_bytes() == reserved_mib * MiB


def test_pytorch_keeps_streams_and_pools_apart():
    baseline = make(PyTorchAllocator)
    baseline.free(baseline.malloc(512, 0), 0)
    baseline.malloc(512, 1)
    assert baseline.reserved_bytes() == 4 * MiB
    baseline.free(baseline.malloc(2 * MiB, 0), 0)
    baseline.malloc(512, 0)
    assert baseline.reserved_bytes() == 24 * MiB


def test_pytorch_keeps_a_large_block_whole_when_at_most_a_mebibyte_is_left():
    baseline = make(PyTorchAllocator)
    baseline.free(baseline.malloc(12 * MiB, 0), 0)
    whole = baseline.malloc(11 * MiB, 0)
    assert baseline.reserved_bytes() == 12 * MiB
    baseline.free(whole, 0)
    baseline.malloc(11 * MiB - 512, 0)
    baseline.malloc(MiB + 1, 0)  # the rest of it
    assert baseline.reserved_bytes() == 12 * MiB


def test_pytorch_gives_whole_segments_back_and_tries_again():
    baseline = make(PyTorchAllocator, capacity=100 * MiB)
    baseline.free(baseline.malloc(60 * MiB, 0), 0)
    pinned = baseline.malloc(MiB, 0)
    baseline.malloc(70 * MiB, 1)
    assert dict(baseline.driver_calls)["free"] == 1
    assert baseline.reserved_bytes() == 72 * MiB
    baseline.free(pinned, 0)


def test_pytorch_oversize_blocks_are_not_split_and_go_first():
    baseline = make(PyTorchAllocator, capacity=300 * MiB, max_split_bytes=50 * MiB)
    baseline.free(baseline.malloc(60 * MiB, 0), 0)
    baseline.malloc(12 * MiB, 0)  # too small for an oversize block
    assert baseline.reserved_bytes() == 72 * MiB
    baseline.free(baseline.malloc(50 * MiB, 0), 0)  # within 20 MiB of it: served whole
    assert baseline.reserved_bytes() == 72 * MiB
    baseline.malloc(100 * MiB, 0)
    small = baseline.malloc(11 * MiB, 0)
    baseline.free(small, 0)
    assert baseline.reserved_bytes() == 184 * MiB
    baseline.malloc(150 * MiB, 0)  # gives back the 60 MiB, and then everything idle
    assert baseline.reserved_bytes() == 262 * MiB
    baseline.check()


@pytest.mark.parametrize(
    ("nbytes", "divisions", "size"),
    [(0, 0, 512), (513, 0, 1024), (512 * 8, 8, 4096), (1200, 4, 1536), (9 * MiB, 8, 9 * MiB),
     (9 * MiB + 1, 8, 10 * MiB), (8 * MiB, 8, 8 * MiB)],
)  # fmt: skip
def test_pytorch_rounding(nbytes, divisions, size):
    assert round_request(nbytes, divisions) == size


def test_pytorch_divisions_are_a_power_of_two():
    with pytest.raises(InvalidRequestError, match=r"roundup_power2_divisions.*got 3"):
        make(PyTorchAllocator, roundup_power2_divisions=3)
