"""Disjoint ranges of addresses, each with what is known of it: the one table behind mappings and the like.

Problem: add, remove, "which range holds this address", "which ranges touch this window", 10^5 to
10^6 times a replay. Method: the items by start in a dictionary, the starts in order
(`smartpool.containers.ordered`). An exact start costs one look-up, a place in the order O(log n).

An interrupt may end a method at any line. An item enters the dictionary first, and leaves it first, in one
step: so the dictionary is always right, and `rebuild` makes the order agree with it.

Rejected: a balanced tree, slower in Python at every size that a device can reach (141 GiB in chunks of
2 MiB is 72,000 ranges); buckets of fixed address width, which a single large range would have to enter
hundreds of times.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import pairwise
from typing import Generic, NamedTuple, Protocol, TypeVar

from smartpool.containers.ordered import ROOM, OrderedIntegers
from smartpool.errors import InvariantError

__all__ = ["HasRange", "Item", "Range", "RangeMap"]


class Range(NamedTuple):
    """A range of addresses [start, start + size)."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.start + self.size


class HasRange(Protocol):
    """What covers [start, start + size), and more than nothing."""

    @property
    def start(self) -> int:
        """Where it begins: for good."""

    @property
    def size(self) -> int:
        """Its bytes: for good."""


Item = TypeVar("Item", bound=HasRange)


class RangeMap(Generic[Item]):
    """Items that cover disjoint ranges, in order of address.

    Examples
    --------
    >>> ranges = RangeMap()
    >>> ranges.add(Range(0, 10)); ranges.add(Range(20, 10))
    >>> ranges.at(25), ranges.at(10)
    (Range(start=20, size=10), None)
    >>> ranges.touching(5, 21), ranges.inside(5, 40)
    ([Range(start=0, size=10), Range(start=20, size=10)], [Range(start=20, size=10)])
    """

    __slots__ = ("_at", "_starts")

    def __init__(self) -> None:
        self._at: dict[int, Item] = {}
        self._starts = OrderedIntegers()

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order of address."""
        sole = self._starts.sole
        return map(self._at.__getitem__, self._starts if sole is None else sole)

    def get(self, start: int) -> Item | None:
        """Return the item that begins at `start`, or None. O(1)."""
        return self._at.get(start)

    def add(self, item: Item) -> None:
        """Add an item; the caller knows that it overlaps none. O(log n)."""
        start = item.start
        self._at[start] = item
        sole = self._starts.sole
        if sole is not None and len(sole) < ROOM:
            insort(sole, start)
        else:
            self._starts.add(start)

    def remove(self, start: int) -> Item:
        """Remove the item that begins at `start` and return it; `KeyError` when there is none. O(log n)."""
        item = self._at.pop(start)
        sole = self._starts.sole
        if sole is None:
            self._starts.remove(start)
        else:
            del sole[bisect_left(sole, start)]
        return item

    def at(self, address: int) -> Item | None:
        """Return the item that holds `address`, or None. O(log n)."""
        sole = self._starts.sole
        if sole is None:
            start = self._starts.floor(address)
        else:
            place = bisect_right(sole, address)
            start = sole[place - 1] if place else None
        if start is None:
            return None
        item = self._at[start]
        return item if address < start + item.size else None

    def touching(self, start: int, end: int) -> list[Item]:
        """Return the items that share an address with [start, end), in order. O(log n), O(1) for each."""
        sole = self._starts.sole
        if sole is None:
            starts = self._starts.spanning(start, end)
        else:
            starts = sole[max(0, bisect_right(sole, start) - 1) : bisect_left(sole, end)]
        found = [*map(self._at.__getitem__, starts)]
        if found and found[0].start + found[0].size <= start:
            del found[0]
        return found

    def inside(self, start: int, end: int) -> list[Item]:
        """Return the items that lie wholly in [start, end), in order. O(log n), O(1) for each."""
        found = self.touching(start, end)
        if found and found[-1].start + found[-1].size > end:
            del found[-1]
        if found and found[0].start < start:
            del found[0]
        return found

    def rebuild(self) -> None:
        """Make the order agree with the items again, after an interrupt in `add` or `remove`. O(n log n)."""
        self._starts = OrderedIntegers(sorted(self._at))

    def check(self) -> None:
        """Raise `InvariantError` unless order and items agree and the ranges are disjoint and not empty."""
        self._starts.check()
        starts = list(self._starts)
        if sorted(self._at) != starts or any(item.start != start for start, item in self._at.items()):
            raise InvariantError(f"starts {starts} and items {self._at} disagree")
        for item in self:
            if item.size <= 0:
                raise InvariantError(f"{item} is empty")
        for low, high in pairwise(self):
            if low.start + low.size > high.start:
                raise InvariantError(f"{low} overlaps {high}")
