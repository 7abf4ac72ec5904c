"""Exact statistics by device, tier, stream, tag and scope, against a naive count of every event."""

from __future__ import annotations

import gc
import threading
from collections import Counter, defaultdict
from contextlib import ExitStack
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool import SmartPool, SmartPoolConfig
from smartpool.telemetry import journal as journal_module
from smartpool.telemetry import labels, tracking
from smartpool.telemetry.labels import tagged
from smartpool.telemetry.tracked import Counts, ProfileRecord
from smartpool.telemetry.tracking import UNTAGGED
from smartpool.tiers import tier_of
from smartpool.units import KiB, MiB

SIZES = [0, 100, 600 * KiB, 3 * MiB, 40 * MiB, 300 * MiB]
TAGS = [None, "weights", "activations", "cache"]


class NaiveCount:
    def __init__(self):
        self.current, self.peak, self.total = [0, 0], [0, 0], 0
        self.allocations = self.frees = 0

    def allocated(self, nbytes):
        self.total += nbytes
        self.allocations += 1
        self._moved(nbytes, 1)

    def freed(self, nbytes):
        self.frees += 1
        self._moved(-nbytes, -1)

    def _moved(self, nbytes, blocks):
        self.current = [self.current[0] + nbytes, self.current[1] + blocks]
        self.peak = [max(a, b) for a, b in zip(self.peak, self.current, strict=True)]

    def counts(self):
        return Counts(
            current_bytes=self.current[0], peak_bytes=self.peak[0], total_bytes=self.total,
            current_blocks=self.current[1], peak_blocks=self.peak[1],
            allocations=self.allocations, frees=self.frees,
        )  # fmt: skip


class NaiveModel:
    """Counts at once what the tracker counts in batches."""

    def __init__(self):
        self.groups = defaultdict(NaiveCount)
        self.scopes, self.profiles = [], {}
        self.tags_at_peak = {}

    def event(self, keys, nbytes, *, free):
        total = self.groups["total"]
        before = total.peak[0]
        for key in ("total", *keys):
            (self.groups[key].freed if free else self.groups[key].allocated)(nbytes)
        if total.peak[0] > before:
            tags = {key[1]: count.current[0] for key, count in self.groups.items() if key[0] == "tag"}
            self.tags_at_peak = {tag: size for tag, size in tags.items() if size}
        for scope in self.scopes:
            scope["live"] = max(scope["live"], total.current[0])
            scope["frees" if free else "allocations"] += 1
            scope["net"] += -nbytes if free else nbytes
            scope["total"] += 0 if free else nbytes

    def enter(self, name):
        live = self.groups["total"].current[0]
        self.scopes.append(
            {"name": name, "entry": live, "live": live, "allocations": 0, "frees": 0, "net": 0, "total": 0}
        )

    def leave(self):
        scope = self.scopes.pop()
        record = ProfileRecord(
            num_calls=1, memory_peak=scope["live"] - scope["entry"], memory_total=scope["total"],
            peak_live_bytes=scope["live"], net_bytes=scope["net"],
            allocations=scope["allocations"], frees=scope["frees"],
        )  # fmt: skip
        known = self.profiles.get(scope["name"], ProfileRecord())
        self.profiles[scope["name"]] = known.joined(record)


def without_time(profiles):
    return {
        name: ProfileRecord(**{f: getattr(r, f) for f in ProfileRecord.__slots__ if f != "seconds"})
        for name, r in profiles.items()
    }


def compare(pool, model, live):
    tracked = pool.telemetry.tracker.tracked()
    labels = {pointer: label.tag for pointer, label in pool.telemetry.labels().items()}
    assert labels == {p: tag for p, _, ((_, _), (_, _), (_, tag)) in live if tag != UNTAGGED}
    assert tracked.total == model.groups["total"].counts()
    for kind, shown in (("tier", tracked.tiers), ("stream", tracked.streams), ("tag", tracked.tags)):
        expected = {key[1]: count.counts() for key, count in model.groups.items() if key[0] == kind}
        assert {key: counts for key, counts in shown.items() if counts != Counts()} == expected
    assert dict(tracked.tags_at_peak) == model.tags_at_peak
    assert without_time(tracked.profiles) == model.profiles
    assert tracked.total.current_bytes == pool.live_bytes


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["malloc", "malloc", "free", "enter", "leave", "ask", "reset"]), st.integers(0, 1000)
    ),
    max_size=80,
)


@settings(max_examples=120)
@given(ACTIONS, st.sampled_from([1, 3, 7, 4096]))
def test_every_figure_is_that_of_a_naive_count(actions, batch):
    with SmartPool("model:64GiB") as outer, ExitStack() as scopes:
        pool = outer.managers[0]
        streams = [0, pool.driver.create_stream()]
        pool.telemetry.start_tracking()
        pool.telemetry._journal.full_at = batch * journal_module.FIELDS
        model, live, entered = NaiveModel(), [], []
        for action, number in actions:
            if action == "malloc":
                nbytes, stream, tag = SIZES[number % 6], streams[number // 6 % 2], TAGS[number // 12 % 4]
                with tagged(tag) if tag else ExitStack():
                    pointer = pool.malloc(nbytes, stream)
                keys = [("tier", tier_of(nbytes).value), ("stream", stream), ("tag", tag or UNTAGGED)]
                live.append((pointer, nbytes, keys))
                model.event(keys, nbytes, free=False)
            elif action == "free" and live:
                pointer, nbytes, keys = live.pop(number % len(live))
                pool.free(pointer, streams[number % 2])  # whichever stream it is freed on
                model.event(keys, nbytes, free=True)
            elif action == "enter" and len(entered) < 3:
                name = f"s{number % 2}"
                entered.append(scopes.enter_context(ExitStack()))
                entered[-1].enter_context(outer.profile(name))
                model.enter("/".join([*(scope["name"].split("/")[-1] for scope in model.scopes), name]))
            elif action == "leave" and entered:
                entered.pop().close()
                model.leave()
            elif action == "ask":
                compare(pool, model, live)
            elif action == "reset":
                pool.telemetry.tracker.reset_peaks()
                for count in model.groups.values():
                    count.peak = list(count.current)
                tags = {key[1]: c.current[0] for key, c in model.groups.items() if key[0] == "tag"}
                model.tags_at_peak = {tag: size for tag, size in tags.items() if size}
        compare(pool, model, live)


def test_what_was_live_before_counts_as_current_and_untagged():
    with SmartPool("model:1GiB") as pool:
        early = [pool.malloc(3 * MiB), pool.malloc(100)]
        pool.start_tracking()
        with pool.tag("late"):
            late = pool.malloc(MiB)
        pool.free(early[0])
        tracked = pool.statistics.devices[0].tracked
        assert tracked.total == Counts(
            current_bytes=MiB + 100, peak_bytes=4 * MiB + 100, total_bytes=MiB,
            current_blocks=2, peak_blocks=3, allocations=1, frees=1,
        )  # fmt: skip
        assert tracked.tags[UNTAGGED].current_bytes == 100
        assert tracked.tags["late"].current_bytes == MiB
        pool.free(early[1])
        pool.free(late)


def test_early_events_decide_what_was_live_before():
    """Other threads go on between the first event and the copy of the live table."""
    log = journal_module.Journal()
    tracker = tracking.Tracker(log)
    with SmartPool("model:1GiB") as pool:
        bins = {size: pool.managers[0].slow_path.bin_of(size, 0) for size in (100, 200, 300)}
        free, here = journal_module.FREED, tracking.NOBODY
        early = [
            *(7, bins[100], free, 0),  # was live, is freed, and taken again: the copy has the second
            *(7, bins[100], here, 0),
            *(8, bins[200], here, 0),  # was not live; the copy has it
        ]
        tracker.start({7: bins[100], 8: bins[200], 9: bins[300]}, early)
        assert tracker._total.current_bytes == 100 + 300
        tracker.read(early)
        assert tracker._total.current_bytes == 100 + 200 + 300


def test_tags_nest_and_are_each_threads_own():
    with SmartPool("model:1GiB") as pool:
        pool.start_tracking()

        def other():
            pool.malloc(7)

        with pool.tag("outer"):
            pool.malloc(1)
            with pool.tag("inner"):
                pool.malloc(2)
            pool.malloc(4)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        tags = pool.statistics.devices[0].tracked.tags
        assert {name: counts.current_bytes for name, counts in tags.items()} == {
            "outer": 5, "inner": 2, UNTAGGED: 7,
        }  # fmt: skip


def test_a_tag_costs_nothing_to_those_who_do_not_track():
    with SmartPool("model:1GiB") as pool, pool.tag("weights"):
        pool.free(pool.malloc(100))
        assert pool.statistics.devices[0].tracked is None
        assert type(pool.managers[0].slow_path.live).__name__ == "LiveTable"


def test_too_many_tags_are_counted_together(monkeypatch):
    monkeypatch.setattr(tracking, "MOST_GROUPS", 3)
    with SmartPool("model:1GiB") as pool:
        pool.start_tracking()
        for number in range(6):
            with pool.tag(f"request {number}"):
                pool.malloc(10)
        tags = pool.statistics.devices[0].tracked.tags
        assert len(tags) == 4
        assert tags[tracking.OTHER_TAGS].current_bytes == 30


def test_too_many_streams_are_counted_together(monkeypatch):
    monkeypatch.setattr(tracking, "MOST_GROUPS", 3)
    with SmartPool("model:1GiB") as pool:
        pool.start_tracking()
        streams = [pool.managers[0].driver.create_stream() for _ in range(6)]
        for stream in streams:
            pool.malloc(10, stream)
        counts = pool.statistics.devices[0].tracked.streams
        assert len(counts) == 4
        assert counts[tracking.OTHER_STREAMS].current_bytes == 30


def test_a_scope_tells_of_itself_and_decorates():
    with SmartPool("model:1GiB") as pool:
        held = pool.malloc(MiB)

        @pool.profile("work")
        def work():
            pool.free(pool.malloc(5 * MiB))
            return pool.malloc(2 * MiB)

        kept = [work(), work()]
        with pool.profile("more") as scope:
            pool.free(kept.pop())
        assert scope.record().net_bytes == -2 * MiB
        record = pool.statistics.devices[0].tracked.profiles["work"]
        assert (record.num_calls, record.memory_peak, record.memory_total) == (2, 5 * MiB, 14 * MiB)
        assert record.peak_live_bytes == 8 * MiB
        assert record.seconds > 0
        pool.free(held)


def test_a_scope_that_ends_with_an_error_is_left():
    with SmartPool("model:1GiB") as pool:
        with pytest.raises(ZeroDivisionError), pool.profile("broken"):
            1 / 0  # noqa: B018
        pool.malloc(100)
        assert pool.statistics.devices[0].tracked.profiles["broken"].memory_total == 0
        assert not pool.managers[0].telemetry.tracker._open


def test_several_devices_have_each_their_figures():
    with SmartPool(["model:1GiB", "model:2GiB"]) as pool:
        with pool.profile("both") as scope:
            pool.managers[0].malloc(100)
            pool.managers[1].malloc(300)
        assert [scope.record(device).memory_total for device in (0, 1)] == [100, 300]
        assert [d.tracked.total.current_bytes for d in pool.statistics.devices] == [100, 300]


def test_tracking_can_be_switched_off_and_on_again():
    with SmartPool("model:1GiB") as pool:
        malloc, free = pool.malloc, pool.free
        pool.start_tracking()
        held = malloc(100)
        pool.start_tracking()  # goes on
        assert pool.statistics.devices[0].tracked.total.allocations == 1
        pool.stop_tracking()
        free(held)
        assert pool.statistics.devices[0].tracked is None
        pool.start_tracking()
        assert pool.statistics.devices[0].tracked.total == Counts()


def test_tracking_and_recording_read_one_journal():
    with SmartPool("model:1GiB") as pool:
        pool.start_recording()
        pool.start_tracking(stack_depth=4)
        with pool.tag("weights"), pool.profile("scope"):
            pool.free(pool.malloc(1000))
        trace = pool.stop_recording()
        assert trace.events == 2
        assert pool.statistics.devices[0].tracked.total.allocations == 1
        (site,) = trace.meta["sites"]
        lines = site.splitlines()
        assert lines[0].endswith("test_tracking_and_recording_read_one_journal")
        assert lines[-1] == "tag weights"


def test_stacks_are_those_of_the_caller():
    with SmartPool("model:1GiB") as pool:
        pool.start_tracking(stack_depth=3)

        def inner():
            return pool.empty((4, 4), "float32")

        buffer = inner()
        shown = pool.memory_map()
        (site,) = [shown.stacks[index] for index in shown.blocks.stack]
        assert [line.rsplit(" ", 1)[1].rsplit(".", 1)[-1] for line in site.splitlines()][:2] == [
            "inner", "test_stacks_are_those_of_the_caller",
        ]  # fmt: skip
        assert site.splitlines()[0].startswith(__file__)
        del buffer
        assert pool.memory_map().stacks == []


def test_figures_while_threads_and_destructors_run():
    """The sum over everything is exact once all is quiet, however the events were cut into batches."""
    with SmartPool("model:8GiB") as pool:
        pool.start_tracking()
        pool.managers[0].telemetry._journal.full_at = 64 * journal_module.FIELDS
        counted, failures = Counter(), []

        def work(seed):
            random, live, own = Random(seed), [], Counter()
            try:
                with pool.tag(f"thread {seed}"):
                    for _ in range(1500):
                        cycle = [pool.allocate(random.choice([100, 5000, 2 * MiB]))]
                        own["bytes"] += cycle[0].nbytes
                        own["calls"] += 1
                        cycle.append(cycle)  # freed by the collector, in the middle of anything
                        live.append(cycle)
                        if len(live) > 8:
                            del live[random.randrange(8)]
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)
            counted.update(own)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            tracked = pool.statistics.devices[0].tracked
            assert tracked.total.peak_bytes >= tracked.total.current_bytes
        for thread in threads:
            thread.join()
        assert not failures
        gc.collect()
        tracked = pool.statistics.devices[0].tracked
        assert tracked.total.allocations == tracked.total.frees == counted["calls"]
        assert tracked.total.total_bytes == counted["bytes"]
        for counts in (tracked.total, *tracked.tags.values(), *tracked.tiers.values()):
            assert (counts.current_bytes, counts.current_blocks) == (0, 0)


def test_a_reader_that_fails_is_logged_and_harms_nobody(caplog):
    with SmartPool("model:1GiB") as pool:

        def broken(batch):
            raise ValueError("broken")

        pool.managers[0].telemetry.add_reader(broken)
        pool.start_tracking()
        held = pool.malloc(100)
        assert pool.statistics.devices[0].tracked.total.current_bytes == 100
        assert "a reader of the journal failed" in caplog.text
        pool.free(held)
        pool.check()


@pytest.mark.parametrize("watching", ["readers", "observers"])
def test_an_interrupt_in_the_middle_loses_no_block(watching):
    with SmartPool("model:1GiB") as pool:
        manager = pool.managers[0]
        armed = [True]

        def interrupt(*_):
            if armed and armed.pop():
                raise KeyboardInterrupt

        class Observer:
            allocated = freed = staticmethod(interrupt)

        if watching == "readers":
            manager.telemetry.add_reader(interrupt)
            manager.telemetry._journal.full_at = 0
        else:
            manager.telemetry.add_observer(Observer)
        with pytest.raises(KeyboardInterrupt):
            pool.malloc(5000)
        assert manager.live_blocks() == {}
        pool.check()
        held = pool.malloc(5000)
        if watching == "observers":
            armed.append(True)
            with pytest.raises(KeyboardInterrupt):
                pool.free(held)  # it is free for all that
        else:
            pool.free(held)
        pool.check()
        assert manager.live_blocks() == {}


def test_observers_come_and_go_beside_each_other():
    told = []

    class Observer:
        def __init__(self, name):
            self.name = name

        def allocated(self, pointer, nbytes, stream):
            told.append((self.name, "allocated", nbytes))

        def freed(self, pointer, stream):
            told.append((self.name, "freed", pointer))

    with SmartPool("model:1GiB") as pool:
        manager, one, two = pool.managers[0], Observer("one"), Observer("two")
        manager.telemetry.add_observer(one)
        manager.telemetry.add_observer(two)
        held = pool.malloc(10)
        manager.telemetry.remove_observer(one)
        pool.free(held)
        manager.telemetry.remove_observer(two)
        pool.free(pool.malloc(10))
        assert told == [("one", "allocated", 10), ("two", "allocated", 10), ("two", "freed", held)]
        assert type(manager.slow_path.live).__name__ == "LiveTable"


def test_scopes_beyond_the_limit_are_counted_together(monkeypatch):
    monkeypatch.setattr(tracking, "MOST_GROUPS", 3)
    with SmartPool("model:1GiB") as pool:
        for number in range(10):
            with pool.profile(f"request {number}"):
                pool.free(pool.malloc(KiB))
        with pool.profile("request 0"):
            pool.free(pool.malloc(KiB))
        profiles = pool.statistics.devices[0].tracked.profiles
        assert list(profiles) == ["request 0", "request 1", "request 2", tracking.OTHER_SCOPES]
        assert [record.num_calls for record in profiles.values()] == [2, 1, 1, 7]
        assert sum(record.memory_total for record in profiles.values()) == 11 * KiB


def test_code_that_is_made_as_a_program_goes_is_not_kept(monkeypatch):
    monkeypatch.setattr(labels, "_MOST_STACKS", 50)
    with SmartPool("model:1GiB", SmartPoolConfig(stack_depth=4)) as pool:
        for number in range(200):
            exec(
                f"def ask_{number}(pool): return pool.malloc(10)\npool.free(ask_{number}(pool))",
                {"pool": pool},
            )
        here = pool.managers[0].telemetry._journal.label.__self__
        assert len(here._own) <= 50
        assert len(here._known) <= 50


def test_streams_beyond_the_limit_are_counted_together(monkeypatch):
    monkeypatch.setattr(tracking, "MOST_GROUPS", 4)
    with SmartPool("model:1GiB", SmartPoolConfig(track=True)) as pool:
        for _ in range(3):  # later looks find the common group made already
            for _ in range(10):
                pool.malloc(KiB, pool.managers[0].driver.create_stream())
            counts = pool.statistics.devices[0].tracked
        assert counts.total.current_blocks == 30
        assert sum(group.current_blocks for group in counts.streams.values()) == 30
