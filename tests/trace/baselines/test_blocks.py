from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import InvariantError
from smartpool.trace.baselines.blocks import Block, FreeBlocks, Segment, split


def blocks_of(sizes, home):
    segment = Segment(pointer=1 << 40, start=0, size=sum(sizes))
    block, made = Block(0, segment.size, segment, home), []
    for size in sizes[:-1]:
        made.append(block)
        block = split(block, size)
    return [*made, block]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 7))
def test_best_is_the_smallest_that_fits_at_the_lowest_address(sizes, wanted):
    free = FreeBlocks()
    blocks = blocks_of(sizes, free)
    for block in blocks[::-1]:
        free.add(block)
    free.check()
    fitting = sorted((block.size, block.address) for block in blocks if block.size >= wanted)
    best = free.best(wanted)
    assert (best and (best.size, best.address)) == (fitting[0] if fitting else None)
    assert [block.size for block in free] == sorted(sizes)
    if best is not None:
        assert [(block.size, block.address) for block in free.after(best)] == fitting[1:]


def test_split_and_absorb_undo_each_other():
    free = FreeBlocks()
    first, second, third = blocks_of([3, 4, 5], free)
    assert (second.previous, second.following) == (first, third)
    first.absorb_following()
    assert (first.size, first.following, third.previous) == (7, third, first)
    first.absorb_following()
    assert first.is_whole
    assert first.size == 12


def test_check_finds_a_block_that_changed_behind_the_index():
    free = FreeBlocks()
    block, _ = blocks_of([3, 4], free)
    free.add(block)
    block.size = 2
    with pytest.raises(InvariantError):
        free.check()
