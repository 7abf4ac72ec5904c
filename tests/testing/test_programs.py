from __future__ import annotations

import pytest
from attacks import FEW, TOY
from hypothesis import given, settings
from stream_toys import ForgetsToWait, StreamToy
from toys import RoundsDown

from smartpool.testing import (
    Contract,
    Invariant,
    Session,
    StreamSession,
    programs,
    run_program,
    stream_programs,
)


@FEW
@given(programs(TOY))
def test_programs_run_on_a_sound_pool(steps):
    assert run_program(Session(TOY), steps) is None


@settings(max_examples=200, deadline=None)
@given(stream_programs(4096))
def test_stream_programs_run_on_a_sound_pool(steps):
    contract = Contract(
        factory=StreamToy,
        driver="model:64MiB",
        streams=2,
        capacity=4096,
        record_stream="record_stream",
        close="close",
    )
    assert run_program(StreamSession(contract), steps) is None


@pytest.mark.parametrize(
    ("strategy", "session", "broken"),
    [
        (
            programs(TOY),
            lambda: Session(Contract(factory=RoundsDown, capacity=4096, alignment=16)),
            Invariant.NO_OVERLAP,
        ),
        (
            stream_programs(4096),
            lambda: StreamSession(Contract(factory=ForgetsToWait, driver="model:64MiB", streams=2)),
            Invariant.STREAM_ORDER,
        ),
    ],
)
def test_programs_find_bugs_too(strategy, session, broken):
    seen = set()

    @settings(max_examples=150, deadline=None)
    @given(strategy)
    def search(steps):
        error = run_program(session(), steps)
        seen.add(error and error.invariant)

    search()
    assert broken in seen
