"""What the strategies draw is what it says, and every shape has its shape."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_toys import ForgetsToWait, StreamToy
from toys import PLANTED, RoundsDown, ToyPool

from smartpool.driver import ModelDriver
from smartpool.driver.faults import CALLS
from smartpool.errors import DriverError
from smartpool.planner import plan
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.testing import (
    Contract,
    Invariant,
    Session,
    Shape,
    StreamSession,
    arm,
    fault_scripts,
    interval_sets,
    play,
    programs,
    requests,
    run_program,
    sizes,
    stream_programs,
    traces,
)
from smartpool.units import MiB

FEW = settings(max_examples=40, deadline=None)
TOY = Contract(factory=ToyPool, capacity=4096, alignment=16)


@FEW
@given(st.data())
def test_sizes_stay_in_their_limits(data):
    assert 1 <= data.draw(sizes(1000)) <= 1000
    assert 0 <= data.draw(sizes(1000, zero=True)) <= 1000
    assert 0 <= data.draw(sizes(TOY)) <= 4097
    no_zero = Contract(factory=ToyPool, zero_size="undefined", max_bytes=50)
    assert data.draw(sizes(no_zero)) in {*range(1, 51), 1 << 62}


@FEW
@given(requests(1000, devices=2))
def test_requests_are_requests(request):
    assert request.size <= 1000
    assert request.device_id in (None, 0, 1)


@FEW
@given(interval_sets(max_intervals=12))
def test_interval_sets_can_be_planned(intervals):
    made = plan(intervals, time_limit=0.02)
    assert made.height >= intervals.load


@FEW
@given(st.data(), st.sampled_from(Shape))
def test_traces_of_every_shape_stay_below_the_capacity_and_play(data, shape):
    trace = data.draw(traces(TOY, shape=shape))
    assert trace.peak_live_bytes <= 4096
    session = Session(TOY)
    play(trace, session)
    session.finish()


@FEW
@given(traces(shape="stack"))
def test_a_stack_frees_the_youngest(trace):
    live = []
    for op, number in zip(trace.op.tolist(), trace.id.tolist(), strict=True):
        if op == 0:
            live.append(number)
        else:
            assert live.pop() == number


@FEW
@given(traces(shape="queue"))
def test_a_queue_frees_the_oldest(trace):
    freed = trace.id[trace.op == 1].tolist()
    assert freed == sorted(freed)


@FEW
@given(traces(shape="steps"))
def test_steps_free_everything(trace):
    assert (trace.op == 1).sum() == trace.allocations


@FEW
@given(fault_scripts())
def test_fault_scripts_can_be_armed_and_a_pool_survives_them(script):
    assert all(fault.call in CALLS for fault in script)
    driver = ModelDriver(64 * MiB)
    pool = AdvancedMemoryPoolManager(driver)
    arm(driver, script)
    for nbytes in (1000, 5 * MiB):
        try:
            pool.free(pool.malloc(nbytes))
        except (DriverError, MemoryError):
            pool.check()
    driver.faults.clear()
    pool.close()


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
