"""First fit around reservations: each buffer at the lowest offset that is free for its whole life.

Problem: some buffers are placed; place many others, one after another, each as low as possible.

Method: time is cut into buckets of equal numbers of sections. Each bucket keeps the placed buffers that
touch it in the order of their offsets, as rows of one array. A buffer that lies in one bucket reads that
bucket's rows, masks those that it overlaps, and finds the first gap by a running maximum of upper ends:
a handful of NumPy calls on a few hundred rows. Wider buffers read all the rows at once.

Bound: O(n) a buffer in the worst case; on the real instances, where a lifetime overlaps some 700
others, 20 to 30 us. Rejected: the list of all placed buffers (5 times slower at 18,000), an interval
tree in Python (pointer chasing costs more than the mask), a skyline per section (wide buffers).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from smartpool.planner.sweeps import Int64s

BUCKETS: Final = 256  # at most; a bucket is as many sections
FIRST, LAST, LOW, HIGH = range(4)  # the rows of a shelf
FAR: Final = np.iinfo(np.int64).max


class Shelves:
    """Placed buffers by time, each bucket of it sorted by offset.

    Parameters
    ----------
    sections
        The number of sections.
    count
        The most buffers that will be placed.
    """

    __slots__ = ("_all", "_buckets", "_width")

    def __init__(self, sections: int, count: int) -> None:
        self._width = max(1, -(-sections // BUCKETS))
        self._buckets = [_Shelf(16) for _ in range(-(-sections // self._width) or 1)]
        self._all = _Shelf(max(count, 16))

    @classmethod
    def holding(cls, sections: int, count: int, rows: Int64s) -> Shelves:
        """Return shelves with buffers placed: columns first, last, low, high, one buffer a line."""
        shelves = cls(sections, count)
        rows = rows[np.argsort(rows[:, LOW], kind="stable")].T
        shelves._all.fill(rows)
        begins, ends = rows[FIRST] // shelves._width, (rows[LAST] - 1) // shelves._width
        for number, bucket in enumerate(shelves._buckets):
            bucket.fill(rows[:, (begins <= number) & (ends >= number)])
        return shelves

    def add(self, first: int, last: int, low: int, high: int) -> None:
        """Place a buffer over the sections [first, last) and the range [low, high)."""
        row = (first, last, low, high)
        self._all.insert(row)
        for bucket in self._buckets[first // self._width : (last - 1) // self._width + 1]:
            bucket.insert(row)

    def lowest(self, first: int, last: int, size: int, alignment: int = 1) -> int:
        """Return the lowest offset at which [first, last) by `size` overlaps no placed buffer."""
        bucket = first // self._width
        shelf = self._buckets[bucket] if (last - 1) // self._width == bucket else self._all
        return shelf.lowest(first, last, size, alignment)


class _Shelf:
    """Rows first, last, low, high; columns sorted by low."""

    __slots__ = ("_count", "_rows")

    def __init__(self, room: int) -> None:
        self._rows = np.empty((4, room), dtype=np.int64)
        self._count = 0

    def fill(self, rows: Int64s) -> None:
        """Take these rows, sorted by `low`, for the present content."""
        self._count = rows.shape[1]
        room = max(self._rows.shape[1], 2 * self._count)
        self._rows = np.empty((4, room), dtype=np.int64)
        self._rows[:, : self._count] = rows

    def insert(self, row: tuple[int, int, int, int]) -> None:
        """Keep the order by `low`."""
        count = self._count
        if count == self._rows.shape[1]:
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)], axis=1)
        rows = self._rows
        place = int(rows[LOW, :count].searchsorted(row[LOW]))
        rows[:, place + 1 : count + 1] = rows[:, place:count]
        rows[:, place] = row
        self._count = count + 1

    def lowest(self, first: int, last: int, size: int, alignment: int) -> int:
        """Return the first gap of `size` beside the rows that overlap [first, last)."""
        rows = self._rows[:, : self._count]
        live = ((rows[FIRST] < last) & (rows[LAST] > first)).nonzero()[0]
        if not live.size:
            return 0
        begin = np.empty(live.size + 1, dtype=np.int64)
        begin[0] = 0
        np.maximum.accumulate(rows[HIGH, live], out=begin[1:])
        if alignment > 1:
            begin += -begin % alignment
        room = rows[LOW, live]
        room -= begin[:-1]
        fits = room >= size
        place = int(fits.argmax())
        return int(begin[place] if fits[place] else begin[-1])
