"""Disjoint address ranges with a value each: the container under reservations, mappings and raw memory.

Problem: add, remove, "which range holds this address", "which ranges touch this window", 10^5 to
10^6 times a replay. Method: the starts in sorted blocks of at most 1024, the first start of each
block in a list beside them, and a dict from start to (end, value). An exact start costs one dict
look-up, a place in the order two bisections, and an insertion moves at most one block.

Rejected: one sorted list, whose insertions move half of it (at 30 000 mappings 6 us a `map_chunk`
of the model instead of 4); a balanced tree, slower in Python at every size that a device can
reach (141 GiB in chunks of 2 MiB is 72 000 ranges); buckets of fixed address width, which a
single large mapping would have to enter hundreds of times.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from smartpool.errors import InvariantError

__all__ = ["RangeMap"]

_BLOCK: Final = 1024

T = TypeVar("T")


class RangeMap(Generic[T]):
    """Disjoint half-open ranges [start, end), each with a value.

    Examples
    --------
    >>> ranges = RangeMap()
    >>> ranges.add(0, 10, "a"); ranges.add(20, 30, "b")
    >>> ranges.at(25), ranges.at(10)
    ((20, 30, 'b'), None)
    >>> ranges.overlapping(5, 21)
    [(0, 10, 'a'), (20, 30, 'b')]
    """

    __slots__ = ("_blocks", "_entries", "_heads")

    def __init__(self) -> None:
        self._blocks: list[list[int]] = []
        self._heads: list[int] = []  # the first start of each block; no block is empty
        self._entries: dict[int, tuple[int, T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[int, int, T]]:
        """Yield (start, end, value) in order of address."""
        for block in self._blocks:
            for start in block:
                yield (start, *self._entries[start])

    def add(self, start: int, end: int, value: T) -> None:
        """Add a range; the caller knows that it overlaps none. O(log n)."""
        self._entries[start] = (end, value)
        at = bisect_right(self._heads, start) - 1
        if at < 0:
            if not self._blocks:
                self._blocks.append([start])
                self._heads.append(start)
                return
            at = 0
            self._heads[0] = start
        block = self._blocks[at]
        insort(block, start)
        if len(block) > _BLOCK:
            half = len(block) // 2
            self._blocks.insert(at + 1, block[half:])
            self._heads.insert(at + 1, block[half])
            del block[half:]

    def exact(self, start: int) -> tuple[int, T] | None:
        """Return (end, value) of the range that begins at `start`. O(1)."""
        return self._entries.get(start)

    def remove(self, start: int) -> T:
        """Remove the range that begins at `start` and return its value. O(log n)."""
        _, value = self._entries.pop(start)
        at = bisect_right(self._heads, start) - 1
        block = self._blocks[at]
        del block[bisect_left(block, start)]
        if not block:
            del self._blocks[at], self._heads[at]
        elif block[0] != self._heads[at]:
            self._heads[at] = block[0]
        return value

    def at(self, address: int) -> tuple[int, int, T] | None:
        """Return the range that holds `address`. O(log n)."""
        at = bisect_right(self._heads, address) - 1
        if at < 0:
            return None
        block = self._blocks[at]
        start = block[bisect_right(block, address) - 1]
        end, value = self._entries[start]
        return (start, end, value) if address < end else None

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any range shares an address with [start, end), which is not empty. O(log n)."""
        at = bisect_left(self._heads, end) - 1
        if at < 0:
            return False
        block = self._blocks[at]
        return self._entries[block[bisect_left(block, end) - 1]][0] > start

    def overlapping(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return the ranges that share an address with [start, end), in order. O(log n + found)."""
        found: list[tuple[int, int, T]] = []
        entries = self._entries
        for at in range(max(bisect_right(self._heads, start) - 1, 0), len(self._blocks)):
            block = self._blocks[at]
            if block[0] >= end:
                break
            first = max(bisect_right(block, start) - 1, 0)
            found += [
                (at, *entries[at]) for at in block[first : bisect_left(block, end)] if entries[at][0] > start
            ]
        return found

    def rebuild(self) -> None:
        """Make the order agree with the entries again, after an interrupt in `add` or `remove`. O(n log n).

        Both write the entry first and in one step, so the entries are always right.
        """
        starts = sorted(self._entries)
        self._blocks = [starts[at : at + _BLOCK // 2] for at in range(0, len(starts), _BLOCK // 2)]
        self._heads = [block[0] for block in self._blocks]

    def check(self) -> None:
        """Raise `InvariantError` unless blocks and dict agree and the ranges are disjoint and not empty."""
        starts = [start for block in self._blocks for start in block]
        if sorted(self._entries) != starts or [block[0] for block in self._blocks] != self._heads:
            raise InvariantError(f"blocks {self._blocks}, heads {self._heads} and {self._entries} disagree")
        previous = None
        for start, end, _ in self:
            if end <= start or (previous is not None and start < previous):
                raise InvariantError(f"range [{start:#x}, {end:#x}) is empty or overlaps its neighbour")
            previous = end
