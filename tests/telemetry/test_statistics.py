"""Snapshots: the equations between their figures, on quiet pools and while threads run."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import OutOfMemoryError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.smart_pool import SmartPool
from smartpool.telemetry.statistics import OptimizationOutcome, Reduction
from smartpool.units import KiB, MiB

CAPACITY = 64 * MiB


def proved(now):
    """Check what must hold of every snapshot that was taken while nobody was at work."""
    assert now.live_bytes <= now.block_bytes
    assert now.block_bytes + now.cached_bytes + now.gap_bytes == now.reserved_bytes
    assert now.reserved_bytes <= now.peak_reserved_bytes <= now.cap_bytes
    assert now.live_bytes <= now.peak_live_bytes <= now.peak_reserved_bytes
    assert now.largest_free_bytes <= now.gap_bytes
    assert now.device_free_bytes <= now.device_total_bytes
    tiers = now.tiers.values()
    assert sum(tier.live_blocks for tier in tiers) == now.live_blocks
    assert sum(tier.live_bytes for tier in tiers) == now.live_bytes
    assert sum(tier.cached_bytes for tier in tiers) == now.cached_bytes
    for part in (*now.fragmentation.as_dict().values(), now.pressure):
        assert 0 <= part <= 1
    json.dumps(now.as_dict())
    return now


@pytest.mark.parametrize("policy", ["balanced", "tight", "fast"])
@pytest.mark.parametrize("seed", range(3))
def test_the_figures_add_up(policy, seed):
    driver = ModelDriver(CAPACITY)
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(policy=policy))
    streams = [None, 0, driver.create_stream()]
    random, live = Random(seed), []
    for _ in range(150):
        choice = random.random()
        if choice < 0.55:
            nbytes = random.choice([0, 100, 70 * KiB, 3 * MiB, 9 * MiB])
            with suppress(OutOfMemoryError):
                live.append(pool.malloc(nbytes, random.choice(streams)))
        elif live:
            pointer = live.pop(random.randrange(len(live)))
            if choice > 0.9:
                pool.record_stream(pointer, streams[2])
            pool.free(pointer)
        if choice < 0.1:
            pool.trim()
        proved(pool.snapshot())


def test_a_refused_request_leaves_no_trace_in_the_peaks():
    pool = AdvancedMemoryPoolManager(ModelDriver(CAPACITY))
    pool.malloc(40 * MiB)
    with pytest.raises(OutOfMemoryError):
        pool.malloc(50 * MiB)
    assert pool.snapshot().peak_live_bytes == 40 * MiB
    assert pool.slow_path.heap.peak_live_bytes == 40 * MiB  # what growing is measured by


def test_a_limit_that_is_no_whole_number_of_chunks():
    pool = AdvancedMemoryPoolManager(ModelDriver(CAPACITY), SmartPoolConfig(max_bytes=5 * MiB + 1))
    assert pool.snapshot().cap_bytes == 4 * MiB
    pool.free(pool.malloc(4 * MiB))
    with pytest.raises(OutOfMemoryError, match="Tried to allocate"):
        pool.malloc(4 * MiB + 1)


def test_a_device_that_others_have_filled():
    driver = ModelDriver(CAPACITY)
    pool = AdvancedMemoryPoolManager(driver)
    others = driver.allocate(50 * MiB)
    blocks = [pool.malloc(3 * MiB) for _ in range(4)]
    for block in blocks[::2]:
        pool.free(block)
    pool.malloc(6 * MiB)  # stitched: the device has nothing left
    with pytest.raises(OutOfMemoryError, match="free on the device"):
        pool.malloc(5 * MiB)
    assert proved(pool.snapshot()).pressure > 0.9
    driver.free(others)
    pool.malloc(40 * MiB)
    pool.check()


def test_snapshots_while_threads_run():
    with SmartPool("model:1GiB") as pool:
        failures = []

        def work(seed):
            random, live = Random(seed), []
            try:
                for _ in range(1500):
                    live.append(pool.malloc(random.choice([512, 5000, 70_000, 2 * MiB])))
                    if len(live) > 20:
                        pool.free(live.pop(random.randrange(20)))
                for pointer in live:
                    pool.free(pointer)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            now = pool.get_statistics()["smartpool_stats"]
            assert 0 <= now["current_fragmentation"] <= 1
            assert 0 <= now["live_bytes"] <= 1 << 30
        for thread in threads:
            thread.join()
        assert not failures
        proved(pool.statistics.devices[0])


def test_statistics_of_a_closed_pool():
    for device in ("model:1GiB", "cpu"):
        pool = SmartPool(device)
        pool.free(pool.malloc(5000))
        pool.close()
        now = pool.get_statistics()
        assert now["smartpool_stats"]["reserved_bytes"] == 0
        assert not now["background"]["running"]


@given(st.floats(0, 1), st.floats(0, 1))
def test_reductions_are_relative_and_never_divide_by_zero(ours, baseline):
    reduction = Reduction(events=1, fragmentation=ours, baseline_fragmentation=baseline)
    if baseline:
        assert reduction.percentage == 100 * (1 - ours / baseline)
    else:
        assert reduction.percentage == (0.0 if not ours else -100.0)


def test_outcomes():
    outcome = OptimizationOutcome(
        devices=("cpu",), fragmentation_before=0.5, fragmentation_after=0.25, memory_freed_bytes=3 * MiB
    )
    assert (outcome.fragmentation_reduced, outcome.memory_freed_mb) == (0.25, 3.0)
