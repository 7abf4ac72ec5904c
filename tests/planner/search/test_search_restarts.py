"""Restarts: equal components once, the right guess first, a bound in nodes."""

import numpy as np
import pytest

from smartpool.planner import IntervalSet
from smartpool.planner.clock import Clock
from smartpool.planner.problem import normalize
from smartpool.planner.search import ProvedInfeasible
from smartpool.planner.search.restarts import CORES, HARD, Restarts, luby

PERFECT = ([0, 0, 2, 1, 3, 0], [1, 2, 4, 3, 4, 4], [2, 1, 1, 2, 2, 1])


def repeated(times, period=10):
    start, end, size = (np.array(column) for column in PERFECT)
    shift = np.repeat(np.arange(times) * period, len(size))
    columns = np.tile(start, times) + shift, np.tile(end, times) + shift, np.tile(size, times)
    return normalize(IntervalSet(*columns)).problem


@pytest.mark.parametrize("tiers", [HARD, CORES])
def test_equal_components_are_solved_once_and_alike(tiers):
    once, often = repeated(1), repeated(50)
    offsets = Restarts(tiers, 3, effort=5).search(once, 4, Clock())
    assert (Restarts(tiers, 3, effort=5).search(often, 4, Clock()) == np.tile(offsets, 50)).all()


def test_the_guess_that_was_right_comes_first_next_time():
    restarts = Restarts(HARD, 1, effort=3)
    before = list(restarts._guesses)
    restarts.search(repeated(1), 4, Clock())
    assert sorted(map(repr, restarts._guesses)) == sorted(map(repr, before))
    winner = restarts._guesses[0]
    restarts.search(repeated(1), 4, Clock())
    assert restarts._guesses[0] == winner


def test_nodes_bound_the_search():
    assert Restarts(HARD, 0, effort=3).search(repeated(1), 4, Clock(), nodes=0) is None


def test_one_infeasible_component_is_enough():
    start, end = [0, 1, 0, 2, 1, 3, 4, 2, 6], [1, 2, 3, 3, 4, 6, 6, 7, 7]
    size = [3, 2, 1, 1, 1, 2, 1, 1, 3]
    easy = ([20], [30], [4])
    columns = (np.array(a + b) for a, b in zip((start, end, size), easy, strict=True))
    with pytest.raises(ProvedInfeasible):
        Restarts(HARD, 0, effort=3).search(normalize(IntervalSet(*columns)).problem, 4, Clock())


def test_luby_doubles_as_often_as_its_sequence_says():
    terms = [luby(step) for step in range(1, 128)]
    assert [terms.count(1 << power) for power in range(7)] == [64, 32, 16, 8, 4, 2, 1]
