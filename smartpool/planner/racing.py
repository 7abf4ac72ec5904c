"""Several parts, one height: the part that is highest goes on.

Problem: of parts that share nothing but the limit of time, only the highest decides the height of the whole.
Time that any other gets is lost.

Method: a part is a generator that makes one attempt at each step and keeps the best plan. A heap knows
the highest. When that one has met its goal, or nothing left to try, the race is over.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from smartpool.planner.clock import Clock
from smartpool.planner.problem import Problem
from smartpool.planner.sweeps import Int64s

__all__ = ["Racer", "race"]

WATCHED: Final = 16
"""So many parts tell what the goal is."""

TELL: Final = 0.9
"""A fall of the distance to the goal to this share is told."""

FINISHED: Final = object()


@dataclass(slots=True, eq=False)
class Racer:
    """One part in a race: its best plan, and the attempts that are still to come.

    Parameters
    ----------
    problem
        What to place.
    base
        What lies beneath it.
    goal
        The height, without `base`, at which nothing is left to do.
    """

    problem: Problem
    base: int
    goal: int
    offsets: Int64s | None = None
    height: int = 0
    method: str = ""
    bound: int = 0
    attempts: Iterator[None] = field(default_factory=lambda: iter(()))

    def __post_init__(self) -> None:
        self.bound = self.problem.bound
        self.goal = max(self.goal, self.bound)

    @property
    def top(self) -> int:
        """Where the part ends in the whole."""
        return self.base + self.height

    @property
    def done(self) -> bool:
        """Whether the goal is met."""
        return self.offsets is not None and self.height <= self.goal

    def raise_bound(self, bound: int) -> None:
        """Note that no plan is lower than `bound`; with fixed intervals nothing is ever proved."""
        if self.problem.fixed is None:
            self.bound = max(self.bound, bound)
            self.goal = max(self.goal, self.bound)

    def offer(self, offsets: Int64s, method: str) -> None:
        """Keep a plan if it is the best so far."""
        height = int((offsets + self.problem.size).max(initial=0))
        if self.offsets is None or height < self.height:
            self.offsets, self.height, self.method = offsets, height, method


def race(racers: Sequence[Racer], clock: Clock) -> Iterator[None]:
    """Run the highest part, again and again, and yield when the whole fell by a share worth telling.

    First every part makes its first attempt. Ends when the highest part has met its goal, or has nothing
    left to try: the others do not matter then.
    """
    if not racers:
        return
    for racer in racers:
        if racer.offsets is None:
            next(racer.attempts, None)
    queue = [(-racer.top, at) for at, racer in enumerate(racers)]
    heapq.heapify(queue)
    told = -queue[0][0]
    yield
    while not clock.expired:
        _, at = heapq.heappop(queue)
        racer = racers[at]
        if racer.done or next(racer.attempts, FINISHED) is FINISHED:
            break
        heapq.heappush(queue, (-racer.top, at))
        # Putting the parts together costs more than many an attempt.
        top, floor = -queue[0][0], max(other.base + other.goal for other in racers[:WATCHED])
        if top < told and top - floor <= TELL * (told - floor):
            told = top
            yield
    yield
