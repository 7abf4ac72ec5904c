"""OrderedIntegers against a plain sorted list."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import smartpool.containers.ordered as module
from smartpool.containers.ordered import OrderedIntegers
from smartpool.errors import InvariantError

NUMBERS = st.integers(0, 200)


class OrderedMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.load, module.LOAD = module.LOAD, 4  # small, so that lists split and vanish

    def teardown(self):
        module.LOAD = self.load

    @initialize(values=st.sets(NUMBERS))
    def start(self, values):
        self.ordered, self.model = OrderedIntegers(values), sorted(values)

    @rule(value=NUMBERS)
    def add(self, value):
        if value not in self.model:
            self.ordered.add(value)
            insort(self.model, value)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        value = data.draw(st.sampled_from(self.model))
        self.ordered.remove(value)
        self.model.remove(value)

    @rule(value=NUMBERS)
    def remove_absent(self, value):
        if value not in self.model:
            with pytest.raises(KeyError):
                self.ordered.remove(value)

    @rule(bound=st.integers(-5, 205))
    def search(self, bound):
        at, behind = bisect_left(self.model, bound), bisect_right(self.model, bound)
        assert self.ordered.ceiling(bound) == (self.model[at] if at < len(self.model) else None)
        assert self.ordered.floor(bound) == (self.model[behind - 1] if behind else None)
        assert list(self.ordered.from_(bound)) == self.model[at:]
        assert (bound in self.ordered) == (bound in self.model)

    @invariant()
    def agrees(self):
        self.ordered.check()
        assert list(self.ordered) == self.model
        assert list(reversed(self.ordered)) == self.model[::-1]
        assert len(self.ordered) == len(self.model)


TestOrdered = OrderedMachine.TestCase
TestOrdered.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_check_finds_disorder():
    ordered = OrderedIntegers(range(10))
    ordered._lists[0].reverse()
    with pytest.raises(InvariantError):
        ordered.check()
