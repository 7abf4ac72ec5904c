"""The memory map: it covers what is held, exactly, and says of each byte what it is."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool import SmartPool, SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import OutOfMemoryError
from smartpool.heap.protocol import Layout
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.pool.bins import Bin
from smartpool.telemetry.memory_map import VERSION, make_map
from smartpool.tiers import tier_of
from smartpool.units import KiB, MiB

CAPACITY = 64 * MiB
SIZES = [0, 100, 70 * KiB, 3 * MiB, 5 * MiB, 9 * MiB]


def proved(pool):
    """Take a map of a quiet pool and check it against everything else that the pool says."""
    shown, now = pool.memory_map(), pool.snapshot()
    ranges, blocks, chunks = shown.ranges, shown.blocks, shown.chunks
    covered = list(zip(ranges.address, ranges.nbytes, strict=True))
    assert all(low + size <= high for (low, size), (high, _) in pairwise(covered))
    assert sum(ranges.nbytes) == sum(chunks.nbytes) == shown.reserved_bytes == now.reserved_bytes
    held = list(zip(chunks.address, chunks.nbytes, strict=True))
    for address, size in covered:  # each lies in chunks all over
        inside = sum(
            max(0, min(address + size, start + length) - max(address, start)) for start, length in held
        )
        assert inside == size
    by_state = dict.fromkeys(("live", "cached", "planned", "free"), 0)
    for state, size in zip(ranges.state, ranges.nbytes, strict=True):
        by_state[state] += size
    assert by_state["live"] == sum(blocks.nbytes) == sum(chunks.used_bytes) == now.block_bytes
    assert by_state["free"] == now.gap_bytes
    assert dict(zip(blocks.address, blocks.requested_bytes, strict=True)) == pool.live_blocks()
    of_block = dict.fromkeys(blocks.address, 0)
    for owner, size, state in zip(ranges.block, ranges.nbytes, ranges.state, strict=True):
        if state == "live":
            of_block[owner] += size
    assert of_block == dict(zip(blocks.address, blocks.nbytes, strict=True))
    assert blocks.address == sorted(blocks.address)
    assert all(used <= size for used, size in zip(chunks.used_bytes, chunks.nbytes, strict=True))
    assert json.loads(json.dumps(shown.as_dict()))["version"] == VERSION
    return shown


@settings(max_examples=25)
@given(
    st.sampled_from(["balanced", "tight", "fast"]),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["malloc", "free", "trim", "flush"]), st.integers(0, 99)), max_size=60
    ),
)
def test_the_map_covers_what_is_held(policy, virtual, actions):
    driver = ModelDriver(CAPACITY)
    if not virtual:
        driver.granularity = 0
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(policy=policy))
    live = []
    for action, number in actions:
        if action == "malloc":
            with suppress(OutOfMemoryError):
                live.append(pool.malloc(SIZES[number % len(SIZES)]))
        elif action == "free" and live:
            pool.free(live.pop(number % len(live)))
        elif action == "trim":
            pool.trim()
        elif action == "flush":
            pool.flush()
    proved(pool)


def test_a_block_in_a_window_has_a_range_for_each_piece():
    driver = ModelDriver(CAPACITY)
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(policy="tight"))
    blocks = [pool.malloc(4 * MiB) for _ in range(16)]
    for block in blocks[::2]:
        pool.free(block)
    window = pool.malloc(20 * MiB)
    shown = proved(pool)
    pieces = [
        size for owner, size in zip(shown.ranges.block, shown.ranges.nbytes, strict=True) if owner == window
    ]
    assert len(pieces) == 5
    assert sum(pieces) == 20 * MiB


def test_a_region_in_a_window_is_cut_where_its_slots_and_its_pieces_end():
    """Pieces at home, slots at the addresses of the window: each byte is in one range of the right kind."""
    slot = Bin(600, 1024, 0, tier_of(600), set())
    layout = Layout(
        blocks={0: 1024, 8192: 2048, 16384: 512},
        gaps={1024: 1024},
        chunks={0: 2048, 8192: 2048, 16384: 512},
        shown={0: (1 << 20, 0), 8192: (1 << 20, 1024)},
    )
    shown = make_map(
        layout, {(1 << 20) + 512: slot, 16384: slot}, regions=[(1 << 20, 3072)], labels={},
        device="d", granularity_bytes=512, reserved_bytes=4608, cap_bytes=1 << 30,
    )  # fmt: skip
    ranges = shown.ranges
    assert list(zip(ranges.address, ranges.nbytes, ranges.state, ranges.block, strict=True)) == [
        (0, 512, "planned", 1 << 20),
        (512, 512, "live", (1 << 20) + 512),
        (1024, 1024, "free", 0),
        (8192, 512, "live", (1 << 20) + 512),
        (8704, 1536, "planned", 1 << 20),
        (16384, 512, "live", 16384),
    ]
    assert shown.chunks.used_bytes == [512, 512, 512]


def test_regions_of_steps_are_planned_where_no_slot_is_live():
    with SmartPool("model:1GiB") as pool:
        for _ in range(3):
            with pool.step(wait_for_plan=True):
                first, second = pool.malloc(3 * MiB), pool.malloc(5 * MiB)
                shown = proved(pool.managers[0])
                pool.free(first)
                half = proved(pool.managers[0])
                pool.free(second)
        assert "planned" not in shown.ranges.state
        assert half.ranges.state.count("planned") == 1
        assert proved(pool.managers[0]).ranges.state.count("live") == 0


@pytest.mark.parametrize("virtual", [True, False])
def test_without_pooling_each_block_is_a_chunk(virtual):
    driver = ModelDriver(CAPACITY)
    if not virtual:
        driver.granularity = 0
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(enable_advanced_pooling=False))
    held = [pool.malloc_aligned(3 * MiB, 1 << 20), pool.malloc(100)]
    shown = pool.memory_map()
    assert shown.ranges.state == ["live", "live"]
    assert set(shown.blocks.address) == set(held)
    assert sum(shown.chunks.nbytes) == shown.reserved_bytes


def test_maps_while_threads_run():
    with SmartPool("model:1GiB") as pool:
        stop, failures = threading.Event(), []

        def work(seed):
            random, live = Random(seed), []
            try:
                while not stop.is_set():
                    live.append(pool.malloc(random.choice(SIZES)))
                    if len(live) > 20:
                        pool.free(live.pop(random.randrange(20)))
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            shown = pool.memory_map()
            assert sum(shown.ranges.nbytes) == sum(shown.chunks.nbytes) == shown.reserved_bytes
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        proved(pool.managers[0])
