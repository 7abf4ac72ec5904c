"""Machines with rules of their own: as a test case, and through `check_allocator`."""

from __future__ import annotations

import io
import unittest

import pytest
from hypothesis import settings
from hypothesis.stateful import rule, run_state_machine_as_test
from toys import CAPACITY, RoundsDown, ToyPool

from smartpool.testing import AllocatorMachine, Contract, Invariant, ViolationError, check_allocator

FEW = settings(max_examples=20, deadline=None, database=None)


class Resettable(ToyPool):
    """A pool with an operation of its own, which forgets that blocks are live."""

    def compact(self):
        """Put all gaps together, at the beginning: wrong as soon as something lives there."""
        if len(self.live) > 1:
            self.gaps = [(gap[0], gap[1]) for gap in self.gaps[:-1]]


class CompactingMachine(AllocatorMachine):
    contract = Contract(factory=Resettable, capacity=CAPACITY, alignment=16, check="check")

    @rule()
    def compact(self):
        pool = self.session.subject.allocator
        self.session.call("pool.compact()", pool.compact)


class SoundMachine(AllocatorMachine):
    contract = Contract(factory=ToyPool, capacity=CAPACITY, alignment=16, accounting="figures")


SoundMachine.TestCase.settings = FEW
TestSound = SoundMachine.TestCase


def test_a_rule_of_ones_own_is_written_into_the_program():
    with pytest.raises(ViolationError) as caught:
        check_allocator(Resettable, machine=CompactingMachine, capacity=CAPACITY, alignment=16, check="check")
    error = caught.value
    assert error.invariant is Invariant.OWN_CHECK
    assert "pool.compact()\n" in error.program.source
    assert len(error.program) <= 16
    namespace = {"__name__": "program"}
    with pytest.raises(AssertionError):
        exec(error.program.source, {**namespace, **error.program.names})


def test_hypothesis_shows_the_violation_of_a_machine_by_itself():
    class Broken(AllocatorMachine):
        contract = Contract(factory=RoundsDown, capacity=CAPACITY, alignment=16)

    one_bug = settings(FEW, max_examples=100, report_multiple_bugs=False)
    with pytest.raises(ViolationError, match="no overlap"):
        run_state_machine_as_test(Broken, settings=one_bug)


def test_it_is_a_test_case_of_the_standard_library():
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(SoundMachine.TestCase)
    assert unittest.TextTestRunner(stream=io.StringIO()).run(suite).wasSuccessful()
