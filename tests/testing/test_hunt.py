from __future__ import annotations

import itertools
from types import SimpleNamespace

from attacks import found
from toys import BASE, CAPACITY, ToyPool

from smartpool.testing import (
    Invariant,
    check_allocator,
    hunt,
)


class DependsOnNothing(ToyPool):
    """Overlaps once in a process, and then never again."""

    happened = False

    def malloc(self, nbytes):
        address = super().malloc(nbytes)
        if len(self.live) > 3 and not DependsOnNothing.happened:
            DependsOnNothing.happened = True
            self.live[BASE] = self.live.pop(address)
            return BASE
        return address


def test_what_does_not_happen_twice_is_told_all_the_same():
    error = found(DependsOnNothing, capacity=CAPACITY)
    assert error.invariant is Invariant.NO_OVERLAP
    assert "does not do the same twice" in str(error)


def test_a_seed_repeats_the_search():
    first, second = (check_allocator(ToyPool, capacity=CAPACITY, examples=30, seed=7) for _ in range(2))
    assert (first.steps, first.checked) == (second.steps, second.checked)
    assert check_allocator(ToyPool, capacity=CAPACITY, examples=30, seed=8).steps != first.steps


def test_the_budget_of_seconds_ends_the_search(monkeypatch):
    looks = itertools.count()  # ten looks at the clock a second
    monkeypatch.setattr(hunt, "time", SimpleNamespace(monotonic=lambda: next(looks) / 10))
    report = check_allocator(ToyPool, capacity=CAPACITY, examples=100_000, seconds=3)
    assert 0 < report.examples < 30
