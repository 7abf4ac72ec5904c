from __future__ import annotations

from attacks import FEW, TOY
from hypothesis import given
from hypothesis import strategies as st

from smartpool.testing import (
    Session,
    Shape,
    play,
    traces,
)


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
