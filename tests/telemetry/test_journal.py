"""The journal under threads: who reads it may run a destructor that waits for the pool, and nobody hangs."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from waiting import PATIENCE_S

from smartpool import OutOfMemoryError, SmartPool, SmartPoolConfig
from smartpool.telemetry import journal
from smartpool.units import MiB

CALM = SmartPoolConfig(track=True, enable_auto_defragmentation=False)


def run(*works):
    """Run each on a thread of its own; they must end, and what they raise is raised here."""
    failures = []

    def guarded(work):
        try:
            work()
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "hangs"
    for failure in failures:
        raise failure


def waits_for_the_journal(thread):
    """Return whether a thread is inside of the journal's module now."""
    frame = sys._current_frames().get(thread.ident)
    while frame is not None:
        if frame.f_code.co_filename == journal.__file__ and frame.f_code.co_name == "settled":
            return True
        frame = frame.f_back
    return False


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_asking_while_a_destructor_in_the_reader_requests_memory():
    """The reader holds the journal and wants the pool: who asks must not want it the other way round."""
    with SmartPool("model:1GiB", CALM) as pool:
        manager = pool.managers[0]
        asking = threading.Thread(target=lambda: pool.statistics, daemon=True)

        def reader(_batch):  # as a destructor that the collector runs there
            if asking.ident is None:
                asking.start()
                until(lambda: waits_for_the_journal(asking))
                pool.free(pool.malloc(30 * MiB))

        manager.telemetry.add_reader(reader)
        pool.free(pool.malloc(100))
        run(manager.telemetry.settle)
        asking.join(PATIENCE_S)
        assert not asking.is_alive()


@pytest.mark.parametrize("ask", ["statistics", "recording", "memory_map", "start_tracking", "stop_tracking"])
def test_asking_under_the_pools_lock_while_the_reader_waits_for_it(ask):
    """As a callback does when memory lacks: it goes without what is being read."""
    with SmartPool("model:64MiB", CALM) as pool:
        manager = pool.managers[0]
        pool.start_recording()
        held = pool.malloc(40 * MiB)
        reads, asked, told = threading.Event(), threading.Event(), []

        def reader(_batch):
            if not reads.is_set():
                reads.set()
                assert asked.wait(PATIENCE_S)
                pool.free(pool.malloc(2 * MiB))  # waits for the lock that the callback's thread holds

        def callback(_nbytes):
            assert reads.wait(PATIENCE_S)
            asked.set()
            found = getattr(pool, ask)
            told.append(found() if callable(found) else found)
            return False

        def fails():
            with pytest.raises(OutOfMemoryError, match="Tried to allocate"):
                pool.malloc(40 * MiB)

        manager.telemetry.add_reader(reader)
        pool.free(pool.malloc(100))  # something to read
        pool.add_out_of_memory_callback(callback)
        run(fails, manager.telemetry.settle)
        assert len(told) == 1
        pool.free(held)
        pool.check()


def test_a_batch_that_another_thread_reads_is_not_waited_for_by_requests(monkeypatch):
    with SmartPool("model:1GiB", CALM) as pool:
        manager = pool.managers[0]
        monkeypatch.setattr(manager.telemetry._journal, "full_at", 40)
        reads, go_on = threading.Event(), threading.Event()
        seen = []

        def reader(batch):
            seen.extend(batch)
            if not reads.is_set():
                reads.set()
                assert go_on.wait(PATIENCE_S)

        manager.telemetry.add_reader(reader)

        def requests():
            assert reads.wait(PATIENCE_S)
            for _ in range(100):
                pool.free(pool.malloc(100))
            go_on.set()

        pool.free(pool.malloc(100))
        run(manager.telemetry.settle, requests)
        manager.telemetry.settle()
        assert len(seen) == 2 * 101 * journal.FIELDS
        assert pool.statistics.devices[0].tracked.total.allocations == 101


def test_an_interrupt_does_not_keep_the_journal():
    with SmartPool("model:1GiB", CALM) as pool:
        manager = pool.managers[0]

        def reader(_batch):
            manager.telemetry._journal.readers = manager.telemetry._journal.readers[:1]
            raise KeyboardInterrupt

        manager.telemetry.add_reader(reader)
        pool.free(pool.malloc(100))
        with pytest.raises(KeyboardInterrupt):
            manager.telemetry.settle()
        run(lambda: pool.statistics)
        pool.free(pool.malloc(100))
        assert pool.statistics.devices[0].tracked.total.frees == 2
