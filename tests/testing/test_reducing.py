from __future__ import annotations

from hypothesis import given, settings
from toys import PLANTED

from smartpool.testing import (
    Contract,
    Session,
    programs,
    run_program,
)


def test_a_program_is_run_again_on_the_allocator_that_it_broke():
    planted = PLANTED[0]
    contract = Contract(factory=planted.bug, capacity=4096, alignment=16)
    steps = programs(contract)

    @settings(max_examples=150, deadline=None)
    @given(steps)
    def search(drawn):
        error = run_program(Session(contract), drawn)
        if error is not None:
            again = run_program(Session(contract), error.program.steps)
            assert again is not None
            assert again.invariant is error.invariant

    search()
