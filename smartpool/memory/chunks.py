"""Which chunks are mapped where: the physical side of an arena, in pure integers.

Invariants, proved by `check()`::

    no two mapped chunks overlap
    mapped_bytes == sum of the sizes of the mapped chunks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from smartpool.errors import InvariantError
from smartpool.memory.ordered import OrderedIntegers

__all__ = ["ChunkMap", "MappedChunk"]


@dataclass(frozen=True, slots=True)
class MappedChunk:
    """A chunk mapped at [start, start + size); `handle` is the driver's."""

    start: int
    size: int
    handle: int

    @property
    def end(self) -> int:
        """The first address behind the mapping."""
        return self.start + self.size


class ChunkMap:
    """The mapped chunks of one arena, ordered by address.

    Examples
    --------
    >>> chunks = ChunkMap()
    >>> for start in (0, 4, 8):
    ...     chunks.add(MappedChunk(start, 4, handle=start))
    >>> [chunk.start for chunk in chunks.inside(2, 12)]
    [4, 8]
    """

    __slots__ = ("_at", "_starts", "mapped_bytes")

    def __init__(self) -> None:
        self._at: dict[int, MappedChunk] = {}
        self._starts = OrderedIntegers()
        self.mapped_bytes = 0

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[MappedChunk]:
        return (self._at[start] for start in self._starts)

    def add(self, chunk: MappedChunk) -> None:
        """Book a mapped chunk. O(log n)."""
        self._starts.add(chunk.start)
        self.mapped_bytes += chunk.size
        self._at[chunk.start] = chunk  # last, as it is taken out first: see `mend`

    def remove(self, start: int) -> MappedChunk:
        """Forget the chunk at `start` and return it. O(log n)."""
        chunk = self._at.pop(start)
        self._starts.remove(start)
        self.mapped_bytes -= chunk.size
        return chunk

    def at(self, address: int) -> MappedChunk | None:
        """Return the chunk that covers `address`, or None. O(log n)."""
        start = self._starts.floor(address)
        if start is None:
            return None
        chunk = self._at[start]
        return chunk if address < chunk.end else None

    def covering(self, start: int, end: int) -> list[MappedChunk]:
        """Return the chunks that touch [start, end), by address. O(log n) and O(1) for each."""
        at = self._at
        chunks = [at[address] for address in self._starts.spanning(start, end)]
        if chunks and chunks[0].start + chunks[0].size <= start:
            del chunks[0]
        return chunks

    def inside(self, start: int, end: int) -> Iterator[MappedChunk]:
        """Yield the chunks that lie wholly in [start, end), by address."""
        for address in self._starts.from_(start):
            chunk = self._at[address]
            if chunk.end > end:
                return
            yield chunk

    def mend(self, keep: Callable[[MappedChunk], bool]) -> None:
        """Make the books anew, after an exception midway, from the chunks that `keep` says are there."""
        kept = {start: chunk for start, chunk in sorted(self._at.items()) if keep(chunk)}
        self._starts = OrderedIntegers(kept)
        self.mapped_bytes = sum(chunk.size for chunk in kept.values())
        self._at = kept

    def check(self) -> None:
        """Prove the invariants; `InvariantError` when one is broken."""
        self._starts.check()
        chunks = list(self)
        for low, high in pairwise(chunks):
            if low.end > high.start:
                raise InvariantError(f"mapped chunks overlap: {low}, {high}")
        mapped = sum(chunk.size for chunk in chunks)
        if mapped != self.mapped_bytes or len(chunks) != len(self._at):
            raise InvariantError(f"mapped bytes: {self.mapped_bytes} counted, {mapped} found")
