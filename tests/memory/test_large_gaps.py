"""Large gaps against a plain dictionary, in one list and in many leaves."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartpool.errors import InvariantError
from smartpool.memory import large_gaps
from smartpool.memory.large_gaps import LargeGaps

STEP = 100


class LargeGapsMachine(RuleBasedStateMachine):
    """The model maps starts, multiples of `STEP`, to sizes below it."""

    @initialize(leaf=st.sampled_from([2, 3, 8, 128]))
    def begin(self, leaf):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(large_gaps, "LEAF", leaf)
        self.gaps, self.model = LargeGaps(), {}

    def teardown(self):
        self.patch.undo()

    @rule(place=st.integers(0, 60), size=st.integers(1, STEP - 1))
    def add(self, place, size):
        if place * STEP not in self.model:
            self.gaps.add(place * STEP, size)
            self.model[place * STEP] = size

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        start = data.draw(st.sampled_from(sorted(self.model)))
        assert self.gaps.remove(start) == self.model.pop(start)

    @rule(place=st.integers(0, 60))
    def remove_what_is_not_there(self, place):
        if place * STEP not in self.model:
            with pytest.raises(InvariantError):
                self.gaps.remove(place * STEP)

    @rule(size=st.integers(1, STEP))
    def search(self, size):
        fitting = [item for item in sorted(self.model.items()) if item[1] >= size]
        assert list(self.gaps.fitting(size)) == fitting
        assert self.gaps.first(size) == (fitting[0] if fitting else None)

    @rule(address=st.integers(0, 62 * STEP))
    def look(self, address):
        start = address - address % STEP
        covered = start in self.model and address < start + self.model[start]
        assert self.gaps.covering(address) == ((start, self.model[start]) if covered else None)
        assert self.gaps.size_at(address) == self.model.get(address, 0)

    @invariant()
    def agrees(self):
        if hasattr(self, "model"):
            assert self.gaps.problems() == []
            assert list(self.gaps) == sorted(self.model.items())
            assert len(self.gaps) == len(self.model)


TestLargeGaps = LargeGapsMachine.TestCase
TestLargeGaps.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
