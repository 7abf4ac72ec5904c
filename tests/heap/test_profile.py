"""What a heap has learned, and a heap that begins with it."""

from __future__ import annotations

from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool import MiB
from smartpool.driver import ModelDriver
from smartpool.errors import DriverError, OutOfMemoryError
from smartpool.heap.arena import Range
from smartpool.heap.profile import HeapProfile, offsets_in, parts_of
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.trace.replay import replay
from smartpool.trace.targets import PoolTarget
from smartpool.units import GiB

TRACES = Path(__file__).parents[1] / "data" / "traces"


def restored(pool, profile):
    pool.maintenance.restore(profile)
    while pool.maintenance.map_ahead():
        pool.check()
    return pool


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=6),
    st.data(),
)
def test_offsets_and_parts_are_each_others_inverse(holes, data):
    chunks, at = [], 0
    for hole, size in holes:
        chunks.append(Range(at + hole, size))
        at += hole + size
    total = sum(chunk.size for chunk in chunks)
    start = data.draw(st.integers(0, total - 1))
    piece = Range(start, data.draw(st.integers(1, total - start)))
    parts = [part for _, part in parts_of(chunks, [piece])]
    assert all(any(c.start <= p.start and p.end <= c.end for c in chunks) for p in parts)
    back = offsets_in(chunks, parts)
    starts = accumulate([part.size for part in parts[:-1]], initial=start)
    assert [part.start for part in back] == list(starts)
    assert sum(part.size for part in back) == piece.size


@pytest.mark.parametrize("name", ["dataframe-mix", "llama-serve"])
def test_the_first_pass_of_a_second_run_makes_no_driver_call(name):
    trace = Trace.load(TRACES / f"{name}.npz")
    pool = AdvancedMemoryPoolManager(ModelDriver(80 * GiB))
    first = replay(trace, PoolTarget(pool), passes=5)
    profile = pool.maintenance.learned()
    pool.close()
    again = restored(AdvancedMemoryPoolManager(ModelDriver(80 * GiB)), profile)
    assert again.maintenance.learned().chunks == profile.chunks
    assert set(again.maintenance.learned().windows) == set(profile.windows)
    before = dict(again.driver.calls)
    second = replay(trace, PoolTarget(again))
    assert {call for call, count in again.driver.calls.items() if count > before.get(call, 0)} <= {
        "memory_info",
        "stream",
        "is_capturing",
    }
    assert second.peak_reserved_bytes == first.peak_reserved_bytes
    again.close()


def fragmented(pool):
    """Make a window: every second block of 2 MiB is free, and one of 20 MiB is asked for."""
    pointers = [pool.malloc(2 * MiB) for _ in range(60)]
    for pointer in pointers[::2]:
        pool.free(pointer)
    pool.free(pool.malloc(20 * MiB))
    return pointers[1::2]


def learned():
    with AdvancedMemoryPoolManager(ModelDriver(1 * GiB)) as pool:
        rest = fragmented(pool)
        profile = pool.maintenance.learned()
        assert profile.windows
        assert profile.problems() == []
        for pointer in rest:
            pool.free(pointer)
    return profile


def test_what_does_not_fit_is_left_out():
    profile = learned()
    small = restored(AdvancedMemoryPoolManager(ModelDriver(32 * MiB)), profile)
    assert 0 < small.reserved_bytes <= 32 * MiB
    small.free(small.malloc(16 * MiB))
    small.close()


def test_chunks_that_went_back_take_their_windows_with_them():
    profile = learned()
    pool = AdvancedMemoryPoolManager(ModelDriver(1 * GiB))
    pool.maintenance.restore(profile)
    for _ in profile.chunks:
        assert pool.maintenance.map_ahead()
    pool.trim()
    while pool.maintenance.map_ahead():
        pool.check()
    assert pool.maintenance.learned().windows == ()
    pool.close()


def test_a_device_with_no_more_memory_ends_it():
    pool = AdvancedMemoryPoolManager(ModelDriver(1 * GiB))
    pool.maintenance.restore(learned())
    assert pool.maintenance.map_ahead()
    pool.driver.faults.fail("create_chunk")
    assert pool.maintenance.map_ahead() == 0
    assert pool.maintenance.map_ahead() == 0
    pool.check()
    pool.close()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("malloc"), st.integers(1, 60)),
            st.tuples(st.just("free"), st.integers(0, 30)),
            st.tuples(st.just("restore"), st.integers(1, 8)),
            st.tuples(
                st.just("fail"), st.sampled_from(["create_chunk", "map_chunk", "enable_access", "reserve"])
            ),
            st.tuples(st.just("trim"), st.just(0)),
        ),
        max_size=40,
    ),
    st.sampled_from([64, 256]),
)
def test_restoring_among_everything_else_with_failing_calls(actions, room):
    pool, live = AdvancedMemoryPoolManager(ModelDriver(room * MiB)), []
    pool.maintenance.restore(learned())
    for action, value in actions:
        with suppress(DriverError, OutOfMemoryError):
            if action == "malloc":
                live.append(pool.malloc(value * MiB))
            elif action == "free" and live:
                pool.free(live.pop(value % len(live)))
            elif action == "restore":
                for _ in range(value):
                    pool.maintenance.map_ahead()
            elif action == "fail":
                pool.driver.faults.fail(value)
            elif action == "trim":
                pool.trim()
        pool.check()
    pool.driver.faults.clear()
    for pointer in live:
        pool.free(pointer)
    pool.close()
    assert not any(pool.driver.held().values())


@pytest.mark.parametrize(
    "profile",
    [
        HeapProfile(2, (3,)),
        HeapProfile(2, (0,)),
        HeapProfile(512, (1024,), ((),)),
        HeapProfile(512, (1024,), ((Range(0, 100),),)),
        HeapProfile(512, (1024,), ((Range(0, 0),),)),
        HeapProfile(512, (1024,), ((Range(512, 1024),),)),
        HeapProfile(512, (1024, 1024), ((Range(0, 512), Range(1024, 512)),)),
        HeapProfile(512, (1024, 1024), ((Range(0, 1024), Range(1536, 512)),)),
        HeapProfile(512, (1024, 1024), ((Range(0, 1024), Range(0, 512)),)),
    ],
)
def test_what_cannot_be_is_told(profile):
    assert len(profile.problems()) == 1
