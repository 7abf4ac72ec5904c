"""What a plan costs in memory: nothing, whenever it arrives and however it fits.

Three things hold exactly. Taking a plan up creates no memory. Nothing grows while a plan holds what is not
live. And what a plan held that was left goes back to the heap, as far as nothing is live there. So a program
reserves no more with plans than without: where no byte is lost to edges, exactly; elsewhere up to the
luck of one request, which finds its place in one run and not in the other.
"""

from __future__ import annotations

import threading
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartpool import SmartPool
from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import StepError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.steps import stepping
from smartpool.steps.planning import Planning
from smartpool.trace import Trace
from smartpool.units import GiB, KiB, MiB

TRACES = Path(__file__).parents[1] / "data" / "traces"
CHUNK = 8 * MiB  # the largest of `balanced` as long as less than 256 MiB are live


class WatchedDriver(ModelDriver):
    """A device that is asked for memory only when no plan holds any that is not live."""

    pool: AdvancedMemoryPoolManager | None = None
    beginning = False

    def create_chunk(self, size):
        assert not self.beginning, "a plan was made room for by new memory"
        if self.pool is not None:
            for step in self.pool.steps.held:
                idle = [
                    address for address, _ in step.region.blocks() if address not in self.pool.slow_path.live
                ]
                assert step.left, "the heap grows beside a plan"
                assert not idle, "the heap grows beside memory that a plan left"
        return super().create_chunk(size)


class Program:
    """Plays steps on a pool, and notes what it reserves after each request."""

    def __init__(self, *, planned, policy="balanced", capacity=8 * GiB):
        self.driver = WatchedDriver(capacity)
        config = SmartPoolConfig(enable_predictive_allocation=planned, policy=policy)
        self.pool = self.driver.pool = AdvancedMemoryPoolManager(self.driver, config)
        self.reserved = [0]

    def take(self, nbytes, stream=None):
        pointer = self.pool.malloc(nbytes, stream)
        self.reserved.append(self.pool.reserved_bytes)
        return pointer

    def begin(self, name="step"):
        self.driver.beginning = True
        try:
            self.pool.begin_step(name)
        finally:
            self.driver.beginning = False

    def step(self, body, name="step", *, beside=(), outlive=False):
        """Play one repetition of (bytes, after how many requests it is freed); return what outlives it."""
        self.begin(name)
        live = {}
        for number, (nbytes, lifetime) in enumerate(body):
            for due in [due for due in live if due[0] <= number]:
                self.pool.free(live.pop(due))
            live[number + lifetime, number] = self.take(nbytes)
            if number == len(body) // 2:
                self.on_a_thread(beside)
        kept = [pointer for (due, _), pointer in live.items() if outlive and due > len(body) + 2]
        for pointer in live.values():
            if pointer not in kept:
                self.pool.free(pointer)
        self.pool.end_step()
        return kept

    def on_a_thread(self, sizes):
        def ask():
            for pointer in [self.take(nbytes) for nbytes in sizes]:
                self.pool.free(pointer)

        thread = threading.Thread(target=ask)
        if sizes:
            thread.start()
            thread.join()

    @property
    def peaks(self):
        """The most that was reserved up to each request."""
        return list(accumulate(self.reserved, max))


@pytest.fixture
def waiting(monkeypatch):
    """Plans that are not made before somebody runs them: the slowest planner, or the fastest."""
    plannings: list[Planning] = []

    def put_off(planning):
        plannings.append(planning)

    monkeypatch.setattr(stepping, "AT_ONCE", 0)
    monkeypatch.setattr(Planning, "start", put_off)
    return plannings


def programs(sizes):
    """Steps that repeat themselves or do not, and what happens around them."""
    request = st.tuples(st.sampled_from(sizes), st.integers(1, 12))
    bodies = st.lists(st.lists(request, min_size=1, max_size=20), min_size=1, max_size=3)
    few = st.lists(st.sampled_from(sizes), max_size=2)
    turn = st.fixed_dictionaries({
        "body": st.integers(0, 2),
        "name": st.sampled_from(["step", "step", "other"]),
        "plans_arrive": st.booleans(),
        "trim": st.sampled_from([False, False, False, True]),
        "held": few,
        "beside": few,
        "outlive": st.booleans(),
    })  # fmt: skip
    return st.tuples(bodies, st.lists(turn, min_size=3, max_size=9))


def play(program, plannings, *, planned, policy):
    bodies, turns = program
    player = Program(planned=planned, policy=policy)
    kept = []
    plannings.clear()
    for turn in turns:
        if turn["plans_arrive"]:
            while plannings:
                plannings.pop().run()
        held = [player.take(nbytes) for nbytes in turn["held"]]
        if turn["trim"]:
            player.pool.trim(wait=True)
        body = bodies[turn["body"] % len(bodies)]
        late = player.step(body, turn["name"], beside=turn["beside"], outlive=turn["outlive"])
        player.pool.check()
        for pointer in (*held, *kept):
            player.pool.free(pointer)
        kept = late
    for pointer in kept:
        player.pool.free(pointer)
    player.pool.trim(wait=True)
    assert player.pool.reserved_bytes == 0
    player.pool.check()
    return player


EXACT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@EXACT
@given(program=programs([2 * MiB, 4 * MiB, 6 * MiB, 10 * MiB, 16 * MiB]))
def test_where_no_byte_is_lost_to_edges_plans_reserve_nothing_more(waiting, program):
    """Sizes of whole chunks, the policy with the smallest: what is free can be had, wherever it lies."""
    plain = play(program, waiting, planned=False, policy="tight")
    planned = play(program, waiting, planned=True, policy="tight")
    assert all(more <= most for more, most in zip(planned.peaks, plain.peaks, strict=True))


SIZES = [512, 3 * KiB, 70 * KiB, 300 * KiB, 1 * MiB + 512, 3 * MiB, 5 * MiB, 20 * MiB]


@EXACT
@given(program=programs(SIZES))
def test_plans_reserve_no_more_than_the_luck_of_one_request(waiting, program):
    plain = play(program, waiting, planned=False, policy="balanced")
    planned = play(program, waiting, planned=True, policy="balanced")
    luck = max(SIZES) + CHUNK
    assert all(more <= most + luck for more, most in zip(planned.peaks, plain.peaks, strict=True))


# ---------------------------------------------------------------------- the planner's time

BODY = [(20 * MiB, 3), (300 * KiB, 9), (5 * MiB, 2), (1 * MiB + 512, 12), (16 * MiB, 4), (3 * MiB, 1)] * 5
OTHER = [(nbytes + 3 * MiB, 1 + lifetime % 5) for nbytes, lifetime in reversed(BODY)]


def repetitions(player, *, before_each):
    for number in range(8):
        before_each(number)
        player.step(BODY)
    for _ in range(4):
        player.step(OTHER)
    player.step(BODY)
    return player


@pytest.mark.parametrize("arrives_before", [1, 2, 5, 7, None], ids=lambda number: f"before {number}")
def test_the_planning_thread_is_as_slow_as_it_likes(monkeypatch, arrives_before):
    """What it plans was recorded long ago when it arrives, in a pool that did other things meanwhile."""
    may_plan, planned_first = threading.Event(), threading.Event()
    make_plan = stepping.make_plan

    def slowly(*request, **options):
        may_plan.wait()
        plan = make_plan(*request, **options)
        planned_first.set()
        return plan

    monkeypatch.setattr(stepping, "AT_ONCE", 0)
    monkeypatch.setattr(stepping, "make_plan", slowly)

    def let_it_arrive(number):
        if number == arrives_before:
            may_plan.set()
            assert planned_first.wait(30)
            player.pool.steps.wait_for_plan("step")

    player = Program(planned=True)
    try:
        repetitions(player, before_each=let_it_arrive)
    finally:
        may_plan.set()
    plain = repetitions(Program(planned=False), before_each=lambda _: None)
    assert player.peaks[-1] <= plain.peaks[-1] + CHUNK
    steps = player.pool.snapshot().steps
    assert steps.planned >= (0 if arrives_before is None else 8 - arrives_before)
    assert steps.hits >= steps.planned * len(BODY) // 2


@pytest.mark.parametrize("at", [0, 5, 29])
def test_a_plan_that_arrives_in_the_middle_of_a_step_waits_for_the_next(waiting, at):
    player = Program(planned=True)
    player.step(BODY)
    player.begin()
    for number, (nbytes, _) in enumerate(BODY):
        if number == at:
            waiting.pop().run()
        player.pool.free(player.take(nbytes))
    player.pool.end_step()
    assert player.pool.snapshot().steps.planned == 0
    reserved = player.pool.reserved_bytes
    player.step(BODY)
    assert player.pool.snapshot().steps.hits == len(BODY)
    assert player.pool.reserved_bytes == reserved


def test_a_tight_loop_of_small_steps_is_planned_from_the_second_on():
    """Whoever ends the first plans it: a thread would not get its turn before the loop is over."""
    with SmartPool("model:1GiB") as pool:
        for _ in range(200):
            with pool.step():
                for pointer in [pool.malloc(1000 * number) for number in range(1, 13)]:
                    pool.free(pointer)
        steps = pool.statistics.devices[0].steps
        assert (steps.recorded, steps.planned, steps.hits, steps.misses) == (1, 199, 199 * 12, 0)


@pytest.mark.parametrize("at_once", [0, 256], ids=["on a thread", "here"])
def test_a_failure_of_the_planner_is_told_once(monkeypatch, at_once):
    """Where it is planned here, by the end of the step; else by the beginning of the next."""

    def fail(*_, **__):
        raise ZeroDivisionError

    pool = AdvancedMemoryPoolManager(ModelDriver(1 * GiB))
    monkeypatch.setattr(stepping, "AT_ONCE", at_once)
    with monkeypatch.context() as broken:
        broken.setattr(stepping, "make_plan", fail)
        pool.begin_step("step")
        pool.free(pool.malloc(MiB))
        if at_once:
            with pytest.raises(ZeroDivisionError):
                pool.end_step()
        else:
            pool.end_step()
            with pytest.raises(StepError, match="planning a step failed") as raised:
                pool.begin_step("step", wait_for_plan=True)
            assert isinstance(raised.value.__cause__, ZeroDivisionError)
    for _ in range(3):
        pool.begin_step("step", wait_for_plan=True)
        pool.free(pool.malloc(MiB))
        pool.end_step()
    assert pool.snapshot().steps.hits == 2


# ---------------------------------------------------------------------- recorded programs


@pytest.mark.parametrize("name", ["dataframe-mix", "multistream-mix", "gpt2-train"])
def test_twenty_passes_of_a_recorded_program(name):
    """Each pass a step: what the first reserved is enough for all."""
    trace = Trace.load(TRACES / f"{name}.npz")
    numbers, sizes = trace.allocation_numbers().tolist(), trace.size.tolist()
    events = list(zip(trace.op.tolist(), numbers, sizes, strict=True))
    peaks = {}
    for planned in (False, True):
        player = Program(planned=planned, capacity=141 * GiB)
        for number in range(20):
            live = {}
            if planned:
                player.driver.beginning = True
                player.pool.begin_step("pass", wait_for_plan=True)
                player.driver.beginning = False
            for op, allocation, nbytes in events:
                if op:
                    player.pool.free(live.pop(allocation))
                else:
                    live[allocation] = player.pool.malloc(nbytes)
            for pointer in live.values():
                player.pool.free(pointer)
            if planned:
                player.pool.end_step()
            peaks.setdefault(number, {})[planned] = player.pool.peak_reserved_bytes
    assert peaks[0][True] == peaks[0][False]
    assert peaks[19][True] == peaks[0][True] <= peaks[19][False]
    assert player.pool.snapshot().steps.hits == 19 * trace.allocations


def test_a_recorded_training_is_served_from_plans_beside_its_weights():
    """Where the weights lie in between, the plan is made lower, and a few requests are left to the heap."""
    trace = Trace.load(TRACES / "gpt2-train.npz")
    numbers, sizes = trace.allocation_numbers().tolist(), trace.size.tolist()
    of_a_step, requests, live = 2040, 0, {}
    first = trace.allocations % of_a_step
    player = Program(planned=True, capacity=141 * GiB)
    hits = []
    for op, allocation, nbytes in zip(trace.op.tolist(), numbers, sizes, strict=True):
        if op:
            player.pool.free(live.pop(allocation))
            continue
        if requests >= first and (requests - first) % of_a_step == 0:
            if player.pool.steps.active:
                player.pool.end_step()
                hits.append(player.pool.snapshot().steps.hits)
            player.driver.beginning = True
            player.pool.begin_step("training", wait_for_plan=True)
            player.driver.beginning = False
        requests += 1
        live[allocation] = player.pool.malloc(nbytes)
    assert hits[-1] - hits[-2] == hits[-2] - hits[-3] == of_a_step
    assert player.pool.peak_reserved_bytes < 1.01 * trace.peak_live_bytes


# ---------------------------------------------------------------------- what is left


def left_with_one_live(pool, *, keep):
    """Plan a step, and leave it in the middle of the next one, while one of its blocks is live."""
    for repetition in range(2):
        pool.begin_step("step")
        blocks = [pool.malloc(nbytes) for nbytes in (30 * MiB, 20 * MiB, 10 * MiB)]
        if repetition:
            break
        for pointer in blocks:
            pool.free(pointer)
        pool.end_step()
    reserved = pool.reserved_bytes
    for number, pointer in enumerate(blocks):
        if number != keep:
            pool.free(pointer)
    assert pool.snapshot().steps.planned_bytes == 60 * MiB
    pool.free(pool.malloc((30, 30, 50)[keep] * MiB))  # more than is free beside the region
    assert pool.reserved_bytes == reserved
    return blocks[keep]


@pytest.fixture
def scattered():
    """A pool of 64 MiB that are free, in pieces of at most 16, between blocks of 2."""
    pool = AdvancedMemoryPoolManager(ModelDriver(1 * GiB), SmartPoolConfig(policy="tight"))
    blocks = [pool.malloc(nbytes * MiB) for nbytes in (16, 2) * 4]
    for pointer in blocks[::2]:
        pool.free(pointer)
    pool.flush()
    yield pool
    for pointer in blocks[1::2]:
        pool.free(pointer)
    pool.check()
    pool.trim(wait=True)
    assert pool.reserved_bytes == 0


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_what_a_plan_left_is_the_heaps_but_for_what_is_live(keep):
    with AdvancedMemoryPoolManager(ModelDriver(1 * GiB)) as pool:
        kept = left_with_one_live(pool, keep=keep)
        pool.check()
        assert pool.snapshot().steps.planned_bytes == (30, 20, 10)[keep] * MiB
        assert pool.snapshot().steps.left == 1
        pool.free(kept)
        pool.end_step()
        assert pool.snapshot().steps.planned_bytes == 0
        pool.check()


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_what_a_plan_left_in_a_window_goes_back_to_the_device(scattered, keep):
    """Though its block is live, and shown by a mapping that showed all of the region."""
    pool, size = scattered, (30, 20, 10)[keep] * MiB
    kept = left_with_one_live(pool, keep=keep)
    assert pool.snapshot().steps.planned_bytes == size
    pool.check()
    pool.trim(wait=True)
    assert pool.reserved_bytes <= size + (8 + 2 * 2) * MiB  # the small blocks, and the edges of its own
    pool.check()
    pool.end_step()
    pool.free(kept)
    pool.trim(wait=True)
    assert pool.reserved_bytes == 8 * MiB
    pool.check()


def test_a_free_on_another_stream_of_what_was_left_is_waited_for():
    driver = ModelDriver(1 * GiB)
    with AdvancedMemoryPoolManager(driver) as pool:
        stream = driver.create_stream()
        kept = left_with_one_live(pool, keep=0)
        pool.record_stream(kept, stream)
        driver.pause(stream)
        driver.fill(kept, 1, 30 * MiB, stream)
        pool.free(kept)
        pool.end_step()
        again = pool.malloc(55 * MiB)
        event = driver.create_event()
        driver.record_event(event, driver.default_stream)
        assert not driver.event_done(event)
        driver.resume(stream)
        pool.free(again)


def test_memory_is_not_mapped_ahead_for_a_plan_that_idles():
    config = SmartPoolConfig(expected_bytes=200 * MiB)
    with AdvancedMemoryPoolManager(ModelDriver(1 * GiB), config) as pool:
        for _ in range(2):
            pool.begin_step("step")
            pool.free(pool.malloc(40 * MiB))
            pool.end_step()
        assert pool.snapshot().steps.planned_bytes == 40 * MiB
        assert pool.maintenance.map_ahead() == 0
        pool.trim(wait=True)
        held = pool.malloc(40 * MiB)
        assert pool.maintenance.map_ahead() > 0  # what is live is another matter
        pool.free(held)


def test_a_step_of_which_all_outlived_the_first_repetition_is_recorded_again():
    with AdvancedMemoryPoolManager(ModelDriver(1 * GiB)) as pool:
        weights = []
        for number in range(4):
            pool.begin_step("step")
            if number == 0:
                weights = [pool.malloc(3 * MiB) for _ in range(4)]
            for pointer in [pool.malloc(5 * MiB) for _ in range(4)] if number else ():
                pool.free(pointer)
            pool.end_step()
        steps = pool.snapshot().steps
        assert (steps.recorded, steps.hits) == (2, 8)
        for pointer in weights:
            pool.free(pointer)


def test_a_plan_of_no_use_is_tried_ever_less_often():
    """Each repetition asks for something beside it that would make the heap grow."""
    with AdvancedMemoryPoolManager(ModelDriver(1 * GiB)) as pool:
        for number in range(60):
            pool.trim(wait=True)
            pool.begin_step("step")
            blocks = [pool.malloc(nbytes) for nbytes in (30 * MiB, 20 * MiB)]
            beside = pool.malloc((number + 1) * 700 * KiB)
            for pointer in (*blocks, beside):
                pool.free(pointer)
            pool.end_step()
            pool.check()
        steps = pool.snapshot().steps
        assert steps.recorded + steps.left + steps.planned <= 20


def test_an_exception_in_a_step_leaves_its_plan_and_its_memory_as_they_are():
    with SmartPool("model:1GiB") as pool:

        def once(*, fail):
            with pool.step():
                pointers = [pool.malloc(nbytes) for nbytes in (30 * MiB, 20 * MiB, 10 * MiB)]
                if fail:
                    held.append(pointers.pop())
                for pointer in pointers:
                    pool.free(pointer)
                if fail:
                    raise ZeroDivisionError

        held = []
        for fail in (False, False, True, False, False):
            if fail:
                with pytest.raises(ZeroDivisionError):
                    once(fail=True)
            else:
                once(fail=False)
            pool.check()
        assert pool.managers[0].reserved_bytes <= 72 * MiB
        pool.free(held.pop())
