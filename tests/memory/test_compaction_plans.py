"""Plans of moves: played on plain ranges, no move overlaps anything, and more is free in one piece."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smartpool.memory.arena import Range
from smartpool.memory.compaction import MOVES, Segment, plan_moves

UNIT = 512


@st.composite
def segments(draw):
    """Return segments of up to 20 units, with blocks and gaps, some of which may move."""
    found = []
    for index in range(draw(st.integers(1, 6))):
        base = index * 100 * UNIT
        length = draw(st.integers(1, 20))
        blocks, at = [], 0
        for size, gap in draw(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), max_size=8)):
            at += gap
            if at + size > length:
                break
            blocks.append(Range(base + at * UNIT, size * UNIT))
            at += size
        movable = frozenset(block.start for block in blocks if draw(st.integers(0, 4)))
        found.append(Segment(Range(base, length * UNIT), tuple(blocks), movable))
    return found


def play(parts, moves):
    """Return the blocks after the moves, having checked each."""
    blocks = {block.start: block.size for part in parts for block in part.blocks}
    movable = {start for part in parts for start in part.movable}
    for source, target, size in moves:
        assert blocks[source] == size
        assert source in movable
        assert any(part.extent.start <= target and target + size <= part.extent.end for part in parts)
        for start, other in blocks.items():  # the old place included: a copy never overlaps itself
            assert target + size <= start or start + other <= target
        del blocks[source]
        movable.remove(source)  # nothing moves twice
        blocks[target] = size
    return blocks


def empty(parts, blocks):
    return sum(not any(part.extent.start <= start < part.extent.end for start in blocks) for part in parts)


@given(segments())
def test_moves_can_be_played_and_leave_more_segments_empty(parts):
    before = {block.start: block.size for part in parts for block in part.blocks}
    after = play(parts, plan_moves(parts))
    assert sorted(after.values()) == sorted(before.values())
    assert empty(parts, after) >= empty(parts, before)
    used = [part for part in parts if part.blocks]
    if any(part.may_be_emptied for part in used):
        least = min((p for p in used if p.may_be_emptied), key=lambda p: (p.live_bytes, p.extent.start))
        others = [gap.size for part in used if part is not least for gap in part.gaps()]
        if len(least.blocks) == 1 and max(others, default=0) >= least.live_bytes:
            assert empty(parts, after) > empty(parts, before)


def test_what_may_not_move_stays_and_is_moved_around():
    part = Segment(
        Range(0, 12 * UNIT),
        (Range(2 * UNIT, 2 * UNIT), Range(6 * UNIT, 2 * UNIT), Range(10 * UNIT, 2 * UNIT)),
        frozenset({10 * UNIT}),
    )
    assert plan_moves([part]) == [(10 * UNIT, 0, 2 * UNIT)]


def test_a_plan_has_an_end():
    full = Segment(Range(0, 1 << 40), (), frozenset())
    blocks = tuple(Range((1 << 41) + 2 * UNIT * index, UNIT) for index in range(MOVES + 1))
    many = Segment(Range(1 << 41, 1 << 40), blocks, frozenset(block.start for block in blocks))
    assert len(plan_moves([full, many])) <= MOVES
