"""Repair by ejection: what ends too high pushes its way in, and what it pushes out finds another place.

Problem: a sweep over a million intervals leaves some hundreds above the goal, far apart in time. Nothing is
wrong elsewhere, so nothing else should be computed again.

Method: take one interval that ends above the goal. If some free range below the goal holds it for all its
life, it goes into the tightest. Else it takes the place where what lies there weighs least, and that is
lifted out and placed in the same way, the largest first, until nothing is in the air or patience ends,
when all is put back. An interval weighs its area (size by lifetime) times how often it was pushed out
before, so a chain goes from the large to the small, and not in circles. The places worth trying are those
that touch an interval above or below.

Source: ejection chains (Glover, "Ejection chains, reference structures and alternating path methods",
1996) with the learned weights of Morris ("The breakout method", AAAI 1993). Bound: each step costs
O(k log k) vectorised, where k intervals overlap the one in the air; nobody promises that a chain ends.
Rejected: size alone as the weight (a chain then pushes out long intervals, and takes half as many steps
more).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

import numpy as np

from smartpool.planner.clock import Clock
from smartpool.planner.intervals import FREE
from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s

__all__ = ["repair"]

PATIENCE: Final = 100
"""Steps of the first chain that starts from an interval; twice as many at each further round."""

ROUNDS: Final = 8


def repair(
    problem: Problem, offsets: Int64s, *, goal: int, clock: Clock, rounds: int = ROUNDS
) -> Iterator[Int64s]:
    """Yield ever better plans made from one, until all of it is below the goal or the clock runs out.

    Parameters
    ----------
    problem
        What is planned, sorted by `first`, as `normalize` leaves it.
    offsets
        A valid plan.
    goal
        The height to reach.
    rounds
        Passes over what is still above it, each with twice the patience of the one before.
    """
    board = _Board(problem, offsets.copy(), goal)
    patience = PATIENCE
    for _ in range(rounds):
        high = np.flatnonzero(board.offsets + problem.size > goal)
        for row in high[np.argsort(-problem.size[high], kind="stable")].tolist():
            if clock.expired:
                break
            board.push_in(row, patience)
        yield board.offsets.copy()
        if clock.expired or not (board.offsets + problem.size > goal).any():
            return
        patience *= 2


class _Board:
    """A plan that is being changed, and an index to what is live when."""

    def __init__(self, problem: Problem, offsets: Int64s, goal: int) -> None:
        self.problem = problem
        self.offsets = offsets
        self.goal = goal
        area = problem.size.astype(np.float64) * (problem.last - problem.first)
        self._area = area
        self.weight = area.copy()
        if problem.fixed is not None:
            self.weight[problem.fixed != FREE] = np.inf
        order = np.argsort(problem.first, kind="stable")
        self._order = order
        self._first = problem.first[order]
        self._checkpoint()

    def push_in(self, row: int, patience: int) -> bool:
        """Bring `row` below the goal, pushing others about; or leave all as it was and return False."""
        if not np.isfinite(self.weight[row]):
            return False
        before: dict[int, int] = {row: int(self.offsets[row])}
        self.offsets[row] = FREE
        in_the_air = [(-self._area[row], row)]
        for _ in range(patience):
            _, lifted = heapq.heappop(in_the_air)
            out = self._land(lifted)
            if out is None:
                break
            for other in out.tolist():
                before.setdefault(other, int(self.offsets[other]))
                self.offsets[other] = FREE
                self.weight[other] += self._area[other]
                heapq.heappush(in_the_air, (-self._area[other], other))
            if not in_the_air:
                return True
        for other, offset in before.items():
            self.offsets[other] = offset
        return False

    def _land(self, row: int) -> Int64s | None:
        """Place a row; return those that it pushes out, or None when there is no place at all."""
        problem = self.problem
        size = int(problem.size[row])
        step = 1 if problem.alignment is None else int(problem.alignment[row])
        rows = self._overlapping(row)
        low = self.offsets[rows]
        order = np.argsort(low)
        rows, low = rows[order], low[order]
        high = low + problem.size[rows]
        reach = np.maximum.accumulate(np.concatenate([[0], high]))
        starts = reach if step == 1 else (reach + step - 1) // step * step
        room = np.minimum(np.append(low, self.goal), self.goal) - starts
        fits = np.flatnonzero(room >= size)
        if len(fits):
            self.offsets[row] = starts[fits[room[fits].argmin()]]
            return rows[:0]
        places = np.concatenate([[0], high, low - size, [self.goal - size]])
        places = places // step * step if step > 1 else places
        places = places[(places >= 0) & (places <= self.goal - size)]
        if not len(places):
            return None
        place = int(places[self._burden(rows, low, high, places, size).argmin()])
        out = rows[(low < place + size) & (high > place)]
        if not np.isfinite(self.weight[out]).all():
            return None
        self.offsets[row] = place
        return out

    def _burden(self, rows: Int64s, low: Int64s, high: Int64s, places: Int64s, size: int) -> np.ndarray:
        """Return for each place the weight of what lies there: what begins below, less what ends below."""
        weight = self.weight[rows]
        finite = np.isfinite(weight)
        # What is fixed outweighs all the rest together, but not so far that sums lose the rest.
        weight = np.where(finite, weight, 1.0 + 2.0 * weight[finite].sum())
        by_high = np.argsort(high)
        begun = np.concatenate([[0.0], np.cumsum(weight)])
        ended = np.concatenate([[0.0], np.cumsum(weight[by_high])])
        burden: np.ndarray = (
            begun[np.searchsorted(low, places + size)]
            - ended[np.searchsorted(high[by_high], places, "right")]
        )
        return burden

    def _overlapping(self, row: int) -> Int64s:
        """Return the placed rows that are live together with this one."""
        first, last = self.problem.first[row], self.problem.last[row]
        begin, end = np.searchsorted(self._first, first), np.searchsorted(self._first, last)
        mark = int(begin) // self._stride
        rows = np.concatenate([self._live[mark], self._order[mark * self._stride : end]])
        meets = (self.problem.last[rows] > first) & (self.offsets[rows] != FREE)
        result: Int64s = rows[meets]
        return result

    def _checkpoint(self) -> None:
        """Note what is live at every so many starts: all that begins between two of them is a slice."""
        n = len(self._order)
        last = self.problem.last[self._order]
        # As many rows between two marks as are live at one, so that neither outweighs the other.
        widest = int(np.bincount(self._first).cumsum().max(initial=1))
        typical = int((last - self._first).sum() // max(1, len(self.problem.load)))
        self._stride = max(64, min(typical, widest))
        self._live: list[Int64s] = []
        live = np.zeros(0, np.int64)
        for at in range(0, n, self._stride):
            if at:
                fresh = np.arange(at - self._stride, at)
                live = np.concatenate([live, fresh])
            live = live[last[live] > self._first[at]]
            self._live.append(self._order[live])
