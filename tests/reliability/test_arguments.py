"""What a caller may get wrong: one clear error, of ours, that says what was expected and what came."""

import math
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import smartpool
from smartpool.errors import (
    InvalidRequestError,
    InvalidSizeError,
    PlanningError,
    RequestTooLargeError,
    SmartPoolError,
)
from smartpool.planner import IntervalSet, solve
from smartpool.trace import Recorder
from smartpool.trace.baselines import make_baseline
from smartpool.trace.replay import replay
from smartpool.units import format_size

GOOD = ([0, 2], [3, 6], [10, 20])
SET = IntervalSet.from_arrays(*GOOD)


@pytest.mark.parametrize(
    ("arguments", "named", "error", "message"),
    [
        (([0],), {}, InvalidRequestError, "got no end"),
        (([0], [1]), {}, InvalidRequestError, "got no size"),
        ((SET, [1]), {}, InvalidRequestError, "an IntervalSet alone"),
        ((SET,), {"alignment": 512}, InvalidRequestError, "an IntervalSet alone"),
        (GOOD, {"capacity": "much"}, InvalidSizeError, "expected a size such as .* got 'much'"),
        (
            ([(0, 3, 10), (2, 6, 20)],),
            {},
            InvalidRequestError,
            r"got no end; of rows, .* plan\(\*zip\(\*rows\)\)",
        ),
        ((np.zeros((4, 3)),), {}, InvalidRequestError, "of rows, pass the columns"),
        ((SET,), {"rests": [[], []]}, InvalidRequestError, "an IntervalSet alone"),
        (GOOD, {"capacity": -1}, InvalidRequestError, "capacity: .* got -1"),
        (GOOD, {"capacity": 1.5}, InvalidRequestError, "capacity"),
        (GOOD, {"time_limit": "1"}, InvalidRequestError, "time_limit: expected seconds"),
        (GOOD, {"time_limit": -1}, InvalidRequestError, "time_limit"),
        (GOOD, {"time_limit": math.nan}, InvalidRequestError, "time_limit"),
        (GOOD, {"seed": None}, InvalidRequestError, "seed: expected an integer"),
        (GOOD, {"seed": 0.5}, InvalidRequestError, "seed"),
        (GOOD, {"progress": 1}, InvalidRequestError, "progress: expected a function"),
        (GOOD, {"stop": True}, InvalidRequestError, "stop: expected a function"),
        (([0.5], [1], [1]), {}, PlanningError, "expected integers"),
        ((["a"], [1], [1]), {}, PlanningError, "expected integers"),
        (([[0]], [1], [1]), {}, PlanningError, "one dimension"),
        (([0], [1, 2], [1]), {}, PlanningError, "end: expected 1 values"),
    ],
)
def test_plan(arguments, named, error, message):
    with pytest.raises(error, match=message):
        smartpool.plan(*arguments, **named)


@pytest.mark.parametrize("capacity", [30, "30", "30 B", np.int64(29), 10**30])
def test_plan_says_whether_it_fits(capacity):
    result = smartpool.plan(*GOOD, capacity=capacity)
    assert result.fits is (result.height <= result.capacity == smartpool.parse_size(capacity))
    assert smartpool.plan(*GOOD).fits is None


def test_plan_takes_what_is_right():
    assert smartpool.plan(SET, capacity=np.int64(100), time_limit=np.float32(1), seed=np.int8(3)).height == 30
    assert smartpool.plan(*GOOD, time_limit=0).height == 30
    with pytest.raises(InvalidRequestError, match="intervals: expected an IntervalSet"):
        solve([1, 2])


@pytest.fixture
def pool():
    with smartpool.SmartPool("model:1GiB") as pool:
        yield pool


@pytest.mark.parametrize("keep", [-1, 1.5, "1GiB", None, True])
def test_trim(pool, keep):
    pool.free(pool.malloc(1000))
    before = pool.managers[0].reserved_bytes
    for trim in (pool.trim, pool.managers[0].trim):
        with pytest.raises(InvalidSizeError, match="expected a size"):
            trim(keep)
    assert pool.managers[0].reserved_bytes == before
    assert pool.trim(np.int64(0)) == before


def test_integers_of_numpy_are_integers_wherever_one_is_taken(pool):
    one = np.int64(1)
    stream = np.int64(pool.managers[0].driver.create_stream())
    pool.start_tracking(stack_depth=one)
    with pool.profile("scope") as scope:
        pool.free(np.int64(pool.malloc(np.uint8(100), stream)), stream)
    assert scope.record(np.int8(0)).allocations == 1
    pointer = pool.managers[0].malloc_aligned(one, np.int64(1 << 21), stream)
    assert pointer % (1 << 21) == 0
    assert pool.managers[0].stream_of(pointer) == stream
    pool.free(pointer)
    assert pool.empty(one, alignment=np.int64(4096), stream=stream).nbytes == 4
    result = pool.allocate_memory(
        smartpool.AllocationRequest(size=one, device_id=one - 1, alignment=512 * one)
    )
    pool.deallocate_memory(np.int64(result.allocation_id))
    assert pool.trim(one - 1) > 0
    assert smartpool.DebugOptions(guard_bytes=512 * one) == smartpool.DebugOptions(guard_bytes=512)
    with smartpool.SmartPool("model:1GiB", debug=True) as careful:
        careful.free(careful.managers[0].malloc_aligned(one, np.int64(4096)))
    recorder = Recorder(limit=one)
    recorder.allocated(512, 512, 0)
    run = replay(
        recorder.trace(name="one"), make_baseline("pytorch", pool.managers[0].driver), passes=one + one
    )
    assert run.passes == 2


@pytest.mark.parametrize("debug", [False, True])
@given(
    anything=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2) | st.dictionaries(st.integers(), st.none(), max_size=1)
    | st.just(10**5000)
)  # fmt: skip
@settings(max_examples=50)
def test_what_is_no_pointer_is_no_pointer_for_anyone(debug, anything):
    with smartpool.SmartPool("model:1GiB", debug=debug) as pool:
        manager, held = pool.managers[0], pool.malloc(1000)
        assert not manager.owns(anything)
        calls = [pool.free, manager.free, manager.stream_of]
        calls += [partial(manager.record_stream, stream=0), partial(manager.order_after, stream=0)]
        for call in calls:
            with pytest.raises(SmartPoolError, match="address"):
                call(anything)
        with suppress(SmartPoolError):
            assert not manager.pieces_of(anything)
        pool.free(np.int64(held))


@pytest.mark.parametrize("alignment", [0, -512, 3, 1.5, "512", True, None, np.float32(512), -(10**400)])
def test_alignment(pool, alignment):
    for manager in (pool.managers[0], smartpool.SmartPool("model:1GiB", debug=True).managers[0]):
        with pytest.raises(InvalidRequestError, match="alignment: expected a power of two, got"):
            manager.malloc_aligned(100, alignment)


@pytest.mark.parametrize("name", [None, 3, ["train"], b"train"])
def test_step(pool, name):
    with (
        pytest.raises(InvalidRequestError, match="name: expected the name of a kind of step"),
        pool.step(name),
    ):
        raise AssertionError("not entered")
    with pool.step("train"):
        pool.free(pool.malloc(10))


@pytest.mark.parametrize("nbytes", ["10", None, 1.5, [1], math.inf])
def test_format_size(nbytes):
    with pytest.raises(InvalidSizeError, match="expected a number of bytes as an integer, got"):
        format_size(nbytes)


def test_format_size_takes_integers_of_all_sorts():
    assert [format_size(np.uint64(1 << 40)), format_size(-2048), format_size(0)] == ["1 TiB", "-2 KiB", "0 B"]


@pytest.mark.parametrize("nbytes", [1 << 63, 10**30, 10**400, 10**5000], ids=["63", "100", "1328", "16609"])
def test_requests_that_no_address_space_holds(pool, nbytes):
    """No float holds the larger ones, and Python refuses to print the largest."""
    for request in (pool.malloc, pool.allocate, pool.empty):
        with pytest.raises(RequestTooLargeError, match="1 GiB"):
            request(nbytes)
    pool.check()


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.malloc("1"),
        lambda pool: pool.malloc(1, "stream"),
        lambda pool: pool.free(None),
        lambda pool: pool.free("0"),
        lambda pool: pool.empty("3"),
        lambda pool: pool.empty((2, -1)),
        lambda pool: pool.empty(3, "float99"),
        lambda pool: pool.empty(3, alignment=3),
        lambda pool: pool.empty(3, device_id=7),
        lambda pool: pool.allocate(-1),
        lambda pool: pool.allocate_memory(5),
        lambda pool: pool.deallocate_memory(None),
        lambda pool: pool.recording(9),
        lambda pool: pool.capture(None, memory=3).__enter__(),
        lambda pool: pool.start_tracking(stack_depth="3"),
        lambda pool: pool.remove_out_of_memory_callback(print),
        lambda pool: pool.add_out_of_memory_callback(3),
        lambda _: smartpool.SmartPool("nothing:0"),
        lambda _: smartpool.SmartPool(["cpu", 3]),
        lambda _: smartpool.SmartPool("cpu", {"policy": "quick"}),
        lambda _: smartpool.SmartPoolConfig(policy="quick"),
        lambda _: smartpool.GPUMemoryOptimizer({"device_id": 0}),
        lambda _: smartpool.AllocationRequest(size="1"),
    ],
)
def test_every_face_answers_with_an_error_of_ours(pool, call):
    with pytest.raises(SmartPoolError) as caught:
        call(pool)
    assert "expected" in str(caught.value) or "; use " in str(caught.value)
    pool.check()
