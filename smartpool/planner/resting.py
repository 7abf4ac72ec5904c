"""Intervals that rest: others may lie in their bytes meanwhile, and every offset holds for several pieces.

Problem: the solvers of `smartpool.planner.attempts` know one rectangle an interval. Planned so, as if nothing
ever rested, an instance has a valid plan that wastes what rests.

Method: intervals are placed in turn, each at the lowest offset at which all its pieces are free. Where rests
leave no bytes, some order gives the lowest plan (of any plan, the order of its offsets gives one that is not
higher). The first orders are that of the plan without rests, and by area, size and start. Then what ends at
the top is moved forward, with a few exchanges by chance, as in squeaky wheel optimization (Joslin and
Clements, JAIR 10, 1999); an order that is not worse is kept.

Bound: one turn costs O(n) vectorised for each piece. Rejected: a search with proofs as in
`smartpool.planner.search`, whose skyline has no holes to lie in; instances with rests are few and small.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np

from smartpool.planner.clock import Clock
from smartpool.planner.intervals import FREE, IntervalSet
from smartpool.planner.pieces import Pieces
from smartpool.planner.sweeps import Int64s, first_fit

__all__ = ["improve_resting"]

PATIENCE: Final = 1000
"""Orders that may follow one another without a lower plan, and so many more an interval."""

PATIENCE_EACH: Final = 50

FEW: Final = 5
"""Of so many intervals all orders are tried."""


def improve_resting(
    intervals: IntervalSet, offsets: Int64s, *, goal: int, clock: Clock, seed: int
) -> Iterator[Int64s]:
    """Yield ever lower plans than `offsets`, until one meets the goal or the clock or patience runs out."""
    real = np.flatnonzero((intervals.size > 0) & (intervals.start < intervals.end))
    rows = real[intervals.fixed[real] == FREE]
    if not len(rows):
        return
    held = intervals.pieces()
    rng = np.random.default_rng(seed)
    area = intervals.size * (intervals.end.astype(np.float64) - intervals.start)
    keys = (offsets, -area, -intervals.size, intervals.start)
    orders = [rows[np.argsort(key[rows], kind="stable")] for key in keys]
    if len(rows) <= FEW:
        orders += map(np.array, itertools.permutations(rows.tolist()))
    best, order, height = offsets, orders[0], int((offsets + intervals.size)[real].max())
    lowest, tries = height, 0
    while lowest > goal and tries < PATIENCE + PATIENCE_EACH * len(rows) and not clock.expired:
        tries += 1
        following = orders.pop(0) if orders else _exchanged(order, best + intervals.size, height, rng)
        placed = _in_turn(intervals, held, following, clock)
        if placed is None:
            return
        top = int((placed + intervals.size)[real].max())
        if top > height:
            continue
        best, order, height = placed, following, top
        if top < lowest:
            lowest, tries = top, 0
            yield placed


def _exchanged(order: Int64s, tops: Int64s, height: int, rng: np.random.Generator) -> Int64s:
    """Return another order: one that ends at the top comes earlier, and two others change places."""
    changed = order.copy()
    at = int(rng.choice(np.flatnonzero(tops[changed] == height)))
    to = int(rng.integers(at + 1))
    changed[to : at + 1] = np.roll(changed[to : at + 1], 1)
    if rng.random() < 0.5:
        one, two = rng.integers(len(changed), size=2)
        changed[[one, two]] = changed[[two, one]]
    return changed


def _in_turn(intervals: IntervalSet, held: Pieces, order: Int64s, clock: Clock) -> Int64s | None:
    """Return the plan of an order; None when the clock ran out."""
    offsets = np.where(intervals.fixed == FREE, 0, intervals.fixed)
    first = np.searchsorted(held.row, np.arange(len(intervals) + 1))
    placed = intervals.fixed[held.row] != FREE  # of the pieces
    low, high = offsets[held.row] + held.low, offsets[held.row] + held.high
    for turn, row in enumerate(order.tolist()):
        if turn % 64 == 63 and clock.expired:
            return None
        mine = range(int(first[row]), int(first[row + 1]))
        below: list[Int64s] = []  # above which, and below which the offset meets what is placed
        above: list[Int64s] = []
        for piece in mine:
            meets = placed & (held.start < held.end[piece]) & (held.end > held.start[piece])
            below.append(low[meets] - held.high[piece])
            above.append(high[meets] - held.low[piece])
        if below:
            begins, ends = np.concatenate(below), np.concatenate(above)
            order_of = np.argsort(begins, kind="stable")
            # A size of 0, as the piece's own bytes are in these ranges already.
            offsets[row] = first_fit(begins[order_of], ends[order_of], 0, int(intervals.alignment[row]))
        for piece in mine:
            placed[piece] = True
            low[piece], high[piece] = offsets[row] + held.low[piece], offsets[row] + held.high[piece]
    return offsets
