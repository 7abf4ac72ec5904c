"""Recognition online: when the pool watches, what it serves by itself, and when it lets go."""

from __future__ import annotations

import gc
import threading

import pytest

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import ConfigurationError, OutOfMemoryError
from smartpool.pool.bins import Bin, LiveTable
from smartpool.pool.graphs.captures import GraphMemory, begin_capture, end_capture
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.steps import recognition
from smartpool.pool.steps.faces import FaceBin
from smartpool.pool.steps.watching import Watch, busiest_thread, sequences
from smartpool.units import GiB, KiB

STEP = [(4 * KiB + 512 * number) << (number % 12) for number in range(60)]


def open_pool(after=0, **config):
    pool = AdvancedMemoryPoolManager(ModelDriver(8 * GiB), SmartPoolConfig(recognise_after=after, **config))
    pool._steps._recognition.synchronous = True
    return pool


def play(pool, step=STEP, times=1, stream=None):
    """Each block lives for five requests; bins are emptied now and then, as where memory is short."""
    for _ in range(times):
        held = []
        for number, nbytes in enumerate(step):
            held.append(pool.malloc(nbytes, stream))
            if len(held) > 5:
                pool.free(held.pop(0))
            if number % 10 == 0:
                pool.flush()
        for pointer in held:
            pool.free(pointer)


def steps_of(pool):
    return pool._steps.statistics


def faces(pool):
    return [bin_ for bins in pool._bins_of.values() for bin_ in bins.values() if isinstance(bin_, FaceBin)]


def test_a_repetition_is_recognised_and_served_without_a_search():
    with open_pool() as pool:
        play(pool, times=120)
        assert steps_of(pool).recognised == 1
        before = pool.snapshot()
        play(pool, times=5)
        after = pool.snapshot()
        assert after.searches == before.searches
        assert after.steps.hits - before.steps.hits == 5 * len(STEP)
        assert (after.steps.misses, after.steps.left) == (0, 0)
        assert after.steps.planned >= 5
        pool.check()


@pytest.mark.parametrize(
    "config", [{"after": None}, {"enable_predictive_allocation": False}, {"after": 10**9}]
)
def test_it_can_be_switched_off_and_put_off(config):
    with open_pool(**config) as pool:
        play(pool, times=120)
        assert steps_of(pool).watched == 0
        assert pool._live.__class__ is LiveTable


@pytest.mark.parametrize("bad", [-1, 1.5, True, "soon"])
def test_a_bad_patience(bad):
    with pytest.raises(ConfigurationError, match="recognise_after"):
        SmartPoolConfig(recognise_after=bad)


def test_what_finds_its_bin_is_not_watched():
    with open_pool() as pool:
        for _ in range(20_000):
            pool.free(pool.malloc(1000))
        assert steps_of(pool).watched == 0


def test_what_does_not_repeat_costs_one_watch_and_a_rest():
    """The bound: ten searches follow for each request that was watched."""
    with open_pool() as pool:
        live = []
        for number in range(60_000):
            live.append(pool.malloc(512 * (number * 7919 % 4099)))
            if len(live) > 20:
                pool.free(live.pop(0))
            if number % 20 == 0:
                pool.flush()
        steps = steps_of(pool)
        assert steps.recognised == 0
        assert 0 < steps.watched <= recognition._SHORT + 100 + 2 * pool.searches / recognition.REST
        assert pool._live.__class__ is LiveTable
        assert not faces(pool)


def test_a_watch_ends_by_itself_where_nothing_hurts_any_more():
    with open_pool() as pool:
        play(pool, times=20)
        assert pool._live.__class__ is not LiveTable
        pool.free(pool.malloc(1000))
        for _ in range(recognition._SHORT):
            pool.free(pool.malloc(1000))
        assert pool._live.__class__ is LiveTable


def test_it_lets_go_when_the_program_does_something_else_and_comes_back():
    with open_pool() as pool:
        play(pool, times=200)  # long enough to make up for the watch
        other = [nbytes + 512 for nbytes in reversed(STEP)]
        play(pool, other, times=10)
        assert (steps_of(pool).left, steps_of(pool).planned_bytes) == (1, 0)
        assert not [face for face in faces(pool) if face]  # doors alone are left
        play(pool, times=60)
        before = steps_of(pool)
        assert before.recognised == 2
        play(pool)
        assert steps_of(pool).hits - before.hits == len(STEP)
        assert steps_of(pool).watched < 3 * recognition._SHORT


def test_a_plan_that_was_left_too_soon_is_followed_by_a_rest():
    with open_pool() as pool:
        play(pool, times=80)
        assert steps_of(pool).recognised == 1
        play(pool, [nbytes + 512 for nbytes in reversed(STEP)], times=10)
        watched = steps_of(pool)
        assert watched.left == 1
        assert watched.hits < watched.watched // 2
        play(pool, times=50)
        assert steps_of(pool).watched == watched.watched


def test_the_region_is_made_of_what_is_free():
    with open_pool() as pool:
        play(pool, times=3)
        before = pool.peak_reserved_bytes
        play(pool, times=150)
        assert steps_of(pool).recognised
        assert pool.peak_reserved_bytes == before


def test_the_region_goes_for_a_request_that_needs_its_memory():
    with open_pool() as pool:
        play(pool, times=120)
        assert steps_of(pool).planned_bytes
        pool.free(pool.malloc(8 * GiB))
        assert (steps_of(pool).planned_bytes, steps_of(pool).left) == (0, 1)
        assert not faces(pool)
        with pytest.raises(OutOfMemoryError):
            pool.malloc(8 * GiB + 1)
        pool.check()


def test_the_background_optimiser_lets_go_of_a_program_that_pauses():
    with open_pool(idle_age=60.0) as pool:
        play(pool, times=120)
        assert steps_of(pool).planned_bytes
        for now in range(0, 1000, 10):
            pool.keep_up(float(now))
        assert steps_of(pool).planned_bytes == 0
        assert pool.reserved_bytes == 0
        play(pool)
        pool.check()


def test_who_marks_steps_is_not_watched():
    with open_pool() as pool:
        play(pool, times=120)
        assert steps_of(pool).planned_bytes
        pool.begin_step("mine")
        play(pool)
        pool.end_step()
        before = steps_of(pool).watched
        play(pool, times=120)
        assert steps_of(pool).watched == before
        assert steps_of(pool).recognised == 1


def test_a_repetition_on_another_stream():
    with open_pool() as pool:
        stream = pool.driver.create_stream()
        play(pool, times=150, stream=stream)
        before = pool.snapshot()
        assert before.steps.recognised == 1
        play(pool, times=3, stream=stream)
        assert pool.snapshot().searches == before.searches
        assert steps_of(pool).hits - before.steps.hits == 3 * len(STEP)
        pool.check()


def test_threads_that_take_turns_share_a_plan():
    """As PyTorch does: forward on one thread, backward on another."""
    with open_pool() as pool:
        turns = [threading.Semaphore(0), threading.Semaphore(0)]
        backward = [nbytes + 512 for nbytes in STEP]
        rounds = 130

        def answer():
            for _ in range(rounds):
                turns[0].acquire()
                play(pool, backward)
                turns[1].release()

        thread = threading.Thread(target=answer)
        thread.start()
        for turn in range(rounds):
            if turn == rounds - 3:
                before = pool.snapshot()
            play(pool)
            turns[0].release()
            turns[1].acquire()
        thread.join()
        after = pool.snapshot()
        assert after.steps.recognised == 1
        assert after.searches == before.searches
        assert after.steps.hits - before.steps.hits == 3 * 2 * len(STEP)


def test_another_thread_in_between_is_served_by_the_heap():
    with open_pool() as pool:
        done = threading.Event()

        def disturb():
            number = 0
            while not done.wait(0.0005):
                number += 1
                pool.free(pool.malloc(STEP[number * 7 % len(STEP)]))

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            play(pool, times=200)
            before = steps_of(pool)
            play(pool, times=3)
        finally:
            done.set()
            thread.join()
        assert before.recognised >= 1
        assert steps_of(pool).hits - before.hits >= 2 * len(STEP)
        pool.check()


def test_a_failure_of_the_search_for_a_period_is_no_failure_of_a_request(monkeypatch, caplog):
    monkeypatch.setattr(recognition, "agreeing_periods", lambda sizes: 1 / 0)
    with open_pool() as pool:
        play(pool, times=200)
        assert steps_of(pool).recognised == 0
        assert pool._live.__class__ is LiveTable
    assert "looking for repetition failed" in caplog.text


@pytest.mark.parametrize("times", [20, 120])
def test_closing_while_it_watches_or_serves(times):
    pool = open_pool()
    play(pool, times=times)
    pointer = pool.malloc(STEP[0])
    pool.close()
    assert not pool._steps.attentive
    pool.free(pointer)
    assert pool.reserved_bytes == 0


@pytest.mark.parametrize("times", [20, 120])
def test_the_memory_of_a_pool_that_nobody_holds_goes_at_once(times):
    gc.disable()
    try:
        pool = open_pool()
        play(pool, times=times)
        driver = pool.driver
        del pool
        assert not any(driver.held().values())
    finally:
        gc.enable()


def test_a_capture_takes_no_planned_memory():
    """It begins while a repetition is served on the very stream, with a slot that is live."""
    with open_pool() as pool:
        stream = pool.driver.create_stream()
        play(pool, times=150, stream=stream)
        assert steps_of(pool).recognised == 1
        held = pool.malloc(STEP[0], stream)
        memory = GraphMemory(pool)
        begin_capture(pool, memory, stream)
        assert not faces(pool)
        inside = [pool.malloc(nbytes, stream) for nbytes in STEP[:4]]
        for pointer in inside:
            pool.free(pointer, stream)
        pool.check()
        end_capture(pool)
        pool.free(held, stream)
        memory.close()
        play(pool, times=3, stream=stream)
        pool.check()
        assert steps_of(pool).left == 1
        pool.trim(wait=True)
        assert pool.reserved_bytes == 0


def test_a_log_becomes_sequences():
    watch = Watch(100, lambda _: None)
    watch.allocated(1 << 20, 100, 0)
    watch.allocated(2 << 20, 200, 7)
    watch.freed(1 << 20, 0)
    watch.allocated(1 << 20, 300, 0)
    found = sequences(watch.log)
    assert (found[0].nbytes, found[0].freed_before) == ((100, 300), (1, -1))
    assert found[7].nbytes == (200,)
    assert watch.latest(0, 2) == [100, 300]
    assert sequences(watch.log, thread=-5) == {}
    assert busiest_thread(watch.log) == threading.get_ident()


def test_a_face_holds_nothing_and_stands_for_its_home():
    home = Bin(100, 512, 0, None, set())
    face = FaceBin(home)
    assert face.home is home
    assert home.home is home
    assert not face
