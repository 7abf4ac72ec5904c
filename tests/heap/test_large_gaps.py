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

    @initialize(leaf=st.sampled_from([2, 3, 128]), run=st.sampled_from([1, 2, 64]), full=st.booleans())
    def begin(self, leaf, run, full):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(large_gaps, "LEAF", leaf)
        self.patch.setattr(large_gaps, "RUN", run)
        self.gaps, self.model = LargeGaps(), {}
        for start in range(0, 24 * STEP, 2 * STEP) if full else ():
            self.gaps.add(start, STEP)
            self.model[start] = STEP

    def teardown(self):
        self.patch.undo()

    def covered(self, address):
        return next((gap for gap in self.model.items() if gap[0] <= address < sum(gap)), None)

    @rule(place=st.integers(0, 24), size=st.integers(1, 4 * STEP))
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

    @rule(place=st.integers(0, 24), parts=st.integers(1, 4), least=st.sampled_from([1, 2 * STEP]))
    def join(self, place, parts, least):
        """A block ends: with the gaps that touch it, it becomes one."""
        start, end = place * STEP, (place + parts) * STEP
        if any(self.covered(address) for address in range(start, end)):
            return
        low = next((gap for gap in self.model.items() if sum(gap) == start), None)
        high = end if end in self.model else None
        expected = low is not None or high is not None or end - start >= least
        assert self.gaps.join(start, end, least) == expected
        if expected:
            end += self.model.pop(high, 0)
            start = start if low is None else low[0]
            self.model[start] = end - start

    @rule(size=st.integers(1, 4).map(STEP.__mul__), least=st.sampled_from([1, 2 * STEP]))
    def take(self, size, least):
        """A block begins at the low end of the first gap that fits."""
        found = next((gap for gap in sorted(self.model.items()) if gap[1] >= size), None)
        assert self.gaps.take(size, least) == found
        if found is not None:
            start, have = found
            del self.model[start]
            if have - size >= least:
                self.model[start + size] = have - size

    @rule(place=st.integers(0, 24))
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


def test_what_is_left_of_a_gap_that_reached_beyond(monkeypatch):
    monkeypatch.setattr(large_gaps, "LEAF", 3)
    gaps = LargeGaps()
    for start in (0, 100, 200, 300):
        gaps.add(start, 50)
    assert gaps.join(150, 200, 1)
    assert gaps.take(120, 1) == (100, 150)
    assert gaps.size_at(220) == 30
    assert gaps.problems() == []


TestLargeGaps = LargeGapsMachine.TestCase
TestLargeGaps.settings = settings(max_examples=300, stateful_step_count=80, deadline=None)
