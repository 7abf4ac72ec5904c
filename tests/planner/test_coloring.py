"""Lifetimes as they happen, against a list of what is live."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from smartpool.errors import PlanningError
from smartpool.planner import WeightedIntervalGraphColoring, validate


class ColoringMachine(RuleBasedStateMachine):
    @initialize(alignment=st.sampled_from([1, 4, 8]))
    def start(self, alignment):
        self.graph = WeightedIntervalGraphColoring(alignment=alignment)
        self.alignment = alignment
        self.live = {}
        self.known = {}
        self.peak = 0

    @rule(size=st.integers(0, 30), step=st.none() | st.integers(0, 3), priority=st.integers(0, 3))
    def open(self, size, step, priority):
        at = None if step is None else self.graph.now + step
        name = self.graph.open(size, at=at, priority=priority)
        assert self.graph.offset_of(name) % self.alignment == 0
        self.live[name] = size
        self.known[name] = (self.graph.now, None)
        self.peak = max(self.peak, sum(self.live.values()))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def close(self, data):
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.graph.close(name)
        del self.live[name]
        self.known[name] = (self.known[name][0], self.graph.now)
        with pytest.raises(PlanningError, match="expected a live interval"):
            self.graph.close(name)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def neighbours(self, data):
        name = data.draw(st.sampled_from(sorted(self.known)))
        end = self.graph.now + 1
        spans = {key: (begin, end if until is None else until) for key, (begin, until) in self.known.items()}
        mine = spans.pop(name)
        expected = tuple(
            sorted(key for key, other in spans.items() if max(mine[0], other[0]) < min(mine[1], other[1]))
        )
        assert self.graph.overlapping(name) == expected

    @rule()
    def hindsight(self):
        intervals = self.graph.intervals()
        for by_weight in (False, True):
            plan = self.graph.color(by_weight=by_weight, time_limit=0.0)
            assert validate(intervals, plan.offsets) == plan.height

    @invariant()
    def adds_up(self):
        if not hasattr(self, "graph"):
            return
        self.graph.check()
        assert len(self.graph) == len(self.live)
        assert self.graph.load == sum(self.live.values())
        assert self.graph.peak_load == self.peak
        assert sum(size for _, size in self.graph.live_ranges()) == self.graph.load
        assert 0 <= self.graph.fragmentation() < 1


TestColoring = ColoringMachine.TestCase
TestColoring.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


def test_the_caller_may_place():
    graph = WeightedIntervalGraphColoring()
    low, high = graph.open(16, address=4096), graph.open(16, address=8192)
    graph.check()
    assert graph.offset_of(high) == 8192
    assert graph.free_ranges() == ((4112, 4080),)
    with pytest.raises(PlanningError, match="got a mixture"):
        graph.open(16)
    graph.close(low)
    assert graph.live_ranges() == ((8192, 16),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alignment": 0}, "alignment: expected at least 1, got 0"),
        ({"history": -1}, "history: expected at least 0"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(PlanningError, match=message):
        WeightedIntervalGraphColoring(**arguments)


def test_time_does_not_run_backwards():
    graph = WeightedIntervalGraphColoring()
    graph.open(1, at=5)
    with pytest.raises(PlanningError, match="a time of at least 5"):
        graph.open(1, at=4)
    with pytest.raises(PlanningError, match="at least 0 bytes"):
        graph.open(-1)


def test_history_is_bounded():
    graph = WeightedIntervalGraphColoring(history=3)
    for _ in range(10):
        graph.close(graph.open(8))
    assert len(graph.intervals()) == 3
    assert graph.patterns().intervals == 3


def test_repr():
    graph = WeightedIntervalGraphColoring()
    graph.close(graph.open(100))
    graph.open(50)
    assert repr(graph) == "<WeightedIntervalGraphColoring: 1 live, height 100>"
