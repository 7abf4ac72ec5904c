"""Ranges and rectangles at the resolution of a screen: how much of each cell they cover.

Problem: 10^5 blocks, a picture of 10^4 cells, several times a second. Method: a range adds to the
two cells in which it ends the part that it covers there, and to the cells between them a whole; the
whole ones by a running sum over +1 at its first and -1 behind its last, so that the cost is
O(ranges + cells), in NumPy, whatever the lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["beginnings", "coverage", "shares", "touched"]


def coverage(
    starts: NDArray[np.int64], ends: NDArray[np.int64], first: int, last: int, cells: int
) -> NDArray[np.float64]:
    """Return for each of `cells` equal cells of [first, last) the bytes that the ranges cover in it.

    Parameters
    ----------
    starts, ends
        Ranges [start, end) in bytes, shape (n,). They may reach beyond the view, and overlap:
        what two cover counts twice.
    first, last
        The view.
    cells
        How many cells; at least 1.

    Examples
    --------
    >>> coverage(np.array([1, 6]), np.array([3, 8]), 0, 8, 4).tolist()
    [1.0, 1.0, 0.0, 2.0]
    """
    width = (last - first) / cells
    low = np.clip((starts - first) / width, 0, cells)
    high = np.clip((ends - first) / width, 0, cells)
    inside = high > low
    low, high = low[inside], high[inside]
    first_cell = low.astype(np.int64)
    last_cell = np.minimum(high.astype(np.int64), cells - 1)
    # From the beginning of its first cell to its end, less what lies before it: sums of differences.
    steps = np.zeros(cells + 1)
    np.add.at(steps, first_cell, 1.0)
    np.add.at(steps, last_cell, -1.0)
    covered = np.cumsum(steps[:-1])
    np.add.at(covered, first_cell, first_cell - low)
    np.add.at(covered, last_cell, high - last_cell)
    return covered * width


def beginnings(starts: NDArray[np.int64], first: int, last: int, cells: int) -> NDArray[np.uint8]:
    """Return 1 for each of `cells` equal cells of [first, last) in which one of `starts` above `first` lies.

    >>> beginnings(np.array([0, 3, 6]), 0, 8, 4).tolist()
    [0, 1, 0, 1]
    """
    inside = starts[(starts > first) & (starts < last)] - first
    # Positions times cells may be more than 64 bits hold: the whole bytes of a cell and the rest, apart.
    width, rest = divmod(last - first, cells)
    number = np.arange(cells)
    edges = number * width - (-number * rest // cells)
    at = np.searchsorted(edges, inside, side="right") - 1
    marks = np.zeros(cells, dtype=np.uint8)
    marks[at] = 1
    return marks


def shares(covered: NDArray[np.float64], first: int, last: int) -> NDArray[np.uint8]:
    """Return `coverage` as shares of a cell, 0 to 255; anything that is not nothing is at least 1.

    >>> shares(np.array([0.0, 0.001, 1.0, 2.0]), 0, 8).tolist()
    [0, 1, 128, 255]
    """
    width = (last - first) / len(covered)
    scaled = np.clip(np.rint(covered / width * 255), 0, 255)
    return np.where(covered > 0, np.maximum(scaled, 1), 0).astype(np.uint8)


def touched(
    left: NDArray[np.float64],
    upper: NDArray[np.float64],
    right: NDArray[np.float64],
    lower: NDArray[np.float64],
    *,
    columns: int,
    rows: int,
) -> NDArray[np.bool_]:
    """Return which cells of a grid (column, row) rectangles touch. O(rectangles + cells).

    Parameters
    ----------
    left, upper, right, lower
        The edges of the rectangles, in cells.
    columns, rows
        The grid; no edge is beyond it.

    Examples
    --------
    >>> edges = (np.array([edge]) for edge in (0.5, 0.0, 1.5, 1.0))
    >>> touched(*edges, columns=3, rows=2).tolist()
    [[True, False], [True, False], [False, False]]
    """
    corners = np.zeros((columns + 1, rows + 1), np.int64)
    first, last = (left.astype(np.int64), upper.astype(np.int64)), (np.ceil(right), np.ceil(lower))
    end = tuple(edge.astype(np.int64) for edge in last)
    for at, sign in ((first, 1), ((end[0], first[1]), -1), ((first[0], end[1]), -1), (end, 1)):
        np.add.at(corners, at, sign)
    inside: NDArray[np.bool_] = corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    return inside
