"""Only the highest part goes on."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.planner import IntervalSet
from smartpool.planner.clock import Clock
from smartpool.planner.problem import normalize
from smartpool.planner.racing import Racer, race


def runner(start, falls, goal):
    """Return a part of one interval whose plan falls by the given steps."""
    problem = normalize(IntervalSet.from_arrays([0], [1], [1])).problem
    racer = Racer(problem, 0, goal)
    heights = [start]
    for fall in falls:
        heights.append(max(1, heights[-1] - fall))

    def attempts():
        for height in heights:
            racer.offer(np.array([height - 1]), f"down to {height}")
            yield

    racer.attempts = attempts()
    return racer, heights


@given(
    st.lists(st.tuples(st.integers(1, 50), st.lists(st.integers(0, 20), max_size=6)), min_size=1, max_size=6),
    st.integers(1, 20),
)
def test_the_race_ends_at_the_goal_or_when_the_highest_can_no_more(parts, goal):
    runners = [runner(start, falls, goal) for start, falls in parts]
    racers = [racer for racer, _ in runners]
    tops = [max(racer.height for racer in racers) for _ in race(racers, Clock())]
    assert tops == sorted(tops, reverse=True)
    lowest_possible = max(heights[-1] for _, heights in runners)
    assert tops[-1] <= max(goal, lowest_possible)


def test_a_race_without_time_has_made_one_attempt_each():
    runners = [runner(9, [1, 1], 1), runner(5, [1], 1)]
    for _ in race([racer for racer, _ in runners], Clock(stop=lambda: True)):
        pass
    assert [racer.height for racer, _ in runners] == [9, 5]


def test_a_race_of_nobody_is_over():
    assert list(race([], Clock())) == []
