"""Stitching: which free ranges to show side by side at fresh addresses, so that one block fits.

Problem: a request fits no gap, though the gaps together hold enough. A chunk can be mapped at a
second address, but only as a whole; so choose pieces of gaps that make a contiguous *window* when
their chunks are mapped one behind the other, with few chunks (each costs about 32 us) and leaving
few useless remains.
Method: a window is ``[left edge] [whole chunks] [new chunks] [right edge]``. A left edge is the
free end of a chunk whose beginning is live; a right edge is the free beginning of a chunk whose
end is live; each window has room for one of each, and whole idle chunks fill the middle, the
largest first, then the smallest that covers the rest. With and without the largest edge on each
side, the cheapest choice wins: bytes to be created beyond the budget first, then calls, with a bonus
for bytes on edges, because nothing else than a window can use them. Using edges is what brings
fragmentation down: it is the difference between "a chunk is idle or not" and bytes.
Source: ours; windows of whole chunks are GMLake's stitching (Guo and others, ASPLOS 2024).
Bound: O(g log g) for the g largest gaps looked at, g <= `GAPS`; not optimal (covering with fewest
chunks is subset sum), but never more than one chunk above what the edges chosen need.
Windows made earlier are asked first, by `smartpool.heap.windows`.
Rejected: exact covers (the remains they avoid are reused anyway), the three largest edges a side (no
fragmentation less, and four times the time), more than one partial chunk on a side (impossible: the
live part of the second would lie inside the block).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Final

from smartpool.containers.range_map import HasRange, Item, Range, RangeMap
from smartpool.units import MiB, align_up

__all__ = ["Stitching", "choose_pieces", "largest_window"]

GAPS: Final = 1024
_by_start = attrgetter("start")
_by_size = attrgetter("size")


@dataclass(frozen=True, slots=True)
class Stitching:
    """A window for one block.

    Attributes
    ----------
    block_bytes
        Bytes of the block.
    before
        Pieces that come first, in order.
    create_bytes
        New memory that comes next; a multiple of the granularity.
    after
        The right edge, or nothing.
    """

    block_bytes: int
    before: tuple[Range, ...]
    create_bytes: int
    after: tuple[Range, ...]

    @property
    def size(self) -> int:
        """Bytes of the window."""
        return sum(piece.size for piece in self.before + self.after) + self.create_bytes


@dataclass(slots=True)
class _Parts:
    """What the gaps offer: the largest edges, and whole chunks, largest first."""

    left: Range | None
    right: Range | None
    whole: list[HasRange]


def choose_pieces(
    size: int,
    gaps: Iterable[Range],
    chunks: RangeMap[Item],
    *,
    budget_bytes: int,
    granularity: int,
    edge_price: float = 4.0,
    show_price: float = 32.0,
    create_price: float = 45.0,
    edge_start: bool = True,
) -> Stitching:
    """Return pieces of `gaps` that together hold `size` bytes, with what must be created beside them.

    Parameters
    ----------
    size
        Bytes of the block, a multiple of 512.
    gaps
        Free ranges, largest first.
    chunks
        The chunks mapped under them.
    budget_bytes
        What may be created before it counts as a waste, at least 0.
    granularity
        What is created is a multiple of it.
    edge_price
        Microseconds a MiB that using up an edge is worth.
    show_price, create_price
        Microseconds for showing a chunk a second time, and for a new one.
    edge_start
        Whether the window may begin in the middle of a chunk: not for blocks of large alignment.
    """
    parts = _parts(islice(gaps, GAPS), chunks)
    idle = sum([chunk.size for chunk in parts.whole])
    best: tuple[float, float] | None = None
    chosen: tuple[Range | None, list[HasRange], int, Range | None] = (None, [], 0, None)
    for left in (parts.left, None) if parts.left and edge_start else (None,):
        for right in (parts.right, None) if parts.right else (None,):
            edges = (left.size if left else 0) + (right.size if right else 0)
            rest = size - edges
            if rest < 0:
                continue  # one of them will do
            create = align_up(max(0, rest - idle), granularity)
            middle, surplus = _cover(parts.whole, rest - create)
            calls = len(middle) + (left is not None) + (right is not None)
            price = show_price * calls + (create_price if create else 0)
            key = (max(0, create - budget_bytes), price - edge_price * max(0, edges - surplus) / MiB)
            if best is None or key < best:
                best, chosen = key, (left, middle, create, right)
    left, middle, create, right = chosen
    pieces = sorted([Range(chunk.start, chunk.size) for chunk in middle])
    before = (left, *pieces) if left else tuple(pieces)
    return _trimmed(Stitching(size, before, create, (right,) if right else ()))


def largest_window(gaps: Iterable[Range], chunks: RangeMap[Item]) -> int:
    """Return the bytes of the largest window that `gaps` make up, of which two edges are part."""
    parts = _parts(islice(gaps, GAPS), chunks)
    edges = [edge.size for edge in (parts.left, parts.right) if edge]
    return sum(edges) + sum([chunk.size for chunk in parts.whole])


def _parts(gaps: Iterable[Range], chunks: RangeMap[Item]) -> _Parts:
    left = right = None
    whole: list[HasRange] = []
    for start, size in gaps:
        end = start + size
        under = chunks.touching(start, end)
        first, last = under[0], under[-1]
        low, high = 0, len(under)
        if first.start < start:
            low = 1
            edge = first.start + first.size
            if edge <= end and (left is None or edge - start > left.size):
                left = Range(start, edge - start)
        if last.start + last.size > end:
            high -= 1
            if last.start >= start and (right is None or end - last.start > right.size):
                right = Range(last.start, end - last.start)
        if low < high:
            whole += under[low:high]
    whole.sort(key=_by_start)
    whole.sort(key=_by_size, reverse=True)  # stable: by address among equals
    return _Parts(left, right, whole)


def _cover(whole: list[HasRange], need: int) -> tuple[list[HasRange], int]:
    """Return chunks out of `whole` (largest first) that hold `need` bytes, and how many bytes more."""
    chosen: list[HasRange] = []
    skipped: HasRange | None = None
    for chunk in whole:
        if need <= 0:
            break
        size = chunk.size
        if size > need:
            skipped = chunk  # the smallest so far that covers the rest alone
            continue
        chosen.append(chunk)
        need -= size
    if need > 0 and skipped is not None:
        chosen.append(skipped)
        need -= skipped.size
    return chosen, -need


def _trimmed(stitching: Stitching) -> Stitching:
    """Cut off what the pieces have too much, where the remains are most useful."""
    before, after = list(stitching.before), list(stitching.after)
    surplus = stitching.size - stitching.block_bytes
    for pieces in (after, before):
        while pieces and surplus >= pieces[-1].size:
            surplus -= pieces.pop().size
        if pieces and surplus:
            last = pieces.pop()
            pieces.append(Range(last.start, last.size - surplus))
            surplus = 0
        if stitching.create_bytes:
            break  # what is left over is new memory behind the block
    return Stitching(stitching.block_bytes, tuple(before), stitching.create_bytes, tuple(after))
