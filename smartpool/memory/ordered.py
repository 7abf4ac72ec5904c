"""Ordered integers: the index under gaps and chunks.

Problem: keep up to 10^6 distinct integers ordered; add, remove, and find the smallest one at or
above a bound, each in about a microsecond of interpreted Python.
Method: short sorted lists in a list, with the largest member of each in a second list; two
bisections find a place, and `insort` and `del` move at most `LOAD` references in C. This is the
structure of Grant Jenks' *sortedcontainers* (2014), cut down to the four operations needed here;
the package itself is not used because the pool has two run-time dependencies and wants no third.
Bound: O(log n + LOAD) for each operation, with n / LOAD lists.
Rejected: balanced trees and skip lists (ten times slower in interpreted code), heaps (no removal
from the middle), one flat list (10^6 members move 4 MB at each insertion).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

from smartpool.errors import InvariantError

__all__ = ["OrderedIntegers"]

LOAD = 512


class OrderedIntegers:
    """A set of integers in ascending order.

    Examples
    --------
    >>> numbers = OrderedIntegers([30, 10, 20])
    >>> numbers.ceiling(11), numbers.ceiling(31)
    (20, None)
    >>> numbers.remove(20); list(numbers)
    [10, 30]
    """

    __slots__ = ("_length", "_lists", "_maxima")

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._lists: list[list[int]] = []
        self._maxima: list[int] = []
        self._length = 0
        for value in values:
            self.add(value)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._lists)

    def __reversed__(self) -> Iterator[int]:
        return chain.from_iterable(reversed(part) for part in reversed(self._lists))

    def __contains__(self, value: int) -> bool:
        return self.ceiling(value) == value

    def add(self, value: int) -> None:
        """Add `value`, which must not be a member yet. O(log n)."""
        maxima = self._maxima
        self._length += 1
        if not maxima:
            self._lists.append([value])
            maxima.append(value)
            return
        place = bisect_left(maxima, value)
        if place == len(maxima):
            place -= 1
            part = self._lists[place]
            part.append(value)
            maxima[place] = value
        else:
            part = self._lists[place]
            insort(part, value)
        if len(part) > 2 * LOAD:
            self._lists.insert(place + 1, part[LOAD:])
            del part[LOAD:]
            maxima[place : place + 1] = [part[-1], maxima[place]]

    def remove(self, value: int) -> None:
        """Remove `value`; `KeyError` when it is not a member. O(log n)."""
        maxima = self._maxima
        place = bisect_left(maxima, value)
        if place == len(maxima):
            raise KeyError(value)
        part = self._lists[place]
        index = bisect_left(part, value)
        if part[index] != value:
            raise KeyError(value)
        del part[index]
        self._length -= 1
        if not part:
            del self._lists[place], maxima[place]
        elif index == len(part):
            maxima[place] = part[-1]

    def ceiling(self, bound: int) -> int | None:
        """Return the smallest member that is at least `bound`, or None. O(log n)."""
        maxima = self._maxima
        place = bisect_left(maxima, bound)
        if place == len(maxima):
            return None
        part = self._lists[place]
        return part[bisect_left(part, bound)]

    def floor(self, bound: int) -> int | None:
        """Return the largest member that is at most `bound`, or None. O(log n)."""
        lists = self._lists
        place = bisect_left(self._maxima, bound)
        if place < len(lists):
            part = lists[place]
            index = bisect_left(part, bound)
            if part[index] == bound:
                return bound
            if index:
                return part[index - 1]
        return lists[place - 1][-1] if place else None

    def from_(self, bound: int) -> Iterator[int]:
        """Yield the members from `bound` upwards. O(log n) for the first, O(1) for each next."""
        place = bisect_left(self._maxima, bound)
        if place < len(self._lists):
            part = self._lists[place]
            yield from part[bisect_left(part, bound) :]
            yield from chain.from_iterable(self._lists[place + 1 :])

    def last(self) -> int | None:
        """Return the largest member, or None."""
        return self._maxima[-1] if self._maxima else None

    def check(self) -> None:
        """Prove the invariants; `InvariantError` with the state when one is broken. O(n)."""
        members = list(self)
        good = (
            len(members) == self._length
            and all(low < high for low, high in pairwise(members))
            and self._maxima == [part[-1] for part in self._lists]
            and all(0 < len(part) <= 2 * LOAD for part in self._lists)
        )
        if not good:
            raise InvariantError(f"ordered integers are not in order: {self._lists!r}, {self._maxima!r}")
