"""Do two rectangles (lifetime by range of bytes) overlap? Answered without any code of the solvers.

Problem: every solver could be wrong in the same way as a check that shares its structures. So this one
shares none with them, and serves those who check: the validator, and the fixed offsets of the input.

Method: one sweep over time that keeps the live ranges in a sorted list of their lower ends. While no
two of them overlap, their order by lower end is their order by upper end as well, so a range that comes
in need only be compared with its two neighbours (Shamos and Hoey, "Geometric intersection problems",
FOCS 1976, for axis-parallel rectangles). The list is kept in runs of at most `RUN` entries, so that an
insertion moves few of them: O(n log n) comparisons; two to ten seconds for a million intervals.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import numpy as np

from smartpool.planner.sweeps import Int64s

__all__ = ["find_clash"]

RUN: Final = 1024


def find_clash(start: Int64s, end: Int64s, low: Int64s, high: Int64s) -> tuple[int, int] | None:
    """Return two rows that share an instant and a byte, or None.

    Parameters
    ----------
    start, end
        Lifetimes, half-open.
    low, high
        Ranges of bytes, half-open.

    Examples
    --------
    >>> zero, two = np.array([0, 0]), np.array([2, 2])
    >>> find_clash(zero, two, np.array([0, 4]), np.array([4, 8]))
    >>> find_clash(zero, two, np.array([0, 3]), np.array([4, 8]))
    (1, 0)
    """
    real = np.flatnonzero((start < end) & (low < high))
    # A low end and its row as one integer: ranges that are live together have different low ends, and
    # one integer is what bisect compares fastest.
    shift = max(1, len(start).bit_length())
    mask = (1 << shift) - 1
    keys = [int(offset) << shift | row for offset, row in zip(low[real].tolist(), real.tolist(), strict=True)]
    # Frees come first at an instant, in the order of the sort: kind 0 before kind 1.
    times = np.concatenate([end[real], start[real]])
    order = np.argsort(times, kind="stable").tolist()
    frees = len(real)
    tops = high.tolist()
    runs: list[list[int]] = [[]]
    lasts: list[int] = [-1]
    for event in order:
        if event < frees:
            key = keys[event]
            at = min(bisect_left(lasts, key), len(runs) - 1)
            run = runs[at]
            del run[bisect_left(run, key)]
            if run:
                lasts[at] = run[-1]
            elif len(runs) > 1:
                del runs[at], lasts[at]
            else:
                lasts[at] = -1
            continue
        key = keys[event - frees]
        row = key & mask
        at = min(bisect_left(lasts, key), len(runs) - 1)
        run = runs[at]
        spot = bisect_left(run, key)
        above = run[spot] if spot < len(run) else None
        below = run[spot - 1] if spot else (runs[at - 1][-1] if at else None)
        if above is not None and above >> shift < tops[row]:
            return row, above & mask
        if below is not None and tops[below & mask] > key >> shift:
            return row, below & mask
        run.insert(spot, key)
        lasts[at] = run[-1]
        if len(run) > RUN:
            runs.insert(at + 1, run[RUN // 2 :])
            del run[RUN // 2 :]
            lasts[at] = run[-1]
            lasts.insert(at + 1, runs[at + 1][-1])
    return None
