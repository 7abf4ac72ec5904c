"""Tidy placement: where a block leaves the least that only a window could use.

Problem: best fit looks at sizes alone. The free part of a chunk that is live elsewhere (an *edge*)
can be reached by a later large request only through a window, one edge a side; whole free chunks
can be used by anything. So of several gaps that fit, one is better that loses fewer whole chunks.
Method: the next few fits by size, each at its low and at its high end; the placement that adds
fewest bytes of edge wins, then the lowest address.
Source: ours. Bound: O(candidates log n).
Measured: brings the mean fragmentation of the `tight` policy from 0.6 to 0.45 %; with larger chunks
it gains nothing and costs twice the time, so only `tight` uses it (`docs/elastic.md`).
"""

from __future__ import annotations

from itertools import islice

from smartpool.memory.arena import Arena
from smartpool.memory.chunks import ChunkMap

__all__ = ["place_tidily"]


def place_tidily(arena: Arena, chunks: ChunkMap, size: int, candidates: int) -> int | None:
    """Place a block of `size` bytes where it adds least edge, and return its start; None if nothing fits."""
    best: tuple[int, int] | None = None
    chosen = None
    for gap in islice(arena.fitting(size), candidates):
        before = _edge_bytes(chunks, gap.start, gap.end)
        for start in (gap.start, gap.end - size):
            after = _edge_bytes(chunks, gap.start, start) + _edge_bytes(chunks, start + size, gap.end)
            if best is None or (after - before, start) < best:
                best, chosen = (after - before, start), gap
    if best is None or chosen is None:
        return None
    arena.place_at(chosen, best[1], size)
    return best[1]


def _edge_bytes(chunks: ChunkMap, start: int, end: int) -> int:
    """Return how much of the free range [start, end) lies in chunks that are not free as a whole."""
    if start == end:
        return 0
    first, last = chunks.at(start), chunks.at(end - 1)
    if first is None or last is None:
        return end - start
    low = start if first.start == start else first.end
    high = end if last.end == end else last.start
    return end - start if high < low else low - start + end - high
