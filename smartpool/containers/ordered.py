"""Ordered integers: the index under chunks, and under the free blocks of modeled peers.

Problem: keep up to 10^6 distinct integers ordered; add, remove, and find the smallest one at or
above a bound, each in about half a microsecond of interpreted Python.
Method: short sorted lists, one behind the other, and a list of *separators* between them: a member
belongs to the list behind the last separator that is not above it. One bisection of the separators
and one of a short list find every place; `insort` and `del` move at most `2 * LOAD` references, in
C. Separators need not be members, so adding and removing leave them alone, and up to `2 * LOAD`
members there is one list and no separator. A simplification of the structure in Grant Jenks'
*sortedcontainers* (2014), which keeps the maximum of each list up to date instead.
Bound: O(log n + LOAD) for each operation, with n / LOAD lists.
Rejected: the package itself (the pool has two run-time dependencies and wants no third), balanced
trees and skip lists (ten times slower in interpreted code), heaps (no removal from the middle),
one flat list (10^6 members move 4 MB at each insertion).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise, takewhile

from smartpool.errors import InvariantError

__all__ = ["ROOM", "OrderedIntegers"]

LOAD = 1024
ROOM = 2 * LOAD


class OrderedIntegers:
    """A set of integers in ascending order.

    Examples
    --------
    >>> numbers = OrderedIntegers([30, 10, 20])
    >>> numbers.ceiling(11), numbers.ceiling(31)
    (20, None)
    >>> numbers.remove(20); list(numbers)
    [10, 30]

    Attributes
    ----------
    sole
        The members themselves, while one list holds them all; None once there are several. An inner
        loop may bisect it, delete from it, and insert while it has fewer than `ROOM` members.
    """

    __slots__ = ("_lists", "_separators", "sole")

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._lists: list[list[int]] = [[]]  # only a sole list may be empty
        self._separators: list[int] = []
        self.sole: list[int] | None = self._lists[0]
        for value in values:
            self.add(value)

    def __len__(self) -> int:
        return sum(map(len, self._lists))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._lists)

    def __reversed__(self) -> Iterator[int]:
        if self.sole is not None:
            return reversed(self.sole)
        return chain.from_iterable(reversed(part) for part in reversed(self._lists))

    def __contains__(self, value: int) -> bool:
        return self.ceiling(value) == value

    def add(self, value: int) -> None:
        """Add `value`, which must not be a member yet. O(log n)."""
        place = bisect_right(self._separators, value)
        part = self._lists[place]
        insort(part, value)
        if len(part) > 2 * LOAD:
            self._lists.insert(place + 1, part[LOAD:])
            del part[LOAD:]
            self._separators.insert(place, self._lists[place + 1][0])
            self.sole = None

    def remove(self, value: int) -> None:
        """Remove `value`; `KeyError` when it is not a member. O(log n)."""
        place = bisect_right(self._separators, value)
        part = self._lists[place]
        index = bisect_left(part, value)
        if index == len(part) or part[index] != value:
            raise KeyError(value)
        del part[index]
        if not part:
            self._drop(place)

    def ceiling(self, bound: int) -> int | None:
        """Return the smallest member that is at least `bound`, or None. O(log n)."""
        place = bisect_right(self._separators, bound)
        part = self._lists[place]
        index = bisect_left(part, bound)
        if index < len(part):
            return part[index]
        return self._lists[place + 1][0] if place + 1 < len(self._lists) else None

    def floor(self, bound: int) -> int | None:
        """Return the largest member that is at most `bound`, or None. O(log n)."""
        place = bisect_right(self._separators, bound)
        part = self._lists[place]
        index = bisect_right(part, bound)
        if index:
            return part[index - 1]
        return self._lists[place - 1][-1] if place else None

    def from_(self, bound: int) -> Iterator[int]:
        """Yield the members from `bound` upwards. O(log n) for the first, O(1) for each next."""
        place = bisect_right(self._separators, bound)
        part = self._lists[place]
        yield from part[bisect_left(part, bound) :]
        yield from chain.from_iterable(self._lists[place + 1 :])

    def spanning(self, low: int, high: int) -> list[int]:
        """Return the last member at or below `low`, if any, and those from there up to below `high`.

        O(log n) and O(1) for each.
        """
        floor = self.floor(low)
        return list(takewhile(high.__gt__, self.from_(low if floor is None else floor)))

    def check(self) -> None:
        """Prove the invariants; `InvariantError` with the state when one is broken. O(n)."""
        lists, separators = self._lists, self._separators
        good = (
            all(low < high for low, high in pairwise(self))
            and len(separators) == len(lists) - 1
            and all(len(part) <= 2 * LOAD and (part or not separators) for part in lists)
            and all(bisect_right(separators, value) == i for i, part in enumerate(lists) for value in part)
            and self.sole is (None if separators else lists[0])
        )
        if not good:
            raise InvariantError(f"ordered integers are not in order: {lists!r}, {separators!r}")

    def _drop(self, place: int) -> None:
        """Take an empty list out, unless it is the only one."""
        if self._separators:
            del self._lists[place], self._separators[max(0, place - 1)]
            if not self._separators:
                self.sole = self._lists[0]
