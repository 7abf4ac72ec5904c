"""What a heap has learned of a program, and how the next run begins there.

Problem: nearly all of the driver's time goes into the first pass of a program, on its own thread, for
chunks and second mappings that the run before had made as well.
Method: a profile has the sizes of the chunks, by address, and what each kept window shows, as offsets into
the chunks side by side. `Restoring` makes them again, one chunk or one window at a time, so that a request
that comes meanwhile waits for one of them at most. Chunks need not lie where they lay: a window is mapped of
the parts of its chunks, wherever these are.
Bound: one growth for each chunk and one stitching for each window, on a thread that is not in a hurry; on
the nine recorded programs the driver's time that is left to the first pass is 0 to 0.9 ms of 17 to 51,
but for one with several streams.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

from smartpool.heap.arena import ALIGNMENT, Range
from smartpool.heap.mappings import Mapping

__all__ = ["HeapProfile", "Restoring", "offsets_in", "parts_of"]

_Chunk = TypeVar("_Chunk", Range, Mapping)


@dataclass(frozen=True, slots=True)
class HeapProfile:
    """Chunks and windows of a heap.

    Attributes
    ----------
    granularity
        Bytes: the smallest chunk of the device.
    chunks
        Bytes of each chunk, by address.
    windows
        For each window, the one used least lately first, what it shows: ranges of the chunks side by side.
    """

    granularity: int
    chunks: tuple[int, ...] = ()
    windows: tuple[tuple[Range, ...], ...] = ()

    def problems(self) -> list[str]:
        """Return what cannot be: profiles are read from files."""
        ends = {0, *accumulate(self.chunks)}
        wrong = [
            f"a chunk of {size} bytes, which is no multiple of {self.granularity}"
            for size in self.chunks
            if not size or size % self.granularity
        ]
        wrong += [
            f"a window of {[tuple(piece) for piece in window]}, which no such chunks can show"
            for window in self.windows
            if not _can_be_shown(window, ends)
        ]
        return wrong


def _can_be_shown(window: Sequence[Range], edges: set[int]) -> bool:
    """Return whether the pieces are disjoint, of whole blocks, and end at edges of chunks where they meet."""
    if not window or any(start % ALIGNMENT or size % ALIGNMENT or not size for start, size in window):
        return False
    ordered = sorted(window)
    return (
        ordered[-1].end <= max(edges)
        and all(low.end <= high.start for low, high in pairwise(ordered))
        and edges.issuperset(piece.start for piece in window[1:])
        and edges.issuperset(piece.end for piece in window[:-1])
    )


class Restoring:
    """How far a profile was made again.

    Attributes
    ----------
    profile
        The profile.
    made
        The chunks so far.
    windows
        How many windows were made, or passed over.
    """

    def __init__(self, profile: HeapProfile) -> None:
        self.profile = profile
        self.made: list[Mapping] = []
        self.windows = 0


def offsets_in(chunks: Sequence[_Chunk], pieces: Iterable[Range]) -> tuple[Range, ...]:
    """Return where `pieces` lie in `chunks`, which are by address, with the chunks side by side.

    >>> offsets_in([Range(100, 10), Range(500, 10)], [Range(105, 5), Range(500, 3)])
    (Range(start=5, size=5), Range(start=10, size=3))
    """
    starts = [chunk.start for chunk in chunks]
    before = [0, *accumulate([chunk.size for chunk in chunks])]
    found = []
    for start, size in pieces:
        place = bisect_right(starts, start) - 1
        found.append(Range(before[place] + start - starts[place], size))
    return tuple(found)


def parts_of(chunks: Sequence[_Chunk], pieces: Iterable[Range]) -> list[tuple[_Chunk, Range]]:
    """Return each chunk, and the range of it, that `pieces`, offsets into the chunks side by side, are.

    >>> [part for _, part in parts_of([Range(100, 10), Range(500, 10)], [Range(5, 8)])]
    [Range(start=105, size=5), Range(start=500, size=3)]
    """
    ends = list(accumulate([chunk.size for chunk in chunks]))
    parts = []
    for start, size in pieces:
        while size:
            place = bisect_right(ends, start)
            chunk = chunks[place]
            inside = start - (ends[place] - chunk.size)
            taken = min(size, chunk.size - inside)
            parts.append((chunk, Range(chunk.start + inside, taken)))
            start, size = start + taken, size - taken  # noqa: PLW2901
    return parts
