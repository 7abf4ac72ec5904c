"""The recording hook under CuPy itself: the program of its requests comes back as a trace."""

from __future__ import annotations

import pytest

from smartpool.trace import CupyMemoryHook, Recorder

cupy = pytest.importorskip("cupy")


def test_records_what_the_pool_is_asked_for():
    recorder = Recorder()
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc), CupyMemoryHook(recorder):
        first = cupy.empty(1000, cupy.uint8)
        second = cupy.empty(5_000_000, cupy.uint8)
        del first
        third = cupy.empty(900, cupy.uint8)  # from the pool, at the address of the first
        del second, third
    trace = recorder.trace(name="cupy")
    assert trace.op.tolist() == [0, 0, 1, 0, 1, 1]
    assert trace.size.tolist() == [1000, 5_000_000, 1000, 900, 5_000_000, 900]
    assert trace.peak_live_bytes == 5_001_000
    assert trace.meta["settled"] == {}


def test_frees_are_on_the_stream_of_the_allocation():
    recorder = Recorder()
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc), CupyMemoryHook(recorder):
        kept = cupy.empty(1000, cupy.uint8)
        with cupy.cuda.Stream(non_blocking=True):
            array = cupy.empty(1000, cupy.uint8)
        del array, kept
    assert recorder.trace().stream.tolist() == [0, 1, 1, 0]


def test_arrays_from_before_the_hook_are_dropped_and_counted():
    recorder = Recorder()
    array = cupy.empty(1000, cupy.uint8)
    with CupyMemoryHook(recorder):
        del array
    trace = recorder.trace()
    assert (len(trace), trace.meta["settled"]) == (0, {"unknown_frees": 1})
