"""Best fit outward from a peak: the solver for large instances, and the first answer for all.

Problem: place n intervals, up to a million, in seconds of plain Python, near the load.

Method: what is live at the section of the largest load is stacked without a gap, so that the plan is
exact where it matters most. Then two sweeps leave the peak, one forward in time and one backward. Each
is an online allocator: an interval that comes takes the smallest free range that holds it, one that goes
gives its range back (`smartpool.planner.gap_index`). Away from the peak the load is lower, and what best
fit wastes is paid out of the difference. The intervals of the two sweeps never overlap in time (each has
passed the peak or not), so neither needs to know the other.

What decides is the order of the stack. Near the peak there is nothing to waste yet, so what goes first
in either direction should leave one free range, not many. The *fan* does that for both: the latest to
come before the peak at the bottom, so that the backward sweep frees a range that grows from the floor; the
first to go after it at the top, so that the forward sweep frees one that grows from the ceiling; the
long ones between. Other orders are better where lifetimes are nested, so all are tried where time allows.

A sweep also respects *reservations*: intervals with an offset that come later. A newcomer that will
meet one avoids its range from the beginning. This is how a window of time is filled around what crosses
its edges (`smartpool.planner.windows`) and around a core that was solved exactly.

Bound: O(n log n); 2 to 4 us an interval. Height: the load at the peak exactly, elsewhere what best fit
leaves, which no constant bounds in theory (Robson, "Worst case fragmentation of first fit and best fit
storage allocation strategies", 1977), and 0 to 10 % in practice.

Source: best fit is folklore; starting an *offline* plan at its peak in both directions is ours. Rejected:
one sweep from the beginning of time (the peak gets the leftovers); no ceiling (newcomers then lie upon the
stack, and keep what is freed in it from merging: up to 2.5 % worse on random instances).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import numpy as np

from smartpool.planner.clock import FOREVER, Clock
from smartpool.planner.gap_index import GapIndex, Side
from smartpool.planner.intervals import FREE
from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s, first_fit

__all__ = ["STACKINGS", "WAYS", "fill", "outward", "stack", "sweep"]

ENDS, COMES, ASKS = 0, 1, 2
"""Kinds of events, in their order at one instant."""

STACKINGS: Final = ("fan", "lifetime", "end", "shorter side", "both sides", "start", "size")
"""Orders in which the intervals at the peak are stacked, the largest key at the bottom."""

WAYS: Final = tuple(
    (stacking, side) for side in (Side.OUTLIVING, Side.NEAREST, Side.LOW) for stacking in STACKINGS
)
"""All ways to sweep, the ones that are best most often first."""

EVENTS_AT_ONCE: Final = 1 << 15
"""Between two looks at the clock."""

LOOKS_EVERY: Final = 64
"""Intervals that are filled in between two looks at the clock."""

NOISE: Final = 0.5
"""Standard deviation of the logarithm by which `noise` multiplies the keys of the stacking."""

CLASS_OF: Final = 8192
"""Live intervals to a size class of the gap index."""


def outward(
    problem: Problem,
    *,
    ceiling: int | None = None,
    stacking: str = "fan",
    side: Side = Side.OUTLIVING,
    core: Int64s | None = None,
    noise: np.random.Generator | None = None,
    clock: Clock = FOREVER,
) -> Int64s:
    """Return offsets for all intervals of a problem; what it has fixed stays where it is.

    Parameters
    ----------
    problem
        What to place.
    ceiling
        The height to stay below; the problem's bound by default.
    stacking
        One of `STACKINGS`.
    side
        Which end of a free range an interval takes.
    core
        Offsets to keep, `FREE` for the intervals to place; the fixed ones of the problem by default.
    noise
        Perturbs the stacking, to try again.
    clock
        When to give up.

    Raises
    ------
    OutOfTime
        When the clock ran out before all were placed.
    """
    first, last, size, alignment = problem.first, problem.last, problem.size, problem.alignment
    kept = core if core is not None else problem.fixed
    placed = np.full(len(problem), FREE) if kept is None else kept.copy()
    peak = int(problem.load.argmax())
    stack(problem, placed, peak=peak, stacking=stacking, noise=noise, clock=clock)
    for begin, end, at in ((first, last, peak), (-last, -first, -peak - 1)):
        half = np.flatnonzero(end > at)
        placed[half] = sweep(
            begin[half],
            end[half],
            size[half],
            placed[half],
            alignment=None if alignment is None else alignment[half],
            at=at,
            ceiling=problem.bound if ceiling is None else ceiling,
            side=side,
            clock=clock,
        )
    return placed


def stack(
    problem: Problem,
    placed: Int64s,
    *,
    peak: int,
    stacking: str,
    noise: np.random.Generator | None = None,
    clock: Clock = FOREVER,
) -> None:
    """Place what is live at the peak: each in turn at the lowest offset that what overlaps it leaves.

    Writes `placed`. Without anything placed before, that is one stack without gaps.
    """
    first, last, size = problem.first, problem.last, problem.size
    chosen = np.flatnonzero((first <= peak) & (last > peak) & (placed == FREE))
    if not len(chosen):
        return
    key = _stacking_key(first[chosen], last[chosen], size[chosen], peak, stacking)
    if noise is not None:
        key = key * np.exp(NOISE * noise.standard_normal(len(key)))
    chosen = chosen[np.lexsort((-size[chosen], -key))]
    before = np.flatnonzero(placed != FREE)
    if len(before):
        fill(problem, placed, chosen, before, clock)
    else:
        placed[chosen] = pile(size[chosen], None if problem.alignment is None else problem.alignment[chosen])


def sweep(
    begin: Int64s,
    end: Int64s,
    size: Int64s,
    offset: Int64s,
    *,
    alignment: Int64s | None,
    at: int,
    ceiling: int,
    side: Side = Side.OUTLIVING,
    clock: Clock = FOREVER,
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
    sizes, ends = size.tolist(), end.tolist()
    highest = int(size.sum() + max(ceiling, int((offset + size).max(initial=0))))
    index = GapIndex(
        ((result[row], top[row], ends[row]) for row in np.flatnonzero(live).tolist()),
        ceiling=ceiling,
        shift=highest.bit_length() + 1,
        class_bounds=_class_bounds(size, int(live.sum())),
        side=side,
    )
    coming = np.flatnonzero(~live & ~free)
    coming = coming[np.argsort(begin[coming], kind="stable")]
    arrivals = begin[coming].tolist()
    ranges = [(result[row], top[row]) for row in coming.tolist()]
    arrived, awaited = 0, len(arrivals)
    alignments = None if alignment is None else alignment.tolist()
    take, give = index.take, index.give
    for rows, kinds in _events(begin, end, size, live, free):
        clock.check()
        for row, kind in zip(rows, kinds, strict=True):
            if kind == ENDS:
                give(result[row], top[row])
                continue
            until = ends[row]
            if kind == COMES:
                arrived += 1
                index.occupy(result[row], top[row], until)
                continue
            wanted = sizes[row]
            if alignments is None and (arrived == awaited or arrivals[arrived] >= until):
                low = take(wanted, until)
            else:
                blocked = sorted(ranges[arrived : bisect_left(arrivals, until, arrived)])
                low = index.take_avoiding(wanted, until, alignments[row] if alignments else 1, blocked)
            result[row] = low
            top[row] = low + wanted
    return np.array(result, np.int64)


def _events(
    begin: Int64s, end: Int64s, size: Int64s, live: np.ndarray, free: np.ndarray
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield rows and kinds of all events in order, in runs; of those that ask at once, the largest first."""
    asks, comes = np.flatnonzero(free), np.flatnonzero(~live & ~free)
    ends = np.flatnonzero(end <= begin.max(initial=0))
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
    rows, kinds = rows[order], kinds[order]
    for at in range(0, len(rows), EVENTS_AT_ONCE):
        run = slice(at, at + EVENTS_AT_ONCE)
        yield rows[run].tolist(), kinds[run].tolist()


def _stacking_key(first: Int64s, last: Int64s, size: Int64s, peak: int, stacking: str) -> np.ndarray:
    before, after = peak + 1 - first, last - peak
    if stacking == "fan":
        # Came just before the peak: at the bottom. Goes soon after it: at the top. In the middle, the long.
        return np.where(before < after, 1.0 / before, -1.0 / after)
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


def pile(size: Int64s, alignment: Int64s | None, base: int = 0) -> Int64s:
    """Return offsets of a stack on `base` without gaps but those that alignment asks for."""
    if alignment is None:
        return base + np.cumsum(size) - size
    offsets, top = [], base
    for nbytes, step in zip(size.tolist(), alignment.tolist(), strict=True):
        top = (top + step - 1) // step * step
        offsets.append(top)
        top += nbytes
    return np.array(offsets, np.int64)


def fill(problem: Problem, placed: Int64s, chosen: Int64s, before: Int64s, clock: Clock = FOREVER) -> None:
    """Place `chosen` in order, each at the lowest offset that those `before` and those just placed leave.

    Writes `placed`. O(k) vectorised for each, with k intervals `before` and `chosen`.
    """
    first, last, size = problem.first, problem.last, problem.size
    steps = None if problem.alignment is None else problem.alignment.tolist()
    order = before[np.argsort(placed[before], kind="stable")]
    count = len(order)
    # Low end, high end, first and last section of what is placed, by low end, with room for the others.
    board = np.empty((4, count + len(chosen)), np.int64)
    board[:, :count] = placed[order], placed[order] + size[order], first[order], last[order]
    for row, nbytes in zip(chosen.tolist(), size[chosen].tolist(), strict=True):
        if count % LOOKS_EVERY == 0:
            clock.check()
        lows, highs, starts, stops = board[:, :count]
        meets = (starts < last[row]) & (stops > first[row])
        offset = first_fit(lows[meets], highs[meets], nbytes, steps[row] if steps else 1)
        placed[row] = offset
        at = int(lows.searchsorted(offset, side="right"))
        board[:, at + 1 : count + 1] = board[:, at:count]
        board[:, at] = offset, offset + nbytes, first[row], last[row]
        count += 1


def _class_bounds(size: Int64s, live: int) -> list[int]:
    classes = live // CLASS_OF
    if classes < 2:
        return []
    bounds: list[int] = np.quantile(size, np.linspace(0, 1, classes + 1)[1:-1]).astype(np.int64).tolist()
    return sorted(set(bounds))
