"""First fit against a search for the first gap, byte by byte."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.planner import IntervalSet
from smartpool.planner.problem import normalize
from smartpool.planner.search.first_fit import FAR, Shelves

rows = st.lists(
    st.tuples(st.integers(0, 700), st.integers(1, 300), st.integers(1, 5), st.sampled_from([1, 2, 4])),
    min_size=1,
    max_size=30,
)


@given(rows, st.lists(st.integers(0, 29)))
@settings(max_examples=150)
def test_the_lowest_gap_is_found_whatever_was_removed_before(table, removed):
    start, width, size, alignment = np.array(table, dtype=np.int64).T
    problem = normalize(IntervalSet(start, start + width, size, alignment=alignment)).problem
    first, last, size, alignment = problem.first, problem.last, problem.size, problem.alignments
    shelves = Shelves(problem)

    def lowest(index):
        beside = {
            byte
            for other in range(len(table))
            if other != index
            and shelves.low[other] != FAR
            and max(first[index], first[other]) < min(last[index], last[other])
            for byte in range(shelves.low[other], shelves.low[other] + size[other])
        }
        offset = 0
        while beside & set(range(offset, offset + size[index])):
            offset += int(alignment[index])
        return offset

    for index in [*range(len(table)), *(row % len(table) for row in removed)]:
        if shelves.low[index] != FAR:
            before = shelves.placed_beside(index).tolist()
            shelves.remove(index)
            assert shelves.placed_beside(index).tolist() == before
        expected = lowest(index)
        assert shelves.lowest(index) == expected
        shelves.place(index, expected)
        shelves.check()
    shelves.clear()
    assert (shelves.low == FAR).all()
