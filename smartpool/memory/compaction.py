"""Compaction: which blocks to move so that whole segments become free, and gaps join.

Problem: where memory comes in raw segments, a segment in which one block is live cannot be given
back, and a free range that is split between segments serves no large request. Blocks that may be
moved can be copied together.
Method: first *evacuate*. The segment with fewest live bytes whose blocks all may move is emptied,
if the gaps of the others take all of them, the fullest segment and the largest block first; then
the next one. A segment that took blocks is not emptied itself, so no byte is copied twice. Then *settle*:
in what remains, each block that may move goes to the lowest gap of its segment that is large
enough and lies before it, the last block first. No move overlaps itself, so a copy that fails
leaves the block where it was.
Source: evacuating the emptiest regions first is what region-based collectors do (Detlefs and
others, *Garbage-first garbage collection*, 2004).
Bound: O(b·s·log g) for b blocks that move, s segments and g gaps in each; b <= `MOVES`.
Rejected: sliding all blocks to one end (Lisp 2 compaction): a block moves over itself then, in
pieces, and a failure in the middle leaves it torn; it also copies everything to gain as little as
one segment.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from smartpool.memory.arena import Range

__all__ = ["MOVES", "Move", "Segment", "plan_moves"]

MOVES: Final = 4096
"""The most blocks that one plan moves: about 0.1 s of driver calls."""


class Move(NamedTuple):
    """Copy the `size` bytes of the block at `source` to `target`, the low end of a gap."""

    source: int
    target: int
    size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A range that is given back as a whole.

    Attributes
    ----------
    extent
        Where it is.
    blocks
        What is live in it, by address.
    movable
        The starts of the blocks that may be moved.
    """

    extent: Range
    blocks: tuple[Range, ...]
    movable: frozenset[int]

    @property
    def live_bytes(self) -> int:
        """Bytes in blocks."""
        return sum(block.size for block in self.blocks)

    @property
    def may_be_emptied(self) -> bool:
        """Whether all that is in it may be moved."""
        return all(block.start in self.movable for block in self.blocks)

    def gaps(self) -> list[Range]:
        """Return the free ranges, by address."""
        gaps: list[Range] = []
        start = self.extent.start
        for block in (*self.blocks, Range(self.extent.end, 0)):
            if block.start > start:
                gaps.append(Range(start, block.start - start))
            start = block.end
        return gaps


def plan_moves(segments: Iterable[Segment]) -> list[Move]:
    """Return moves, to be done in order, after which more is free in one piece.

    Segments that take blocks from one another must be in the same arena.

    Examples
    --------
    >>> half = Segment(Range(0, 4096), (Range(0, 1024), Range(2048, 512)), frozenset([2048]))
    >>> few = Segment(Range(8192, 4096), (Range(9216, 1024),), frozenset([9216]))
    >>> plan_moves([half, few])
    [Move(source=9216, target=1024, size=1024)]
    """
    kept, moves = _evacuate([segment for segment in segments if segment.blocks])
    for segment in kept:
        if len(moves) >= MOVES:
            break
        moves.extend(_settle(segment, MOVES - len(moves)))
    return moves


class _Room:
    """What a plan knows of a segment: how full it is, and its gaps."""

    __slots__ = ("gaps", "live_bytes", "segment", "took")

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.live_bytes = segment.live_bytes
        self.gaps = sorted((gap.size, gap.start) for gap in segment.gaps())
        self.took = False

    def take(self, size: int) -> int | None:
        """Return the start of a gap for `size` bytes, by best fit, and lay them there; None: no gap fits."""
        index = bisect_left(self.gaps, (size, 0))
        if index == len(self.gaps):
            return None
        gap, start = self.gaps.pop(index)
        if gap > size:
            insort(self.gaps, (gap - size, start + size))
        self.live_bytes += size
        self.took = True
        return start


def _evacuate(segments: list[Segment]) -> tuple[list[Segment], list[Move]]:
    """Return the segments that took nothing and were not emptied, and the moves."""
    moves: list[Move] = []
    rooms = sorted((_Room(segment) for segment in segments), key=_fullest_first)
    for room in sorted(rooms, key=lambda room: (room.live_bytes, room.segment.extent.start)):
        blocks = room.segment.blocks
        if room.took or not room.segment.may_be_emptied or len(moves) + len(blocks) > MOVES:
            continue
        rooms.remove(room)
        before = [(other, list(other.gaps), other.live_bytes, other.took) for other in rooms]
        planned = _fit_all(blocks, rooms)
        moves += planned
        if planned:
            rooms.sort(key=_fullest_first)
        else:
            for other, gaps, live_bytes, took in before:
                other.gaps, other.live_bytes, other.took = gaps, live_bytes, took
            rooms.append(room)
            rooms.sort(key=_fullest_first)
    return [room.segment for room in rooms if not room.took], moves


def _fullest_first(room: _Room) -> tuple[int, int]:
    return -room.live_bytes, room.segment.extent.start


def _fit_all(blocks: Sequence[Range], rooms: Iterable[_Room]) -> list[Move]:
    """Return a place for each block, in the first of `rooms` that has one; nothing unless all fit."""
    moves: list[Move] = []
    for block in sorted(blocks, key=lambda block: (-block.size, block.start)):
        for room in rooms:
            target = room.take(block.size)
            if target is not None:
                moves.append(Move(block.start, target, block.size))
                break
        else:
            return []
    return moves


def _settle(segment: Segment, most: int) -> list[Move]:
    """Return moves towards the beginning of the segment."""
    moves: list[Move] = []
    gaps = segment.gaps()
    for block in reversed(segment.blocks):
        if len(moves) == most:
            break
        if block.start not in segment.movable:
            continue
        for index, gap in enumerate(gaps):
            if gap.start >= block.start:
                break
            if gap.size >= block.size:
                moves.append(Move(block.start, gap.start, block.size))
                rest = Range(gap.start + block.size, gap.size - block.size)
                gaps[index : index + 1] = [rest] if rest.size else []
                break
    return moves
