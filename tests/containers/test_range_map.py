"""RangeMap against a plain dictionary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.containers import ordered
from smartpool.containers import range_map as module
from smartpool.containers.range_map import Range, RangeMap
from smartpool.errors import InvariantError

END = 40
steps = st.lists(st.tuples(st.integers(0, END), st.integers(1, 6), st.booleans()), max_size=60)


@pytest.mark.parametrize("load", [2, 1024])
@given(program=steps)
def test_it_answers_as_a_dictionary_does(load, program):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "LOAD", load)
        patch.setattr(module, "ROOM", 2 * load)
        answers_as_a_dictionary_does(program)


def answers_as_a_dictionary_does(program):
    ranges, naive = RangeMap(), {}  # start -> size
    for start, length, remove in program:
        end = start + length
        items = [Range(*item) for item in sorted(naive.items())]
        taken = [item for item in items if item.start < end and start < item.end]
        assert ranges.touching(start, end) == taken
        assert ranges.inside(start, end) == [
            item for item in taken if start <= item.start and item.end <= end
        ]
        if remove and taken:
            assert ranges.remove(taken[0].start) == taken[0]
            del naive[taken[0].start]
        elif not taken:
            ranges.add(Range(start, length))
            naive[start] = length
        ranges.check()
        assert len(ranges) == len(naive)
        items = [Range(*item) for item in sorted(naive.items())]
        assert list(ranges) == items
        for address in range(END + 6):
            held = [item for item in items if item.start <= address < item.end]
            assert ranges.at(address) == (held[0] if held else None)
            assert ranges.get(address) == (Range(address, naive[address]) if address in naive else None)


def test_removing_what_is_not_there_changes_nothing():
    ranges = RangeMap()
    ranges.add(Range(0, 4))
    with pytest.raises(KeyError):
        ranges.remove(2)
    ranges.check()
    assert list(ranges) == [Range(0, 4)]


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_the_order_is_made_anew_from_the_items(before, items):
    """As after an interrupt between the two steps of a change."""
    ranges = RangeMap()
    for start in before:
        ranges.add(Range(start, 1))
    ranges._at.clear()
    ranges._at.update({start: Range(start, 1) for start in items})
    if before != items:
        with pytest.raises(InvariantError, match="disagree"):
            ranges.check()
    ranges.rebuild()
    ranges.check()
    assert [item.start for item in ranges] == sorted(items)


@pytest.mark.parametrize("entries", [[(0, 0)], [(0, 5), (4, 4)]])
def test_check_finds_what_is_broken(entries):
    ranges = RangeMap()
    for entry in entries:
        ranges.add(Range(*entry))
    with pytest.raises(InvariantError):
        ranges.check()
