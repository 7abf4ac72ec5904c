"""Large gaps against a plain dictionary, in one list and in many leaves."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartpool.errors import InvariantError
from smartpool.heap import large_gaps
from smartpool.heap.large_gaps import LargeGaps

STEP = 100


class LargeGapsMachine(RuleBasedStateMachine):
    """The model maps starts, multiples of `STEP`, to sizes: below `STEP`, or as far as the next start."""

    @initialize(leaf=st.sampled_from([2, 3, 128]))
    def begin(self, leaf):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(large_gaps, "LEAF", leaf)
        self.gaps, self.model = LargeGaps(), {}

    def teardown(self):
        self.patch.undo()

    def covered(self, address):
        return next((gap for gap in self.model.items() if gap[0] <= address < sum(gap)), None)

    @rule(place=st.integers(0, 12), size=st.integers(1, 4 * STEP))
    def add(self, place, size):
        start = place * STEP
        if self.covered(start) is None:
            behind = min((other for other in self.model if other > start), default=start + size)
            size = min(size, behind - start)
            self.gaps.add(start, size)
            self.model[start] = size

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        start = data.draw(st.sampled_from(sorted(self.model)))
        assert self.gaps.remove(start) == self.model.pop(start)

    @precondition(lambda self: len(self.model) > 1)
    @rule(data=st.data())
    def join(self, data):
        """Two neighbors become one, as when a block between them is freed."""
        starts = sorted(self.model)
        index = data.draw(st.integers(0, len(starts) - 2))
        low, high = starts[index : index + 2]
        size = high + self.model[high] - low
        for start in (low, high):
            self.gaps.remove(start)
            del self.model[start]
        self.gaps.add(low, size)
        self.model[low] = size

    @rule(place=st.integers(0, 12))
    def remove_what_is_not_there(self, place):
        if place * STEP not in self.model:
            with pytest.raises(InvariantError):
                self.gaps.remove(place * STEP)

    @rule(size=st.integers(1, 4 * STEP))
    def search(self, size):
        fitting = [item for item in sorted(self.model.items()) if item[1] >= size]
        assert list(self.gaps.fitting(size)) == fitting
        assert self.gaps.first(size) == (fitting[0] if fitting else None)

    @rule(address=st.integers(0, 20 * STEP))
    def look(self, address):
        assert self.gaps.covering(address) == self.covered(address)
        assert self.gaps.size_at(address) == self.model.get(address, 0)

    @invariant()
    def agrees(self):
        if hasattr(self, "model"):
            assert self.gaps.problems() == []
            assert list(self.gaps) == sorted(self.model.items())
            assert len(self.gaps) == len(self.model)
            for start, size in self.model.items():
                assert self.gaps.covering(start + size - 1) == (start, size)


def test_a_gap_that_reaches_beyond_where_the_next_leaf_begins(monkeypatch):
    monkeypatch.setattr(large_gaps, "LEAF", 3)
    gaps = LargeGaps()
    for start in (0, 100, 200, 300):
        gaps.add(start, 50)
    for start in (100, 200):
        gaps.remove(start)
    gaps.add(100, 150)
    assert gaps.covering(249) == (100, 150)
    assert gaps.covering(250) is None


TestLargeGaps = LargeGapsMachine.TestCase
TestLargeGaps.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
