"""First fit: each buffer at the lowest offset that is free for its whole life.

Problem: some buffers are placed; place others, one after another, each as low as possible; take some out
again and try another order.

Method: who may lie beside whom depends on lifetimes alone, so it is indexed once. Time is cut into
buckets on several levels, each level's buckets `STEP` times as wide as those below, and every level lists
for each bucket the buffers that touch it, as columns that stand in one piece of memory. A query takes
the finest level on which the buffer touches at most `BUCKETS` buckets, reads their columns as one slice,
masks those that overlap it, sorts them by offset and finds the first gap by a running maximum of upper
ends: a dozen NumPy calls on some thousand numbers. A buffer that touches two of the buckets is seen
twice, which does no harm. One that is not placed lies infinitely high. So to place and to remove is to
write a number.

Bound: O(k log k) a query, k buffers in its buckets; memory O(n (1 + mean width / `FINEST`)). On the real
instances, where a lifetime overlaps some 700 others, 30 us. Rejected: buckets that keep the placed
buffers sorted (insertion of wide buffers into many of them cost twice the queries), an interval tree in
Python (pointer chasing costs more than the mask), neighbours listed for each buffer (40 million at
60,000 buffers).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from smartpool.errors import InvariantError
from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s

FINEST: Final = 32  # sections in a bucket of the lowest level
STEP: Final = 8
BUCKETS: Final = 3  # a query reads at most so many
FAR: Final = np.iinfo(np.int64).max  # the offset of what is not placed


class Shelves:
    """Buffers in time, of which some are placed.

    Parameters
    ----------
    problem
        What may be placed.

    Attributes
    ----------
    low
        The offset of each buffer, `FAR` where it is not placed.

    Examples
    --------
    >>> from smartpool.planner.intervals import IntervalSet
    >>> from smartpool.planner.problem import normalize
    >>> shelves = Shelves(normalize(IntervalSet([0, 0], [1, 1], [3, 3])).problem)
    >>> shelves.place(0, 0)
    >>> shelves.lowest(1)
    1
    """

    __slots__ = ("_columns", "_high", "_levels", "low")

    def __init__(self, problem: Problem) -> None:
        columns = (problem.first, problem.last, problem.size, problem.alignments)
        self._columns = list(zip(*(column.tolist() for column in columns), strict=True))
        self.low = np.full(len(problem), FAR, dtype=np.int64)
        self._high = np.zeros(len(problem), dtype=np.int64)
        self._levels = []
        width = FINEST
        while True:
            self._levels.append(_Level(problem.first, problem.last, width))
            if width * BUCKETS >= len(problem.load):
                break
            width *= STEP

    def clear(self) -> None:
        """Take all buffers out."""
        self.low[:] = FAR

    def place(self, index: int, offset: int) -> None:
        """Place a buffer at an offset."""
        self.low[index] = offset
        self._high[index] = offset + self._columns[index][2]

    def remove(self, index: int) -> None:
        """Take a buffer out."""
        self.low[index] = FAR

    def lowest(self, index: int) -> int:
        """Return the lowest offset at which a buffer, which is not placed, overlaps no placed one."""
        first, last, size, alignment = self._columns[index]
        beside = self._beside(first, last)
        low = self.low[beside]
        order = low.argsort()
        low = low[order]
        begin = np.empty_like(low)
        begin[0] = 0
        np.maximum.accumulate(self._high[beside[order[:-1]]], out=begin[1:])
        if alignment > 1:
            begin += -begin % alignment
        # The buffer itself is among them and lies at FAR, so there is always a gap.
        return int(begin[(low - begin >= size).argmax()])

    def placed_beside(self, index: int) -> Int64s:
        """Return the placed buffers that overlap a buffer in time, itself left out, in ascending order."""
        first, last, _, _ = self._columns[index]
        beside = np.unique(self._beside(first, last))
        placed: Int64s = beside[(self.low[beside] != FAR) & (beside != index)]
        return placed

    def check(self) -> None:
        """Raise `InvariantError` unless upper ends fit lower ones and each level lists every buffer."""
        for index, (first, last, size, alignment) in enumerate(self._columns):
            low = int(self.low[index])
            if low != FAR and (self._high[index] != low + size or low % alignment):
                raise InvariantError(f"buffer {index} of {size}: {low} to {self._high[index]}")
            for level in self._levels:
                listed = int(np.count_nonzero(level.index == index))
                if listed != (last - 1) // level.width - first // level.width + 1:
                    raise InvariantError(
                        f"buffer {index} is listed {listed} times in buckets of {level.width}"
                    )

    def _beside(self, first: int, last: int) -> Int64s:
        """Return the buffers that overlap [first, last), some twice."""
        for level in self._levels:
            width = level.width
            if (last - 1) // width - first // width < BUCKETS:
                break
        part = slice(level.begins[first // width], level.begins[(last - 1) // width + 1])
        overlapping: Int64s = level.index[part][(level.first[part] < last) & (level.last[part] > first)]
        return overlapping


class _Level:
    """The buffers that touch each bucket: those of bucket b from begins[b] to begins[b + 1]."""

    __slots__ = ("begins", "first", "index", "last", "width")

    def __init__(self, first: Int64s, last: Int64s, width: int) -> None:
        lowest, highest = first // width, (last - 1) // width
        times = highest - lowest + 1
        ends = np.cumsum(times)
        index = np.repeat(np.arange(len(first)), times)
        bucket = np.arange(len(index)) - np.repeat(ends - times, times) + np.repeat(lowest, times)
        order = np.argsort(bucket, kind="stable")
        self.width = width
        self.index = index[order]
        self.first = first[self.index]
        self.last = last[self.index]
        count = int(highest.max(initial=0)) + 2
        self.begins = np.searchsorted(bucket[order], np.arange(count)).tolist()
