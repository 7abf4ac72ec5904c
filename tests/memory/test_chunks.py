"""The chunk map against a plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import InvariantError
from smartpool.memory.chunks import ChunkMap, MappedChunk


@st.composite
def layouts(draw):
    """Return chunks that do not overlap, in any order, and which of them are removed again."""
    chunks, address = [], 0
    for handle, (hole, size) in enumerate(
        draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=20))
    ):
        chunks.append(MappedChunk(address + hole, size, handle))
        address += hole + size
    order = draw(st.permutations(chunks))
    return order, draw(st.sets(st.sampled_from(order))) if order else set()


@given(layouts(), st.integers(-1, 90), st.integers(0, 30))
def test_questions_agree_with_a_list(layout, start, length):
    order, removed = layout
    chunks = ChunkMap()
    for chunk in order:
        chunks.add(chunk)
    for chunk in removed:
        assert chunks.remove(chunk.start) is chunk
    chunks.check()
    model = sorted((chunk for chunk in order if chunk not in removed), key=lambda chunk: chunk.start)
    end = start + length
    assert list(chunks) == model
    assert len(chunks) == len(model)
    assert chunks.mapped_bytes == sum(chunk.size for chunk in model)
    assert chunks.at(start) == next((c for c in model if c.start <= start < c.end), None)
    assert list(chunks.inside(start, end)) == [c for c in model if start <= c.start and c.end <= end]
    if length:
        assert chunks.covering(start, end) == [c for c in model if c.start < end and c.end > start]


def test_removing_what_is_not_there_changes_nothing():
    chunks = ChunkMap()
    chunks.add(MappedChunk(0, 4, 1))
    with pytest.raises(KeyError):
        chunks.remove(2)
    chunks.check()
    assert len(chunks) == 1


def test_check_finds_overlap_and_wrong_totals():
    chunks = ChunkMap()
    chunks.add(MappedChunk(0, 4, 1))
    chunks.add(MappedChunk(3, 4, 2))
    with pytest.raises(InvariantError, match="overlap"):
        chunks.check()
    chunks.remove(3)
    chunks.mapped_bytes += 1
    with pytest.raises(InvariantError, match="mapped bytes"):
        chunks.check()
