"""Windows: real bytes through second mappings, and when the mappings may go."""

from __future__ import annotations

from itertools import accumulate, pairwise
from random import Random

import pytest

from smartpool.config import SmartPoolConfig
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import InvariantError, OutOfMemoryError
from smartpool.heap.windows import cut
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import KiB, MiB

CAPACITY = 32 * MiB


def open_pool(driver, **config):
    return AdvancedMemoryPoolManager(driver, SmartPoolConfig(**config))


def write(driver, pointer, nbytes, seed):
    data = Random(seed).randbytes(4096)
    driver.write(pointer, (data * (nbytes // 4096 + 1))[:nbytes])


def verify(driver, pointer, nbytes, seed):
    data = Random(seed).randbytes(4096)
    assert driver.read(pointer, nbytes) == (data * (nbytes // 4096 + 1))[:nbytes]


def fragmented(pool, size, count):
    """Return every second of `count` blocks, with the others freed."""
    blocks = [pool.malloc(size) for _ in range(count)]
    for block in blocks[::2]:
        pool.free(block)
    return blocks[1::2]


@pytest.mark.parametrize("policy", ["balanced", "tight", "fast"])
@pytest.mark.parametrize("seed", range(3))
def test_contents_stay_intact_however_memory_is_stitched(policy, seed):
    driver = CpuDriver(capacity=CAPACITY)
    pool = open_pool(driver, policy=policy)
    random, live, windows = Random(seed), {}, 0
    for step in range(120):
        used = sum(size for size, _ in live.values())
        nbytes = random.choice([3 * KiB, 700 * KiB, 1 * MiB + 512, 3 * MiB, 5 * MiB + 1536, 9 * MiB])
        if used + nbytes < 28 * MiB and random.random() < 0.65:
            try:
                pointer = pool.malloc(nbytes)
            except OutOfMemoryError:
                continue
            live[pointer] = nbytes, step
            write(driver, pointer, nbytes, step)
            windows = max(windows, len(pool.slow_path.heap.windows))
        elif live:
            pointer = random.choice(sorted(live))
            nbytes, written = live.pop(pointer)
            verify(driver, pointer, nbytes, written)
            pool.free(pointer)
        if step % 40 == 39:
            pool.trim()
            pool.check()
    assert windows
    for pointer, (nbytes, written) in live.items():
        verify(driver, pointer, nbytes, written)
        pool.free(pointer)
    pool.trim(wait=True)
    assert pool.reserved_bytes == 0
    pool.close()
    assert not any(driver.held().values())


def test_one_chunk_may_be_at_both_ends_of_a_window():
    """Its free end first, its free beginning last, and what is live in its middle in neither."""
    driver = CpuDriver(capacity=2 * MiB)
    pool = open_pool(driver, policy="tight")
    head, middle, tail = pool.malloc(768 * KiB), pool.malloc(512 * KiB), pool.malloc(768 * KiB)
    write(driver, middle, 512 * KiB, 1)
    pool.free(head)
    pool.free(tail)
    both = pool.malloc(1536 * KiB)
    assert both not in (head, tail)
    assert len(pool.slow_path.heap.windows) == 1
    write(driver, both, 1536 * KiB, 2)
    verify(driver, middle, 512 * KiB, 1)
    verify(driver, both, 1536 * KiB, 2)
    pool.check()
    pool.free(middle)
    pool.free(both)
    pool.free(pool.malloc(2 * MiB))


def test_a_kept_window_of_both_ends_of_a_chunk_shows_no_byte_twice():
    """A larger block, after all of the chunk was free, may have as much of it as the window shows once."""
    pool = open_pool(ModelDriver(4 * MiB), policy="tight")
    other = pool.malloc(2 * MiB)
    head, middle, tail = pool.malloc(768 * KiB), pool.malloc(512 * KiB), pool.malloc(768 * KiB)
    pool.free(head)
    pool.free(tail)
    pool.free(pool.malloc(1536 * KiB))
    pool.free(middle)
    with pytest.raises(OutOfMemoryError):
        pool.malloc(2 * MiB + 512 * KiB)
    pool.check()
    pool.free(pool.malloc(2 * MiB))
    pool.free(other)


@pytest.mark.parametrize("shift", [12, 20, 21, 22, 23, 24])
def test_aligned_blocks_are_stitched_too(shift):
    driver = CpuDriver(capacity=CAPACITY)
    pool = open_pool(driver)
    held = fragmented(pool, 4 * MiB, 8)
    for number, block in enumerate(held):
        write(driver, block, 4 * MiB, number)
    block = pool.malloc_aligned(12 * MiB, 1 << shift)
    assert block % (1 << shift) == 0
    write(driver, block, 12 * MiB, 99)
    for number, other in enumerate(held):
        verify(driver, other, 4 * MiB, number)
    verify(driver, block, 12 * MiB, 99)
    pool.check()


def test_an_aligned_request_needs_no_more_than_its_size():
    pool = open_pool(ModelDriver(64 * MiB))
    assert pool.malloc_aligned(40 * MiB, 32 * MiB) % (32 * MiB) == 0
    assert pool.malloc_aligned(24 * MiB, 8 * MiB) % (8 * MiB) == 0
    pool.check()


@pytest.mark.parametrize("second_stream", [None, "before the free", "after the free"])
def test_a_retired_window_stays_mapped_under_running_work(second_stream):
    """Also when nobody knew of a second stream when its block was freed."""
    driver = ModelDriver(CAPACITY)
    pool = open_pool(driver)
    stream = driver.create_stream()
    fragmented(pool, 2 * MiB, 16)
    if second_stream == "before the free":
        pool.free(pool.malloc(100, stream))
    window = pool.malloc(16 * MiB - 512)
    assert len(pool.slow_path.heap.windows) == 1
    driver.pause(0)
    driver.fill(window, 1, 16 * MiB - 512, 0)
    pool.free(window)
    pool.flush()
    if second_stream == "after the free":
        pool.malloc(100, stream)
    pool.trim()
    pool.check()
    driver.resume(0)
    assert driver.faults.lost is None
    assert pool.trim() > 0


def test_retired_windows_are_reaped_before_there_are_too_many():
    driver = ModelDriver(CAPACITY)
    pool = open_pool(driver)
    pool.slow_path.heap.windows.most_kept = 20
    fragmented(pool, 2 * MiB, 16)
    for step in range(50):
        pool.free(pool.malloc(14 * MiB + 512 * step))
        pool.flush()
    assert driver.held()["mappings"] <= 16 + 20 + 16
    pool.check()


def test_a_window_whose_pieces_are_free_again_is_taken_without_a_driver_call():
    driver = CpuDriver(capacity=CAPACITY)
    pool = open_pool(driver)
    held = fragmented(pool, 2 * MiB, 16)
    window = pool.malloc(12 * MiB)
    assert len(pool.slow_path.heap.windows) == 1
    for size in (12 * MiB, 12 * MiB - 512, 7 * MiB):
        pool.free(window)
        pool.flush()
        calls = driver.calls.copy()
        assert pool.malloc(size) == window
        assert driver.calls == calls
        write(driver, window, size, size % 251)
        verify(driver, window, size, size % 251)
        pool.check()
    for number, other in enumerate(held):
        write(driver, other, 2 * MiB, number)
    verify(driver, window, 7 * MiB, 7 * MiB % 251)


def test_a_window_is_not_taken_while_one_of_its_pieces_is():
    driver = CpuDriver(capacity=2 * CAPACITY)
    pool = open_pool(driver)
    fragmented(pool, 2 * MiB, 16)
    window = pool.malloc(16 * MiB)
    pool.free(window)
    pool.flush()
    piece = pool.malloc(2 * MiB)
    other = pool.malloc(16 * MiB)
    assert other != window
    write(driver, piece, 2 * MiB, 1)
    write(driver, other, 16 * MiB, 2)
    verify(driver, piece, 2 * MiB, 1)
    pool.check()


@pytest.mark.parametrize("seed", range(6))
def test_the_kept_window_that_is_found_is_the_smallest_that_is_free(seed):
    """Whatever stood in the way of earlier requests, of other sizes."""
    random = Random(seed)
    pool = open_pool(ModelDriver(4 * CAPACITY), policy="tight")
    live = fragmented(pool, 2 * MiB, 32)
    heap, found = pool.slow_path.heap, 0
    windows = heap.windows
    for _ in range(150):
        size = random.randrange(1, 40) * MiB // 2
        if random.random() < 0.3 and live:
            pool.free(live.pop(random.randrange(len(live))))
        elif sum(map(pool.live_blocks().get, live)) + size < 100 * MiB:
            live.append(pool.malloc(size))
        pool.flush()
        wanted = random.randrange(1, 60) * MiB // 2
        rooms = sorted(
            (w.room, at) for at, (w, _) in windows._retired.items() if w.shown and w.room >= wanted
        )
        free = [
            at
            for _, at in rooms
            if all(map(heap._home.is_free, cut(windows._retired[at][0].shown, [wanted])[0]))
        ]
        window = windows.find(wanted, 512, heap._home.is_free)
        assert (window and window.mapped.start) == next(iter(free), None)
        found += window is not None
    assert found
    pool.check()


def test_memory_under_kept_windows_is_given_back():
    driver = ModelDriver(CAPACITY)
    pool = open_pool(driver)
    held = fragmented(pool, 2 * MiB, 16)
    pool.free(pool.malloc(16 * MiB))
    for block in held:
        pool.free(block)
    pool.trim()
    assert driver.held()["mappings"] == 0
    pool.check()


def test_a_block_in_a_larger_window_keeps_the_chunks_under_it_alone():
    driver = CpuDriver(capacity=2 * CAPACITY)
    pool = open_pool(driver, policy="tight")
    held = fragmented(pool, 2 * MiB, 16)
    window = pool.malloc(16 * MiB)
    pool.free(window)
    pool.flush()
    assert pool.malloc(3 * MiB) == window
    write(driver, window, 3 * MiB, 1)
    for block in held:
        pool.free(block)
    pool.trim(wait=True)
    assert pool.reserved_bytes == 4 * MiB
    pool.check()
    verify(driver, window, 3 * MiB, 1)
    other = pool.malloc(24 * MiB)
    write(driver, other, 24 * MiB, 2)
    verify(driver, window, 3 * MiB, 1)
    with pool.working():
        pool.slow_path.heap.split(window, [MiB, 2 * MiB])
        for part, nbytes in ((window, MiB), (window + MiB, 2 * MiB)):
            pool.slow_path.heap.free_all([[part]], nbytes, None)
    dict.pop(pool.slow_path.live, window)
    again = pool.malloc(16 * MiB)  # the window has no memory for it any more
    assert again != window
    write(driver, again, 16 * MiB, 3)
    verify(driver, other, 24 * MiB, 2)
    pool.free(again)
    pool.free(other)
    pool.trim(wait=True)
    assert (pool.reserved_bytes, driver.held()["mappings"]) == (0, 0)
    pool.check()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [300, 20 * KiB, 2 * MiB, 11 * MiB])
def test_a_block_is_split_and_ends_in_parts(size, seed):
    """In a slab, at home and in a window: what is left keeps its bytes, and the rest is anybody's."""
    random, driver = Random(seed), CpuDriver(capacity=CAPACITY)
    pool = open_pool(driver, policy="tight")
    held = fragmented(pool, 2 * MiB, 12)
    heap, units = pool.slow_path.heap, -(-size // 512)
    with pool.working():
        pool.slow_path.flush()
        address = heap.place_idle(units * 512, 512, 0)
        cuts = sorted(random.sample(range(1, units), min(units - 1, 5))) if units > 1 else []
        sizes = [512 * (after - before) for before, after in pairwise((0, *cuts, units))]
        heap.split(address, sizes)
        heap.check()
    parts = dict(zip(accumulate((address, *sizes[:-1])), sizes, strict=True))
    for part, nbytes in parts.items():
        write(driver, part, nbytes, part)
    while parts:
        part = random.choice(sorted(parts))
        verify(driver, part, parts[part], part)
        with pool.working():
            assert heap.block_size(part) == parts[part]
            heap.free_all([[part]], parts.pop(part), None)
            heap.check()
        other = pool.malloc(random.choice([700, 1 * MiB, 3 * MiB]))
        write(driver, other, 700, 0)
        pool.free(other)
        if random.random() < 0.5:
            pool.trim(wait=True)
    for block in held:
        pool.free(block)
    pool.trim(wait=True)
    assert (pool.reserved_bytes, driver.held()["mappings"]) == (0, 0)


def test_what_is_free_is_enough_or_nothing_is_made():
    driver = ModelDriver(CAPACITY)
    pool = open_pool(driver, policy="tight")
    fragmented(pool, 2 * MiB, 12)
    pool.flush()
    calls = driver.calls.copy()
    with pool.working():
        assert pool.slow_path.heap.place_idle(12 * MiB + 512, 512, 0) is None
        assert driver.calls == calls
        room, rest = pool.slow_path.room_bytes()
        assert (room, rest) == (12 * MiB, 0)
        address = pool.slow_path.heap.place_idle(12 * MiB, 512, 0)
        assert driver.calls["create_chunk"] == calls["create_chunk"]
        pool.slow_path.heap.free_all([[address]], 12 * MiB, None)
    pool.check()


def test_work_of_another_stream_waits_for_the_pieces():
    driver = CpuDriver(capacity=CAPACITY)
    pool = open_pool(driver)
    stream = driver.create_stream()
    blocks = [pool.malloc(2 * MiB) for _ in range(16)]
    driver.pause(0)
    for block in blocks[::2]:
        driver.fill(block, 1, 2 * MiB, 0)
        pool.free(block)
    window = pool.malloc(16 * MiB, stream)
    driver.fill(window, 2, 16 * MiB, stream)
    driver.resume(0)
    assert driver.read(window, 16 * MiB) == b"\2" * (16 * MiB)


def test_check_finds_a_lost_mapping():
    pool = open_pool(ModelDriver(CAPACITY))
    fragmented(pool, 2 * MiB, 16)
    window = pool.malloc(16 * MiB)
    del pool.slow_path.heap.windows._open[window]
    with pytest.raises(InvariantError):
        pool.check()
    pool.disown()  # its books are damaged: nothing is to be given back by them
