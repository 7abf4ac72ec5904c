"""Best fit outward from a peak: the solver for large instances, and the first answer for all.

Problem: place n intervals, up to a million, in seconds of plain Python, near the load.

Method: what is live at the section of the largest load is stacked without a gap, so that the plan is
exact where it matters most. Then two sweeps leave the peak, one forward in time and one backward. Each
is an online allocator: an interval that comes takes the smallest free range that holds it, one that goes
gives its range back. Away from the peak the load is lower, and what best fit wastes is paid out of the
difference. The intervals of the two sweeps never overlap in time (each has passed the peak or not), so
neither needs to know the other.

A sweep also respects *reservations*: intervals with an offset that come later. A newcomer that will
meet one avoids its range from the beginning. This is how a window of time is filled around what crosses
its edges (`smartpool.planner.windows`) and around a core that was solved exactly.

Bound: O(n log n); 1.5 us an interval. Height: the load at the peak exactly, elsewhere what best fit
leaves, which no constant bounds in theory (Robson, "Worst case fragmentation of first fit and best fit
storage allocation strategies", 1977), and 0 to 10 % in practice.

Source: best fit is folklore; starting an *offline* plan at its peak in both directions is ours. Rejected:
one sweep from the beginning of time (3 to 30 % worse: the peak gets the leftovers); placing an
interval beside the neighbour that ends next to it (better and worse by turns, a third slower).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from smartpool.planner.gap_index import GapIndex
from smartpool.planner.intervals import FREE
from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s

__all__ = ["STACKINGS", "outward", "stack", "sweep"]

ENDS, COMES, ASKS = 0, 1, 2
"""Kinds of events, in their order at one instant."""

STACKINGS: Final = ("lifetime", "end", "both sides", "shorter side", "start", "size")
"""Orders in which the intervals at the peak are stacked, the longest at the bottom."""

CLASS_OF: Final = 8192
"""Live intervals to a size class of the gap index."""


def outward(
    problem: Problem,
    rows: Int64s,
    offsets: Int64s,
    *,
    peak: int,
    stacking: str = "lifetime",
    noise: np.random.Generator | None = None,
) -> int:
    """Place the rows that have no offset yet, and return the height of all these rows.

    Parameters
    ----------
    problem
        Where the rows come from.
    rows
        The intervals to place, and those with an offset that overlap them.
    offsets
        Of all intervals of the problem, `FREE` for those to place; written.
    peak
        The section from which the sweeps leave.
    stacking
        One of `STACKINGS`.
    noise
        Perturbs the stacking, to try again.
    """
    first, last, size = problem.first[rows], problem.last[rows], problem.size[rows]
    alignment = None if problem.alignment is None else problem.alignment[rows]
    placed = offsets[rows]
    stack(first, last, size, alignment, placed, peak=peak, stacking=stacking, noise=noise)
    for begin, end, at in ((first, last, peak), (-last, -first, -peak - 1)):
        side = np.flatnonzero(end > at)
        placed[side] = sweep(
            begin[side],
            end[side],
            size[side],
            placed[side],
            alignment=None if alignment is None else alignment[side],
            at=at,
        )
    offsets[rows] = placed
    return int((placed + size).max(initial=0))


def stack(
    first: Int64s,
    last: Int64s,
    size: Int64s,
    alignment: Int64s | None,
    placed: Int64s,
    *,
    peak: int,
    stacking: str,
    noise: np.random.Generator | None = None,
) -> None:
    """Place what is live at the peak: each in turn at the lowest offset that what overlaps it leaves.

    Writes `placed`. Without anything placed before, that is one stack without gaps.
    """
    chosen = np.flatnonzero((first <= peak) & (last > peak) & (placed == FREE))
    if not len(chosen):
        return
    key = _stacking_key(first[chosen], last[chosen], size[chosen], peak, stacking)
    if noise is not None:
        key = key * np.exp(0.5 * noise.standard_normal(len(key)))
    chosen = chosen[np.lexsort((-size[chosen], -key))]
    before = np.flatnonzero(placed != FREE)
    if not len(before):
        placed[chosen] = _pile(size[chosen], None if alignment is None else alignment[chosen])
        return
    _fill(first, last, size, alignment, placed, chosen, before)


def sweep(
    begin: Int64s,
    end: Int64s,
    size: Int64s,
    offset: Int64s,
    *,
    alignment: Int64s | None,
    at: int,
) -> Int64s:
    """Sweep forward from section `at` and return the offsets of all.

    Parameters
    ----------
    begin, end, size, alignment
        All intervals that are live at `at` or later.
    offset
        `FREE` for those to place, none of which is live at `at`; the others are live there, or
        reserve their place.
    """
    live = begin <= at
    free = offset == FREE
    result: list[int] = offset.tolist()
    top: list[int] = (offset + size).tolist()
    index = GapIndex(
        zip(offset[live].tolist(), (offset + size)[live].tolist(), strict=True),
        shift=max(1, int(size.sum() + np.maximum(offset + size, 0).max(initial=0)).bit_length() + 1),
        class_bounds=_class_bounds(size, int(live.sum())),
    )
    coming = np.flatnonzero(~live & ~free)
    coming = coming[np.argsort(begin[coming], kind="stable")]
    arrivals = begin[coming].tolist()
    ranges = list(zip(offset[coming].tolist(), (offset + size)[coming].tolist(), strict=True))
    arrived, awaited = 0, len(arrivals)
    sizes, ends = size.tolist(), end.tolist()
    alignments = None if alignment is None else alignment.tolist()
    take, give = index.take, index.give
    rows, kinds = _events(begin, end, size, live, free)
    for row, kind in zip(rows, kinds, strict=True):
        if kind == ENDS:
            give(result[row], top[row])
        elif kind == COMES:
            arrived += 1
            index.occupy(result[row], top[row])
        else:
            wanted = sizes[row]
            if alignments is None and (arrived == awaited or arrivals[arrived] >= ends[row]):
                low = take(wanted)
            else:
                blocked, until = [], ends[row]
                for ahead in range(arrived, awaited):
                    if arrivals[ahead] >= until:
                        break
                    blocked.append(ranges[ahead])
                blocked.sort()
                low = index.take_avoiding(wanted, alignments[row] if alignments else 1, blocked)
            result[row] = low
            top[row] = low + wanted
    return np.array(result, np.int64)


def _events(
    begin: Int64s, end: Int64s, size: Int64s, live: np.ndarray, free: np.ndarray
) -> tuple[list[int], list[int]]:
    """Return rows and kinds of all events in order; among those that ask at once, the largest first."""
    asks, comes = np.flatnonzero(free), np.flatnonzero(~live & ~free)
    horizon = begin.max(initial=0)
    ends = np.flatnonzero(end <= horizon)
    rank = np.empty(len(size), np.int64)
    rank[np.argsort(-size, kind="stable")] = np.arange(len(size))
    rows = np.concatenate([ends, comes, asks])
    kinds = np.repeat(np.array([ENDS, COMES, ASKS]), [len(ends), len(comes), len(asks)])
    times = np.concatenate([end[ends], begin[comes], begin[asks]])
    key = (times - times.min(initial=0)) * 3 + kinds
    if len(size) < 1 << 30 and key.max(initial=0) < 1 << 32:
        order = np.argsort(key << 31 | rank[rows])
    else:
        order = np.lexsort((rank[rows], key))
    return rows[order].tolist(), kinds[order].tolist()


def _stacking_key(first: Int64s, last: Int64s, size: Int64s, peak: int, stacking: str) -> np.ndarray:
    before, after = peak + 1 - first, last - peak
    if stacking == "end":
        return after.astype(np.float64)
    if stacking == "start":
        return before.astype(np.float64)
    if stacking == "both sides":
        return before.astype(np.float64) * after
    if stacking == "shorter side":
        return np.minimum(before, after).astype(np.float64)
    if stacking == "size":
        return size.astype(np.float64)
    return (last - first).astype(np.float64)


def _pile(size: Int64s, alignment: Int64s | None) -> Int64s:
    """Return offsets of a stack without gaps but those that alignment asks for."""
    if alignment is None:
        return np.cumsum(size) - size
    offsets, top = [], 0
    for nbytes, step in zip(size.tolist(), alignment.tolist(), strict=True):
        top = (top + step - 1) // step * step
        offsets.append(top)
        top += nbytes
    return np.array(offsets, np.int64)


def _fill(
    first: Int64s,
    last: Int64s,
    size: Int64s,
    alignment: Int64s | None,
    placed: Int64s,
    chosen: Int64s,
    before: Int64s,
) -> None:
    """Place `chosen`, all live at one instant, each at the lowest offset among those that overlap it."""
    order = before[np.argsort(placed[before], kind="stable")]
    lows, highs = placed[order], placed[order] + size[order]
    starts, stops = first[order], last[order]
    for row in chosen.tolist():
        meets = (starts < last[row]) & (stops > first[row])
        low, reach = lows[meets], np.maximum.accumulate(np.concatenate([[0], highs[meets]]))
        if alignment is not None:
            step = alignment[row]
            reach = (reach + step - 1) // step * step
        fits = np.flatnonzero(low - reach[:-1] >= size[row])
        offset = int(reach[fits[0]] if len(fits) else reach[-1])
        placed[row] = offset
        at = int(np.searchsorted(lows, offset, side="right"))
        lows, highs = np.insert(lows, at, offset), np.insert(highs, at, offset + size[row])
        starts, stops = np.insert(starts, at, first[row]), np.insert(stops, at, last[row])


def _class_bounds(size: Int64s, live: int) -> list[int]:
    classes = live // CLASS_OF
    if classes < 2:
        return []
    return np.unique(np.quantile(size, np.linspace(0, 1, classes + 1)[1:-1]).astype(np.int64)).tolist()
