from __future__ import annotations

from peers import make

from smartpool.trace.baselines.cupy import CuPyPool
from smartpool.units import MiB


def test_cupy_grows_by_exactly_what_is_asked_and_splits_everything():
    baseline = make(CuPyPool)
    baseline.free(baseline.malloc(3 * MiB + 1, 0), 0)
    assert baseline.reserved_bytes() == 3 * MiB + 512
    baseline.malloc(512, 0)
    baseline.malloc(3 * MiB, 0)
    assert baseline.reserved_bytes() == 3 * MiB + 512


def test_cupy_frees_whole_chunks_when_memory_is_short():
    baseline = make(CuPyPool, capacity=100 * MiB)
    baseline.free(baseline.malloc(60 * MiB, 0), 0)
    baseline.malloc(80 * MiB, 0)
    assert baseline.reserved_bytes() == 80 * MiB
