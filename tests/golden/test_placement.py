"""The check of placements finds what it is there for: blocks and mappings as a faulty pool makes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement import PlacementCheck, PlacementError

from smartpool.driver import open_driver
from smartpool.units import MiB

CHUNK = 2 * MiB


class Memory:
    """Eight chunks' worth of addresses, the first three chunks mapped at their beginning."""

    def __init__(self):
        self.driver = open_driver("model:1GiB")
        self.check = PlacementCheck(self.driver)
        self.base = self.driver.reserve(8 * CHUNK)
        self.chunks = [self.driver.create_chunk(CHUNK) for _ in range(3)]
        for place, chunk in enumerate(self.chunks):
            self.driver.map_chunk(self.base + place * CHUNK, chunk)
        self.driver.enable_access(self.base, 3 * CHUNK)

    def alias(self, place, chunk):
        self.driver.map_chunk(self.base + place * CHUNK, chunk)
        self.driver.enable_access(self.base + place * CHUNK, CHUNK)


def test_blocks_side_by_side_are_right_and_may_cross_chunks():
    memory = Memory()
    memory.check.took(memory.base, 3 * MiB)
    memory.check.took(memory.base + 3 * MiB, 3 * MiB)
    assert memory.check.live_blocks == 2
    memory.check.freed(memory.base)
    memory.check.took(memory.base + MiB, MiB)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1), (MiB, MiB), (3 * MiB - 1, 1), (2 * MiB, 2 * MiB)])
def test_blocks_that_share_a_byte_are_found(offset, nbytes):
    memory = Memory()
    memory.check.took(memory.base, 3 * MiB)
    with pytest.raises(PlacementError, match="a live block has bytes"):
        memory.check.took(memory.base + offset, nbytes)


def test_blocks_that_share_a_byte_by_two_addresses_are_found():
    memory = Memory()
    memory.alias(4, memory.chunks[1])
    memory.check.took(memory.base + 3 * MiB, MiB)
    memory.check.took(memory.base + 4 * CHUNK, MiB)  # the half of the chunk that is not taken
    with pytest.raises(PlacementError, match="a live block has bytes"):
        memory.check.took(memory.base + 4 * CHUNK + MiB, 1)


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(3 * CHUNK, 1), (3 * CHUNK - 1, 2), (-1, 1), (7 * CHUNK, 512)]
)
def test_blocks_without_memory_are_found(offset, nbytes):
    memory = Memory()
    with pytest.raises(PlacementError, match="no memory at"):
        memory.check.took(memory.base + offset, nbytes)


def test_memory_that_nobody_may_access_is_found():
    memory = Memory()
    memory.driver.map_chunk(memory.base + 5 * CHUNK, memory.chunks[0])
    with pytest.raises(PlacementError, match="no access"):
        memory.check.took(memory.base + 5 * CHUNK, 512)


def test_unmapping_under_a_live_block_is_found():
    memory = Memory()
    memory.check.took(memory.base + CHUNK + 512, 512)
    with pytest.raises(PlacementError, match="unmapped under a live block"):
        memory.driver.unmap(memory.base + CHUNK, CHUNK)
    memory = Memory()
    memory.check.took(memory.base + CHUNK + 512, 512)
    memory.driver.unmap(memory.base, CHUNK)
    memory.driver.unmap(memory.base + 2 * CHUNK, CHUNK)
    memory.check.freed(memory.base + CHUNK + 512)
    memory.driver.unmap(memory.base + CHUNK, CHUNK)
    with pytest.raises(PlacementError, match="no memory at"):
        memory.check.took(memory.base + CHUNK + 512, 512)


def test_memory_of_the_driver_itself_counts_too():
    memory = Memory()
    address = memory.driver.allocate(4 * MiB)
    memory.check.took(address + MiB, MiB)
    with pytest.raises(PlacementError, match="a live block has bytes"):
        memory.check.took(address + MiB, 512)
    with pytest.raises(PlacementError, match="no memory at"):
        memory.check.took(address + 3 * MiB, 2 * MiB)
    memory.check.freed(address + MiB)
    memory.driver.free(address)


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(1, 30)), max_size=30))
def test_it_agrees_with_a_set_of_bytes(requests):
    """Blocks anywhere in three chunks, of which the second is seen by a second mapping too."""
    memory = Memory()
    memory.alias(3, memory.chunks[1])
    part = CHUNK // 16
    live = set()
    for place, parts in requests:
        cells = [cell if cell < 48 else cell - 32 for cell in range(place, place + parts)]
        if place + parts > 64:
            problem = "no memory at"
        elif live & set(cells) or len(set(cells)) < len(cells):
            problem = "a live block has bytes"
        else:
            live |= set(cells)
            memory.check.took(memory.base + place * part, parts * part)
            continue
        with pytest.raises(PlacementError, match=problem):
            memory.check.took(memory.base + place * part, parts * part)
