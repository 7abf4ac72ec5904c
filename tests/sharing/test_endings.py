"""What ends when it is over: once, however often and by however many it is tried."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import DriverError
from smartpool.sharing import endings


class Thing:
    """Something that ends after some attempts that fail, or are broken off."""

    def __init__(self, attempts=(), *, over=True):
        self.over = over
        self.attempts = list(attempts)
        self.ends = 0
        self.inside = 0
        endings.keep(self)

    def end(self):
        self.inside += 1
        assert self.inside == 1, "two are at it"
        try:
            endings.sweep()  # a destructor comes in between
            if self.attempts:
                outcome = self.attempts.pop()
                if outcome is not None:
                    raise outcome
                return False
            self.ends += 1
            return True
        finally:
            self.inside -= 1


OUTCOMES = st.sampled_from(
    [None, DriverError("unmap", "ILLEGAL_ADDRESS", {}), KeyboardInterrupt(), OSError(24, "none")]
)


@given(st.lists(st.tuples(st.lists(OUTCOMES, max_size=3), st.booleans()), max_size=5))
def test_each_ends_once_after_as_many_sweeps_as_it_takes(plans):
    things = [Thing(attempts, over=over) for attempts, over in plans]
    interrupts = sum(
        isinstance(outcome, KeyboardInterrupt) for attempts, over in plans if over for outcome in attempts
    )
    for _ in range(4 + interrupts):
        try:
            endings.sweep()
        except KeyboardInterrupt:
            interrupts -= 1
    assert interrupts == 0  # each came out as itself
    assert [thing.ends for thing in things] == [int(thing.over) for thing in things]
    for thing in things:
        thing.over = True
        thing.attempts.clear()
    endings.sweep()
    assert [thing.ends for thing in things] == [1] * len(things)
    assert not endings._kept


@pytest.mark.parametrize("order", [1, -1])
def test_what_waits_for_another_ends_in_the_same_sweep(order):
    class Waiting(Thing):
        def end(self):
            return bool(first.ends) and super().end()

    first, second = (Thing(), Waiting()) if order > 0 else reversed((Waiting(), Thing()))
    endings.sweep()
    assert (first.ends, second.ends) == (1, 1)


def test_who_ends_it_himself_hears_of_failures():
    failing = Thing([DriverError("unmap", "ILLEGAL_ADDRESS", {})])
    with pytest.raises(DriverError):
        endings.end(failing)
    assert endings.end(failing)
    assert not endings.end(failing)


def test_many_threads_sweep():
    things = [Thing([None] * (number % 3)) for number in range(300)]
    start = threading.Barrier(4)
    failures = []

    def work():
        start.wait()
        try:
            for _ in range(5):
                endings.sweep()
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    endings.sweep()
    assert not failures
    assert [thing.ends for thing in things] == [1] * 300
    assert not endings._kept
