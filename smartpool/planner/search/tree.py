"""Backtracking over the skyline: fit these buffers below a capacity, or show that they do not fit.

Problem: given buffers over sections, find offsets below a capacity such that buffers that share a
section do not overlap, or exhaust the possibilities.

Method: every plan can be pushed down until each buffer is at offset zero or rests on another one (the
*canonical placements* of strip packing), so a plan can be built upwards. The state is a skyline: for
each section its height, below which nothing more is placed, and its slack, capacity - height - load of
the unplaced buffers that cover it. A *valley* is a run of equal heights between higher neighbours. Look
at one section of a valley: whatever comes lowest there either rests on the floor, so that it fits
between the walls, or begins higher. Hence a branching that forgets nothing: each buffer that covers the
section and fits the valley is placed on its floor; or else the section's floor is raised to the lowest
offset that any of them can have otherwise, which costs slack. No buffer fits: the floor must be raised
at least to the lower wall that a covering buffer crosses. Not enough slack for it: a dead end. The
section with the fewest choices is asked first, divided by the number of dead ends that it caused before
(Boussemart et al., "Boosting systematic search by weighting constraints", ECAI 2004).

Where no unplaced buffer crosses a boundary the two sides are independent: each is solved alone, and
once one is solved its choices are forgotten, so that a failure of the other goes straight back to
what was decided before the split. Sets of buffers are the bits of Python integers, in the order in
which buffers are tried.

A *lazy* tree raises a floor only where nothing fits. It is incomplete, far smaller, and the right first
guess: slack that is spent at once is missing later.

Source: the skyline and the canonical order follow MiniMalloc (Moffitt, "MiniMalloc: A Lightweight
Memory Allocator for Hardware-Accelerated Machine Learning", ASPLOS 2023); the bottom-left valley is
Burke, Kendall and Whitwell's ("A new placement heuristic for the orthogonal stock-cutting problem",
Operations Research 52, 2004), made exact here by the raise.

Bound: exponential, as the problem is NP-hard (Garey and Johnson, SR2). A node costs the width of the
valley that it changes, in operations on integers of n bits.

Rejected: see docs/planner-search.md.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from smartpool.planner.clock import Clock
from smartpool.planner.search.skyline import DEAD, Agenda, Component, Skyline, Task, Valley

POLL: Final = 64  # nodes between two looks at the clock
MANY: Final = 12  # candidates for which the exact height of a raise is not worth its time
NOTHING: Final = -(1 << 62)  # no move: beyond all heights
NO_RAISE: Final = -1  # no buffer is untried, and the raise is not open either

# Where the trail ended, what was unplaced, the component, the valley, the buffers untried, the agenda.
Choice = tuple[int, int, Component, Valley, int, Agenda]


class Outcome(Enum):
    """How a tree search ended."""

    FOUND = "found"
    EXHAUSTED = "exhausted"  # a proof that nothing fits, unless the tree was lazy
    STOPPED = "stopped"  # out of nodes, or out of time


class Tree(Skyline):
    """One search from the empty skyline; updates the weights in place.

    Parameters
    ----------
    task, weights, lazy
        As in `Skyline`.

    Attributes
    ----------
    nodes
        How many there were.
    offsets
        In granules, once a plan is found.
    """

    __slots__ = ("nodes",)

    def __init__(self, task: Task, weights: list[float], *, lazy: bool) -> None:
        super().__init__(task, weights, lazy=lazy)
        self.nodes = 0

    def search(self, budget: int, clock: Clock) -> Outcome:
        """Search until an answer, `budget` nodes, or the clock; `offsets` holds the plan when found."""
        if min(self._slack, default=0) < 0:
            return Outcome.EXHAUSTED
        choices: list[Choice] = []
        agenda = self._pieces(0, self._task.sections)
        component: Component | None = None
        while True:
            if component is None:
                if agenda is None:
                    return Outcome.FOUND
                component, mark, agenda = agenda
                del choices[mark:]
            self.nodes += 1
            if self.nodes > budget or (self.nodes % POLL == 0 and clock.expired):
                return Outcome.STOPPED
            valley = min(component[2])
            if valley[0] == DEAD:
                section = self._flood(valley, component)
                if section < 0:
                    component = self._changed(valley, component)
                    continue
                move, untried = NOTHING, NO_RAISE
            else:
                section = valley[1]
                move, untried = self._next(valley, component, self._fitting(valley))
            if move == NOTHING:
                self._weights[section] += 1
            while move == NOTHING:
                if not choices:
                    return Outcome.EXHAUSTED
                length, self._unplaced, component, valley, untried, agenda = choices.pop()
                self._undo(length)
                move, untried = self._next(valley, component, untried)
            if untried != NO_RAISE:
                choices.append((len(self._trail), self._unplaced, component, valley, untried, agenda))
            if move < 0:
                self._raise(valley[1], valley[1] + 1, [-move])
                component = self._changed(valley, component)
            else:
                component, agenda = self._place(move, valley, component, len(choices), agenda)

    def _fitting(self, valley: Valley) -> int:
        """Return the buffers that cover the valley's section and fit between its walls."""
        _, section, left, right = valley
        return self._unplaced & self._right_of[left] & self._left_of[right] & self._covers[section]

    def _next(self, valley: Valley, component: Component, untried: int) -> tuple[int, int]:
        """Return the next move at the valley's section, and the buffers untried after it.

        A move is a buffer to place, minus the height to raise the floor to, or `NOTHING`. The raise is
        the last, once no buffers are untried; then `NO_RAISE` is left.
        """
        while untried > 0:
            low = untried & -untried
            untried ^= low
            index = low.bit_length() - 1
            if self._twins[index] & self._unplaced or (self._aligned and not self._affords(index)):
                continue
            raises = not self._lazy and self._slack[valley[1]]
            return index, untried if untried or raises else NO_RAISE
        section = valley[1]
        if untried == 0 and self._slack[section] and not self._lazy:
            lowest = self._lowest_otherwise(valley, component, self._fitting(valley))
            if lowest - self._height[section] <= self._slack[section]:
                return -lowest, NO_RAISE
        return NOTHING, NO_RAISE

    def _lowest_otherwise(self, valley: Valley, component: Component, fitting: int) -> int:
        """Return the lowest offset at the section of the valley when nothing rests on its floor there.

        A buffer that leaves the valley rests on a wall. One that fits rests on another that does not
        cover the section, which is on the floor itself or on a wall.
        """
        _, section, left, right = valley
        task = self._task
        walls = self._walls(valley, component)
        lowest = self._over_walls(section, valley, walls)
        floor = self._height[section]
        if fitting.bit_count() > MANY:
            return min(lowest, floor + 1)
        while fitting:
            low = fitting & -fitting
            fitting ^= low
            index = low.bit_length() - 1
            first, last = task.first[index], task.last[index]
            below = self._unplaced & ~(self._covers[section] | self._left_of[first] | self._right_of[last])
            while below:
                low = below & -below
                below ^= low
                other = low.bit_length() - 1
                inside = left <= task.first[other] and task.last[other] <= right
                base = floor if inside else min(walls)
                lowest = min(lowest, base + task.size[other])
        return lowest
