"""Recordings of all devices, the reduction that is measured from them, and what a look at statistics is."""

from __future__ import annotations

import json
import math
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S

import smartpool
from smartpool import GiB, MiB, SmartPool
from smartpool.driver import ModelDriver
from smartpool.trace import replay
from smartpool.trace.baselines import make_baseline
from smartpool.trace.recording import PoolRecording
from smartpool.trace.trace import ALLOCATE


def ragged(pool, *, device_id=0, count=60):
    """Make requests that a caching allocator serves badly; return what is live in the end."""
    manager = pool.managers[device_id]
    held = [manager.malloc(3 * MiB + 512 * step) for step in range(count)]
    for pointer in held[::2]:
        manager.free(pointer)
    return held[1::2] + [manager.malloc(20 * MiB) for _ in range(3)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1 << 22), st.booleans()), max_size=30))
def test_every_event_of_every_device_is_in_the_trace_in_order(requests):
    with SmartPool(["model:8GiB"] * 3, enable_auto_defragmentation=False) as pool:
        pool.start_recording()
        expected, each = [], [0, 0, 0]
        for device_id, nbytes, freed in requests:
            manager = pool.managers[device_id]
            pointer = manager.malloc(nbytes)
            expected.append((0, nbytes))
            each[device_id] += 1
            if freed:
                pool.free(pointer)
                expected.append((1, nbytes))
                each[device_id] += 1
        assert [pool.recording(number).events for number in range(3)] == each
        trace = pool.stop_recording()
        assert list(zip(trace.op.tolist(), trace.size.tolist(), strict=True)) == expected
        assert trace.peak_live_bytes == max_live(expected)
        streams = {}
        for (device_id, _, _), stream in zip(
            requests, trace.stream[trace.op == ALLOCATE].tolist(), strict=True
        ):
            assert streams.setdefault(device_id, stream) == stream  # each device has streams of its own
        assert len(set(streams.values())) == len(streams)
        assert trace.meta["devices"] == ["model:8GiB"] * 3


def max_live(events):
    live = highest = 0
    for op, nbytes in events:
        live += -nbytes if op else nbytes
        highest = max(highest, live)
    return highest


def test_the_reduction_is_over_all_devices():
    with SmartPool(["model:8GiB"] * 2, record=True) as pool:
        held = ragged(pool, device_id=1)
        measured = pool.measured_reduction()
        trace = pool.recording(1)
        assert pool.recording(0).events == 0
        assert measured.events == trace.events > 0
        run = replay.replay(trace, make_baseline("pytorch", ModelDriver(64 << 40)))
        peak = pool.managers[1].peak_reserved_bytes
        assert measured.baseline_fragmentation == 1 - trace.peak_live_bytes / run.peak_reserved_bytes
        assert measured.fragmentation == 1 - trace.peak_live_bytes / peak
        held += ragged(pool, device_id=0, count=20)
        both = pool.measured_reduction()
        assert both.events == pool.recording().events > measured.events
        assert measured.fragmentation != both.fragmentation
        assert pool.statistics.reduction is both


def test_a_measurement_is_kept_until_something_new_is_recorded():
    with SmartPool("model:8GiB") as pool:
        assert pool.measured_reduction() is None
        pool.start_recording()
        assert pool.measured_reduction() is None  # nothing was recorded yet
        held = ragged(pool)
        assert pool.statistics.reduction is None
        first = pool.measured_reduction()
        assert pool.measured_reduction() is first
        held += ragged(pool)
        assert pool.statistics.reduction is first
        second = pool.measured_reduction()
        assert second is not first
        pool.stop_recording()
        pool.start_recording()
        assert pool.measured_reduction() is pool.statistics.reduction is second  # the last one measured
        held.append(pool.malloc(100))
        assert pool.measured_reduction().events == 1


def test_what_was_live_and_reserved_before_counts_as_it_did():
    def figures(begin):
        with SmartPool("model:8GiB", enable_auto_defragmentation=False) as pool:
            pool.free(pool.malloc(2 * GiB))
            pool.trim()  # the peak of another time
            if begin == "before":
                pool.start_recording()
            weights = [pool.malloc(10 * MiB) for _ in range(20)]
            if begin == "after":
                pool.start_recording()
            held = ragged(pool)
            for pointer in weights:
                pool.free(pointer)
            measured = pool.measured_reduction()
            assert measured.events == pool.recording().events + (20 if begin == "after" else 0)
            assert held
            return measured.fragmentation, measured.baseline_fragmentation

    assert figures("before") == figures("after")


def test_a_look_at_statistics_replays_nothing(monkeypatch):
    def forbidden(*_):
        raise AssertionError("a look makes no trace")

    with SmartPool(["model:8GiB"] * 2, record=True) as pool:
        held = ragged(pool) + ragged(pool, device_id=1)
        monkeypatch.setattr("smartpool.trace.recording._trace_of", forbidden)
        monkeypatch.setattr("smartpool.trace.recording.PoolRecording.measure", forbidden)
        for _ in range(3):
            held.append(pool.malloc(1000))
            assert math.isnan(pool.get_statistics()["smartpool_stats"]["overall_reduction_percentage"])
            assert pool.statistics.target_achieved is False


def test_threads_that_start_a_recording_at_once_start_one():
    with SmartPool("model:8GiB") as pool:
        together = threading.Barrier(4)

        def start():
            together.wait(PATIENCE_S)
            pool.start_recording()

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pool.managers[0].telemetry._journal.readers) == 1
        hooks = len(pool.managers[0].telemetry._hooks)
        pool.free(pool.malloc(100))
        assert pool.stop_recording().events == 2
        assert pool.managers[0].telemetry._journal.readers == ()
        assert len(pool.managers[0].telemetry._hooks) == hooks - 1


def test_a_recording_ends_at_its_limit():
    with SmartPool("model:8GiB") as pool:
        recording = PoolRecording(pool.managers, limit=1)
        recording.start()
        for _ in range(20_000):
            pool.free(pool.malloc(512))
        trace = recording.trace()
        assert 0 < trace.events < 40_000
        assert trace.meta["complete"] is False
        recording.stop()


def test_statistics_read_well():
    with SmartPool(["model:8GiB", "cpu"], record=True) as pool:
        held = ragged(pool)
        statistics = pool.statistics
        assert len(repr(statistics)) < 300
        for text in (str(statistics), f"{statistics}"):
            assert "nothing was measured: call start_recording()" in text
            assert max(map(len, text.splitlines())) <= 110
            for part in ("model:8GiB", "cpu", "live", "reserved", "fragmentation"):
                assert part in text
        measured = pool.measured_reduction()
        assert f"{measured.percentage:.1f} % measured on {measured.events} recorded" in str(pool.statistics)
        again = json.loads(json.dumps(pool.get_statistics()))
        assert again["smartpool_stats"]["overall_reduction_percentage"] == measured.percentage
        assert held


def test_passes_and_what_they_gave_back_agree():
    with SmartPool("model:1GiB", idle_age=0.01, optimization_interval=3600) as pool:
        pool._maintenance.background.stop()
        assert (pool.statistics.optimizations, pool.statistics.memory_freed_bytes) == (0, 0)
        pool._maintenance.background_pass()
        assert (pool.statistics.optimizations, pool.statistics.memory_freed_bytes) == (0, 0)
        pool.free(pool.malloc(400 * MiB))
        while not pool.statistics.memory_freed_bytes:
            pool._maintenance.background_pass()
        now = pool.get_statistics()["smartpool_stats"]
        assert now["memory_freed_mb"] == 400
        assert now["optimizations"] >= 1
        before = now["optimizations"]
        assert pool.optimize_memory().memory_freed_mb == 0
        assert pool.statistics.optimizations == before + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_child_neither_measures_nor_hangs():
    pool = SmartPool("cpu", record=True)
    pool.free(pool.malloc(100))
    child = os.fork()
    if not child:
        code = 0
        for ask in (pool.measured_reduction, pool.recording, pool.stop_recording, pool.start_recording):
            try:
                ask()
                code = 1
            except smartpool.PoolClosedError:
                pass
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert pool.stop_recording().events == 2
    pool.close()
