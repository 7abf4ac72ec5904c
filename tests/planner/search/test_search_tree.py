"""The tree: its books balance wherever it is interrupted, and its outcomes are what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.errors import InvariantError
from smartpool.planner import IntervalSet
from smartpool.planner.clock import Clock
from smartpool.planner.problem import normalize
from smartpool.planner.search.skyline import Task
from smartpool.planner.search.tree import Outcome, Tree

rows = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(1, 6), st.sampled_from([1, 1, 2, 3])),
    min_size=1,
    max_size=20,
)


def task(table, slack):
    start, width, size, alignment = np.array(table, dtype=np.int64).T
    problem = normalize(IntervalSet(start, start + width, size, alignment=alignment)).problem
    columns = (problem.first, problem.last, problem.size, problem.alignments)
    return Task(*(c.tolist() for c in columns), len(problem.load), int(problem.load.max()) + slack)


@given(rows, st.integers(0, 8), st.integers(1, 60), st.booleans())
@settings(max_examples=300)
def test_the_books_balance_wherever_the_search_is_interrupted(table, slack, budget, lazy):
    work = task(table, slack)
    weights = [1.0] * work.sections
    tree = Tree(work, weights, lazy=lazy)
    tree.check()
    outcome = tree.search(budget, Clock())
    assert tree.nodes <= budget + 1
    if outcome is not Outcome.EXHAUSTED:
        tree.check()
    if outcome is Outcome.FOUND:
        assert max(o + s for o, s in zip(tree.offsets, work.size, strict=True)) <= work.capacity


def test_dead_ends_are_counted_where_they_happen():
    # Load 4 everywhere, and no plan at 4.
    start, end = [0, 1, 0, 2, 1, 3, 4, 2, 6], [1, 2, 3, 3, 4, 6, 6, 7, 7]
    size = [3, 2, 1, 1, 1, 2, 1, 1, 3]
    table = [(s, e - s, z, 1) for s, e, z in zip(start, end, size, strict=True)]
    work = task(table, 0)
    weights = [1.0] * work.sections
    assert Tree(work, weights, lazy=False).search(10**6, Clock()) is Outcome.EXHAUSTED
    assert sum(weights) > work.sections
    assert Tree(work, weights, lazy=False).search(3, Clock()) is Outcome.STOPPED
    assert Tree(task(table, 1), weights, lazy=False).search(10**6, Clock()) is Outcome.FOUND


def test_a_broken_book_is_found():
    tree = Tree(task([(0, 2, 3, 1)], 1), [1.0], lazy=True)
    tree._slack[0] += 1
    with pytest.raises(InvariantError, match="section 0: height 0"):
        tree.check()
