"""RangeMap against a set of integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.driver import ranges as ranges_module
from smartpool.driver.ranges import RangeMap
from smartpool.errors import InvariantError

END = 40
steps = st.lists(st.tuples(st.integers(0, END), st.integers(1, 6), st.booleans()), max_size=60)


@pytest.mark.parametrize("block", [2, 1024])
@given(program=steps)
def test_it_answers_as_a_set_of_integers_does(block, program):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges_module, "_BLOCK", block)
        answers_as_integers_do(program)


def answers_as_integers_do(program):
    ranges, naive = RangeMap(), {}  # start -> end
    for start, length, remove in program:
        end = start + length
        taken = [(s, e) for s, e in sorted(naive.items()) if s < end and start < e]
        assert ranges.overlaps(start, end) == bool(taken)
        assert ranges.overlapping(start, end) == [(s, e, -s) for s, e in taken]
        if remove and taken:
            assert ranges.remove(taken[0][0]) == -taken[0][0]
            del naive[taken[0][0]]
        elif not taken:
            ranges.add(start, end, -start)
            naive[start] = end
        ranges.check()
        assert len(ranges) == len(naive)
        assert list(ranges) == [(s, e, -s) for s, e in sorted(naive.items())]
        for address in range(END + 6):
            held = [(s, e, -s) for s, e in naive.items() if s <= address < e]
            assert ranges.at(address) == (held[0] if held else None)
            assert ranges.exact(address) == ((naive[address], -address) if address in naive else None)


@pytest.mark.parametrize("entries", [[(0, 0)], [(0, 5), (4, 8)]])
def test_check_finds_what_is_broken(entries):
    ranges = RangeMap()
    for start, end in entries:
        ranges.add(start, end, None)
    with pytest.raises(InvariantError):
        ranges.check()


def test_check_finds_a_lost_entry():
    ranges = RangeMap()
    ranges.add(0, 5, None)
    ranges._heads[0] = 1
    with pytest.raises(InvariantError, match="disagree"):
        ranges.check()
