"""Planned steps: served by index, back on track after surprises, and never over live memory."""

from __future__ import annotations

import threading
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool import SmartPool
from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import PoolClosedError, StepError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.pool.bins import Bin, LiveTable
from smartpool.steps.plans import OUTLIVED, Sequence, Watch, make_plan, sequences
from smartpool.steps.stand_ins import ProxyBin
from smartpool.steps.stepping import MOST_NAMES, StepStatistics
from smartpool.units import GiB, KiB, MiB


def program(seed: int, requests: int) -> list[tuple[str, int]]:
    """A step: ("take", bytes) and ("give", index of the request)."""
    random = Random(seed)
    steps, held = [], []
    for index in range(requests):
        steps.append(("take", random.choice([512, 3 * KiB, 70 * KiB, 1 * MiB, 5 * MiB, 20 * MiB])))
        held.append(index)
        while len(held) > 6 or (held and random.random() < 0.4):
            steps.append(("give", held.pop(random.randrange(len(held)))))
    return steps + [("give", index) for index in held]


class Player:
    """Plays programs on a pool and holds that no two live blocks overlap."""

    def __init__(self, pool):
        self.pool = pool
        self.live = {}

    def take(self, nbytes):
        pointer = self.pool.malloc(nbytes)
        end = pointer + max(nbytes, 1)
        for other, size in self.live.items():
            assert end <= other or other + size <= pointer, "two live blocks overlap"
        self.live[pointer] = max(nbytes, 1)
        return pointer

    def give(self, pointer):
        del self.live[pointer]
        self.pool.free(pointer)

    def play(self, steps, *, skip=frozenset(), extra=frozenset()):
        pointers = {}
        count = 0
        for kind, value in steps:
            if kind == "take":
                if count in extra:
                    self.give(self.take(123_456))
                if count not in skip:
                    pointers[count] = self.take(value)
                count += 1
            elif value in pointers:
                self.give(pointers.pop(value))
        return pointers


@pytest.fixture
def pool():
    """A pool that holds memory enough for a region, and for what comes otherwise beside it."""
    with AdvancedMemoryPoolManager(ModelDriver(4 * GiB)) as pool:
        pool.free(pool.malloc(1 * GiB))
        yield pool
        pool.check()


def step(pool, name="step"):
    class Step:
        def __enter__(self):
            pool.begin_step(name, wait_for_plan=True)

        def __exit__(self, *exception):
            pool.end_step()

    return Step()


def repeat(pool, player, steps, times):
    for _ in range(times):
        with step(pool):
            player.play(steps)
        pool.check()


def test_an_equal_step_costs_no_driver_call_and_no_search(pool):
    player, steps = Player(pool), program(1, 200)
    repeat(pool, player, steps, 3)
    before = pool.snapshot()
    repeat(pool, player, steps, 3)
    after = pool.snapshot()
    assert after.searches == before.searches
    calls = {name: count for name, count in after.driver_calls.items() if name != "memory_info"}
    assert calls == {name: count for name, count in before.driver_calls.items() if name != "memory_info"}
    assert (after.steps.hits - before.steps.hits, after.steps.misses) == (600, 0)
    assert after.steps.planned_bytes > 0


def test_the_region_is_no_higher_than_the_load(pool):
    player, steps = Player(pool), program(2, 300)
    repeat(pool, player, steps, 2)
    live = peak = 0
    sizes = [value for kind, value in steps if kind == "take"]
    for kind, value in steps:
        live += value if kind == "take" else -sizes[value]
        peak = max(peak, live)
    assert pool.snapshot().steps.planned_bytes <= 1.1 * peak


@pytest.mark.parametrize(("skip", "extra"), [({40}, set()), (set(), {40}), ({10, 11}, {90}), ({0}, {0})])
def test_a_step_finds_its_way_back(pool, skip, extra):
    player, steps = Player(pool), program(3, 200)
    repeat(pool, player, steps, 3)
    before = pool.snapshot().steps
    with step(pool):
        player.play(steps, skip=skip, extra=extra)
    after = pool.snapshot().steps
    served = after.hits - before.hits
    assert served >= 200 - len(skip) - 3 * (len(skip) + len(extra))
    assert after.misses - before.misses >= len(extra)


def test_a_changed_step_is_planned_anew(pool):
    player, steps, other = Player(pool), program(4, 150), program(5, 150)
    repeat(pool, player, steps, 3)
    repeat(pool, player, other, 4)
    before = pool.snapshot().steps
    repeat(pool, player, other, 1)
    after = pool.snapshot().steps
    assert (after.hits - before.hits, after.misses - before.misses) == (150, 0)


def test_planned_memory_that_is_still_live_is_never_handed_out(pool):
    """Blocks that outlive what the plan says, over the end of a step too."""
    player, steps = Player(pool), program(6, 120)
    repeat(pool, player, steps, 3)
    kept = []
    for keep in (5, 50, 119):
        with step(pool):
            late = [entry for entry in steps if entry != ("give", keep)]
            kept += player.play(late).values()
        pool.check()
    with step(pool):
        player.play(steps)
    for pointer in kept:
        player.give(pointer)
    pool.check()


def test_names_that_come_once_are_forgotten(pool):
    """A program that names its steps by their number: what is known of each is kept for a while only."""
    steps = pool.steps
    for number in range(3 * MOST_NAMES):
        for name in ("train", f"step {number}"):
            pool.begin_step(name, wait_for_plan=True)
            pool.free(pool.malloc(3 * MiB))
            pool.end_step()
    tables = (steps._names, steps._plans, steps._planning, steps._before, steps._doubts, steps._lowered)
    assert max(map(len, tables)) <= MOST_NAMES
    assert "train" in steps._plans
    pool.check()


def test_two_kinds_of_steps_keep_their_plans(pool):
    player = Player(pool)
    kinds = {"train": program(7, 80), "eval": program(8, 40)}
    for _ in range(4):
        for name, steps in kinds.items():
            with step(pool, name):
                player.play(steps)
            pool.check()
    assert pool.snapshot().steps.hits >= 2 * 120


def test_the_region_goes_when_memory_is_trimmed_or_short(pool):
    player, steps = Player(pool), program(9, 100)
    repeat(pool, player, steps, 2)
    assert pool.snapshot().steps.planned_bytes
    pool.trim(wait=True)
    assert pool.reserved_bytes == 0
    repeat(pool, player, steps, 1)
    pool.free(pool.malloc(4 * GiB))
    assert pool.snapshot().steps.planned_bytes == 0
    repeat(pool, player, steps, 1)


def test_prediction_switched_off_records_and_plans_nothing():
    config = SmartPoolConfig(enable_predictive_allocation=False)
    with AdvancedMemoryPoolManager(ModelDriver(4 * GiB), config) as pool:
        repeat(pool, Player(pool), program(1, 50), 3)
        steps = pool.snapshot().steps
        assert (steps.recorded, steps.planned, steps.hits, steps.planned_bytes) == (0, 0, 0, 0)


def test_steps_do_not_nest_and_end_where_they_began(pool):
    pool.begin_step("outer")
    with pytest.raises(StepError):
        pool.begin_step("inner")
    pool.end_step()
    with pytest.raises(StepError):
        pool.end_step()


def test_streams_and_large_alignments_stay_outside(pool):
    stream = pool.driver.create_stream()
    for _ in range(3):
        with step(pool):
            own = pool.malloc(3 * MiB)
            other = pool.malloc(3 * MiB, stream)
            aligned = pool.malloc_aligned(3 * MiB, 4 * MiB)
            pool.record_stream(own, stream)
            pool.free(own)
            pool.free(other, pool.driver.default_stream)
            pool.free(aligned)
        pool.check()


def test_a_slot_used_on_another_stream_is_reused_behind_that_work():
    driver = ModelDriver(1 * GiB)
    pool = AdvancedMemoryPoolManager(driver)
    stream = driver.create_stream()
    for _ in range(3):
        with step(pool):
            pool.free(pool.malloc(3 * MiB))
    with step(pool):
        pointer = pool.malloc(3 * MiB)
        pool.record_stream(pointer, stream)
        driver.pause(stream)
        driver.fill(pointer, 1, 3 * MiB, stream)
        pool.free(pointer)
    with step(pool):
        assert pool.malloc(3 * MiB) == pointer
        event = driver.create_event()
        driver.record_event(event, driver.default_stream)
        assert not driver.event_done(event)
        driver.resume(stream)
        pool.free(pointer)
    pool.check()


def test_a_closed_pool_begins_no_step():
    pool = AdvancedMemoryPoolManager(ModelDriver(1 * GiB))
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.begin_step("step")


def test_closing_in_the_middle_of_a_step():
    pool = AdvancedMemoryPoolManager(ModelDriver(1 * GiB))
    player, steps = Player(pool), program(1, 20)
    for _ in range(2):
        with step(pool):
            player.play(steps)
    with step(pool):
        pointer = pool.malloc(steps[0][1])
        pool.close()
    pool.free(pointer)
    assert pool.reserved_bytes == 0


EVENTS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["as planned", "skip", "extra", "keep"])), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 50), surprises=st.lists(EVENTS, min_size=1, max_size=4))
def test_no_surprise_makes_two_live_blocks_overlap(seed, surprises):
    """Any mixture of missing, extra and outliving requests, over several repetitions."""
    with AdvancedMemoryPoolManager(ModelDriver(1 * GiB)) as pool:
        player, steps = Player(pool), program(seed, 10)
        repeat(pool, player, steps, 2)
        kept = []
        for surprise in surprises:
            kinds = dict(surprise)
            with step(pool):
                played = [
                    entry for entry in steps if not (entry[0] == "give" and kinds.get(entry[1]) == "keep")
                ]
                left = player.play(
                    played,
                    skip={index for index, kind in kinds.items() if kind == "skip"},
                    extra={index for index, kind in kinds.items() if kind == "extra"},
                )
                kept += left.values()
            pool.check()
        for pointer in kept:
            player.give(pointer)
        pool.trim(wait=True)
        assert pool.reserved_bytes == 0


def test_a_step_on_a_user_stream_has_a_plan_of_its_own(pool):
    """Two streams within one step: each is served by index from a region of its own."""
    stream = pool.driver.create_stream()
    home, other = program(10, 60), program(11, 40)

    def once():
        with step(pool):
            pointers = {}
            for steps, on in ((home, None), (other, stream), (home, None)):
                count = 0
                for kind, value in steps:
                    if kind == "take":
                        pointers[count] = pool.malloc(value, on)
                        assert pool.stream_of(pointers[count]) == (on or pool.driver.default_stream)
                        count += 1
                    else:
                        pool.free(pointers.pop(value))

    for _ in range(3):
        once()
    before = pool.snapshot()
    once()
    after = pool.snapshot()
    assert after.steps.hits - before.steps.hits == 2 * 60 + 40
    assert (after.searches, after.steps.misses) == (before.searches, 0)
    assert len(pool.steps.regions()) == 2


def test_other_threads_are_served_while_a_step_is_under_way(pool):
    """They ask for the same sizes, and take no slot; what they hold is theirs when the step ends."""
    player, steps = Player(pool), program(12, 100)
    repeat(pool, player, steps, 3)
    before = pool.snapshot().steps
    held = []

    def ask():
        for kind, value in steps:
            if kind == "take":
                held.append(player.take(value))

    with step(pool):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        player.play(steps)
    after = pool.snapshot().steps
    assert (after.hits - before.hits, after.misses - before.misses) == (100, 0)
    for pointer in held:
        player.give(pointer)
    repeat(pool, player, steps, 1)


def test_threads_that_take_turns_within_a_step_share_its_plan(pool):
    """Once two recorded repetitions have shown that they always do so in the same order."""
    player, steps = Player(pool), program(13, 50)

    def turn():
        player.play(steps)

    def once():
        with step(pool):
            player.play(steps)
            thread = threading.Thread(target=turn)
            thread.start()
            thread.join()
            player.play(steps)

    for _ in range(3):
        once()
    assert pool.snapshot().steps.recorded == 2
    before = pool.snapshot()
    once()
    after = pool.snapshot()
    assert (after.steps.hits - before.steps.hits, after.steps.misses) == (150, 0)
    assert after.searches == before.searches


def test_a_step_goes_back_after_it_went_on_too_far(pool):
    """Three requests that look like the end of the step, and then the rest of it."""
    sizes = [(number + 1) * 64 * KiB for number in range(40)]
    steps = [entry for number, size in enumerate(sizes) for entry in (("take", size), ("give", number))]
    player = Player(pool)
    repeat(pool, player, steps, 3)
    before = pool.snapshot().steps
    with step(pool):
        for size in [*sizes[:10], *sizes[-3:], *sizes[10:]]:
            player.give(player.take(size))
    after = pool.snapshot().steps
    assert after.misses - before.misses <= 5
    assert after.hits - before.hits >= 37


def test_frees_that_are_put_aside_are_seen_in_time(pool):
    """As PyTorch's are: they wait in a list until the pool asks for them."""
    ring = []

    def drain(**_):
        while ring:
            pool.free(ring.pop())

    pool.front = SimpleNamespace(drain=drain, switch=drain)
    steps = program(15, 100)
    for pointer in [pool.malloc(value) for kind, value in steps if kind == "take"]:
        pool.free(pointer)  # the bins serve the recorded step, and nobody asks for the list

    def once():
        pointers, count = {}, 0
        with step(pool):
            for kind, value in steps:
                if kind == "take":
                    pointers[count] = pool.malloc(value)
                    count += 1
                else:
                    ring.append(pointers.pop(value))
        pool.check()

    for _ in range(3):
        once()
    before = pool.snapshot()
    once()
    after = pool.snapshot()
    assert (after.steps.hits - before.steps.hits, after.steps.misses) == (100, 0)
    plan = pool.steps._plans["step"][pool.driver.default_stream]
    left_to_the_heap = sum(offset < 0 for offset in plan.offsets)
    assert after.searches - before.searches <= left_to_the_heap
    assert after.reserved_bytes == before.reserved_bytes
    live = peak = 0
    sizes = [value for kind, value in steps if kind == "take"]
    for kind, value in steps:
        live += value if kind == "take" else -sizes[value]
        peak = max(peak, live)
    assert after.steps.planned_bytes <= 1.1 * peak


def test_extra_requests_are_counted_also_beside_a_plan(pool):
    player, steps = Player(pool), program(14, 60)
    player.give(player.take(123_456))
    repeat(pool, player, steps, 3)
    player.give(player.take(123_456))
    before = pool.snapshot()
    with step(pool):
        player.play(steps, extra={5, 30})
    after = pool.snapshot()
    assert (after.steps.hits - before.steps.hits, after.steps.misses - before.steps.misses) == (60, 2)
    assert after.searches - before.searches <= 2


def test_a_program_that_never_repeats_is_recorded_ever_less_often(pool):
    player = Player(pool)
    for seed in range(60):
        repeat(pool, player, program(seed + 100, 30), 1)
    assert pool.snapshot().steps.recorded <= 12


def test_a_plan_knows_when_slots_are_due():
    plan = make_plan(Sequence((1000, 1000), (1, OUTLIVED)))
    assert plan.due[1] == (0,)
    assert plan.offsets == (0, -1)


def marked(pool, streams, nbytes, *, name="step"):
    with step(pool, name):
        for stream in streams:
            pool.free(pool.malloc(nbytes, stream), stream)


def test_room_for_one_region_is_not_made_of_the_others_of_its_step():
    """The second region does not fit, and what makes room gives idle regions back: not those just made."""
    config = SmartPoolConfig(max_bytes=64 * MiB)
    with AdvancedMemoryPoolManager(ModelDriver(GiB), config) as pool:
        streams = (0, pool.driver.create_stream())
        marked(pool, streams, 20 * MiB)
        marked(pool, streams, 20 * MiB)
        pool.trim(wait=True)
        block = pool.malloc(30 * MiB)
        with step(pool):
            pool.free(pool.malloc(20 * MiB))
        pool.check()
        pool.free(block)
        marked(pool, streams, 20 * MiB)
        pool.check()


def test_an_idle_region_of_the_running_step_makes_room():
    config = SmartPoolConfig(max_bytes=64 * MiB)
    with AdvancedMemoryPoolManager(ModelDriver(GiB), config) as pool:
        marked(pool, (0,), 20 * MiB)
        marked(pool, (0,), 20 * MiB)
        with step(pool):
            pool.free(pool.malloc(20 * MiB))
            assert pool.live_bytes == 0
            pool.free(pool.malloc(50 * MiB))
            pool.check()
        marked(pool, (0,), 20 * MiB)
        pool.check()


def test_memory_for_a_plan_is_asked_of_no_callback():
    """A step may begin without a request: what others keep is not evicted for its plan."""
    config = SmartPoolConfig(max_bytes=64 * MiB, enable_auto_defragmentation=False)
    with SmartPool("model:1GiB", config) as pool:
        manager, asked = pool.managers[0], []
        marked(manager, (0,), 20 * MiB)
        marked(manager, (0,), 20 * MiB)
        pool.trim(wait=True)
        block = pool.malloc(50 * MiB)
        pool.add_out_of_memory_callback(lambda nbytes: bool(asked.append(nbytes)))
        with pool.step():
            pass
        assert asked == []
        pool.free(block)
        pool.check()


def test_what_a_watch_notes_is_limited_where_only_frees_come():
    watch = Watch(2)
    watch.allocated(1, 10, 0)
    for _ in range(100):
        watch.freed(1, 0)
    assert len(watch.log) == 4
    assert watch.full


def test_a_log_becomes_sequences():
    watch = Watch(100)
    watch.allocated(1 << 20, 100, 0)
    watch.allocated(2 << 20, 200, 7)
    watch.freed(1 << 20, 0)
    watch.allocated(1 << 20, 300, 0)
    found = sequences(watch.log)
    assert (found[0].nbytes, found[0].freed_before) == ((100, 300), (1, OUTLIVED))
    assert found[7].nbytes == (200,)
    assert sequences(watch.log, thread=-5) == {}


def test_a_face_holds_nothing_and_stands_for_its_home():
    home = Bin(100, 512, 0, None, set())
    face = ProxyBin(home)
    assert face.home is home
    assert home.home is home
    assert not face


def test_what_nobody_marks_is_not_watched():
    """However often it repeats itself, and whatever it costs to search for."""
    with AdvancedMemoryPoolManager(ModelDriver(4 * GiB)) as pool:
        player, steps = Player(pool), program(16, 60)
        for _ in range(200):
            player.play(steps)
            pool.flush()
        assert pool.slow_path.live.__class__ is LiveTable
        assert pool.snapshot().steps == StepStatistics()
