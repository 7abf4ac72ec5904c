"""Stitching: what is chosen is free, whole where it must be, and enough, and nothing is created in vain."""

from __future__ import annotations

from random import Random

import pytest

from smartpool.containers.range_map import Range, RangeMap
from smartpool.heap.arena import Arena
from smartpool.heap.stitch import choose_pieces
from smartpool.units import MiB

UNIT = 512
GRANULARITY = 8 * UNIT


def random_memory(seed):
    """Return an arena over random chunks with random live blocks, and the chunks."""
    random = Random(seed)
    arena, chunks, address = Arena(), RangeMap(), 0
    for _ in range(random.randrange(1, 12)):
        address += random.choice([0, 0, GRANULARITY])
        size = GRANULARITY * random.randrange(1, 4)
        chunks.add(Range(address, size))
        arena.extend(address, size)
        address += size
    blocks = []
    while (block := arena.allocate(UNIT * random.randrange(1, 12))) is not None:
        blocks.append(block)
    for block in random.sample(blocks, int(len(blocks) * random.random())):
        arena.free(block)
    return arena, chunks, random


@pytest.mark.parametrize("edge_start", [True, False])
@pytest.mark.parametrize("price", [0.0, 4.0])
def test_every_choice_makes_a_window(edge_start, price):
    for seed in range(400):
        arena, chunks, random = random_memory(seed)
        size = UNIT * random.randrange(1, 120)
        stitching = choose_pieces(
            size,
            arena.gaps_by_size(),
            chunks,
            budget_bytes=random.choice([0, GRANULARITY, 100 * GRANULARITY]),
            granularity=GRANULARITY,
            edge_price=price,
            edge_start=edge_start,
        )
        pieces = [*stitching.before, *stitching.after]
        surplus = stitching.size - size
        assert stitching.create_bytes % GRANULARITY == 0
        assert surplus >= 0
        if stitching.create_bytes and not stitching.after:
            assert surplus < stitching.create_bytes  # what is too much is new memory behind the block
        else:
            assert surplus == 0
        for first, second in zip(sorted(pieces), sorted(pieces)[1:], strict=False):
            assert first.end <= second.start
        for piece in pieces:  # free
            assert any(gap.start <= piece.start and piece.end <= gap.end for gap in arena.gaps())
        sequence = [*stitching.before, *([None] if stitching.create_bytes else []), *stitching.after]
        for place, piece in enumerate(sequence):  # contiguous once their chunks are mapped side by side
            if piece is None:
                continue
            under = chunks.touching(piece.start, piece.end)
            if place or not edge_start:
                assert under[0].start == piece.start
            if place < len(sequence) - 1:
                assert under[-1].end == piece.end
        idle = sum(chunk.size for gap in arena.gaps() for chunk in chunks.inside(gap.start, gap.end))
        assert stitching.create_bytes <= max(0, size - idle) + GRANULARITY  # never more than is missing


def test_nothing_free_means_everything_new():
    stitching = choose_pieces(5 * MiB, [], RangeMap(), budget_bytes=0, granularity=2 * MiB, edge_price=4.0)
    assert (stitching.before, stitching.create_bytes, stitching.after) == ((), 6 * MiB, ())
