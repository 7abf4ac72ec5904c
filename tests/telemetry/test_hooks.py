"""Hooks see everything, and whatever they do, no block is lost and nobody is harmed."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool import InvalidRequestError, MiB, OutOfMemoryError, SmartPool, SmartPoolConfig
from smartpool.telemetry.hooks import AllocateEvent, FreeEvent, MapEvent


def test_requests_and_frees_are_told_with_what_is_known():
    with SmartPool("model:1GiB") as pool:
        seen = []
        pool.hooks.on_allocate(seen.append)
        pool.hooks.on_free(seen.append)
        with pool.tag("weights"):
            pointer = pool.malloc(1000)
        pool.free(pointer)
        assert seen == [
            AllocateEvent("model:1GiB", pointer, 1000, 0, "weights"),
            FreeEvent("model:1GiB", pointer, 1000, 0),
        ]


@pytest.mark.parametrize("virtual", [True, False])
def test_maps_and_unmaps_add_up_to_what_is_reserved(virtual):
    with SmartPool("model:1GiB") as pool:
        manager = pool.managers[0]
        if not virtual:
            manager.driver.granularity = 0
            manager.slow_path.heap = manager.slow_path._make_heap()
        held = {}

        def mapped(event):
            assert held.setdefault(event.address, event.nbytes) == event.nbytes
            assert event.reserved_bytes == manager.reserved_bytes

        def unmapped(event):
            rest = event.nbytes
            while rest:  # what came as one range may go chunk by chunk
                address = max(start for start in held if start <= event.address + event.nbytes - rest)
                size, offset = held.pop(address), event.address + event.nbytes - rest - address
                if offset:
                    held[address] = offset
                taken = min(rest, size - offset)
                if offset + taken < size:
                    held[address + offset + taken] = size - offset - taken
                rest -= taken
            assert isinstance(event, MapEvent)

        pool.hooks.on_map(mapped)
        pool.hooks.on_unmap(unmapped)
        blocks = [pool.malloc(nbytes * MiB) for nbytes in (3, 40, 9, 100)]
        assert sum(held.values()) == manager.reserved_bytes > 150 * MiB
        for block in blocks:
            pool.free(block)
        pool.trim(wait=True)
        assert held == {}
        assert pool.hooks.failures == 0


def test_a_hook_that_is_taken_away_is_called_no_more():
    with SmartPool("model:1GiB") as pool:
        seen, also = [], []
        remove = pool.hooks.on_free(seen.append)
        pool.hooks.on_free(also.append)
        pool.free(pool.malloc(1))
        remove()
        remove()
        pool.free(pool.malloc(1))
        assert (len(seen), len(also)) == (1, 2)
        with pytest.raises(InvalidRequestError):
            pool.hooks.on_free(5)


def test_without_hooks_the_table_is_the_plain_one():
    with SmartPool("model:1GiB") as pool:
        remove = [pool.hooks.on_allocate(print), pool.hooks.on_free(print)]
        assert type(pool.managers[0].slow_path.live).__name__ == "ObservedTable"
        for each in remove:
            each()
        assert type(pool.managers[0].slow_path.live).__name__ == "LiveTable"
        pool.hooks.on_map(print)
        assert type(pool.managers[0].slow_path.live).__name__ == "LiveTable"


@settings(max_examples=30)
@given(
    st.sets(st.sampled_from(["allocate", "free", "map", "unmap", "out_of_memory"]), min_size=1),
    st.lists(st.tuples(st.booleans(), st.sampled_from([100, 3 * MiB, 40 * MiB])), max_size=25),
)
def test_a_hook_that_raises_harms_nobody(kinds, actions):
    with SmartPool("model:128MiB") as pool:

        def broken(event):
            raise RuntimeError("broken")

        for kind in kinds:
            getattr(pool.hooks, f"on_{kind}")(broken)
        live, refused = {}, 0
        for free, nbytes in actions:
            if free and live:
                pool.free(live.popitem()[0])
            else:
                try:
                    live[pool.malloc(nbytes)] = nbytes
                except OutOfMemoryError:
                    refused += 1
        assert pool.managers[0].live_blocks() == live
        pool.check()
        if "allocate" in kinds:
            assert pool.hooks.failures >= len(live)
        if "out_of_memory" in kinds:
            assert pool.hooks.failures >= refused
        for pointer in live:
            pool.free(pointer)
        pool.check()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_and_still_no_block_is_lost(failure):
    with SmartPool("model:1GiB") as pool:

        def interrupt(event):
            raise failure

        held = pool.malloc(100)
        remove = pool.hooks.on_allocate(interrupt)
        with pytest.raises(failure):
            pool.malloc(5000)
        assert pool.managers[0].live_blocks() == {held: 100}
        pool.check()
        remove()
        pool.hooks.on_free(interrupt)
        with pytest.raises(failure):
            pool.free(held)
        assert pool.managers[0].live_blocks() == {}
        pool.check()


def test_a_hook_may_ask_the_pool_and_is_not_told_of_itself():
    with SmartPool("model:1GiB") as pool:
        small = pool.malloc(77)
        pool.free(small)
        asked = []

        def hook(event):
            asked.append(event.nbytes)
            pool.free(pool.malloc(77))  # from its bin

        pool.hooks.on_allocate(hook)
        pool.malloc(500)
        pool.malloc(600)
        assert asked == [500, 600]
        assert pool.hooks.failures == 0
        pool.check()


def test_a_hook_that_searches_in_the_middle_of_a_search_is_refused():
    with SmartPool("model:1GiB") as pool:
        pool.hooks.on_allocate(lambda event: pool.malloc(event.nbytes * 2))
        held = pool.malloc(5000)
        assert pool.hooks.failures == 1
        assert pool.managers[0].live_blocks() == {held: 5000}
        pool.check()


def test_hooks_and_recordings_do_not_keep_a_pool_alive():
    gc.disable()
    try:
        config = SmartPoolConfig(enable_auto_defragmentation=False, record=True, track=True, stack_depth=3)
        pool = SmartPool("model:1GiB", config)
        pool.hooks.on_allocate(lambda event: None)
        pool.hooks.on_map(lambda event: None)
        pool.free(pool.malloc(100))
        gone, driver = weakref.ref(pool), pool.managers[0].driver
        del pool
        assert gone() is None
        assert not any(driver.held().values())
    finally:
        gc.enable()


def test_growth_is_logged_for_those_who_want_it(caplog):
    with caplog.at_level(logging.DEBUG, logger="smartpool"), SmartPool("model:1GiB") as pool:
        pool.malloc(3 * MiB)
    assert any("map: " in record.message for record in caplog.records)
    assert isinstance(logging.getLogger("smartpool").handlers[0], logging.NullHandler)


def test_a_hook_that_comes_while_the_last_one_goes_is_told(monkeypatch):
    """Who is told is decided under the pool's lock: here a thread comes first that asked for it second."""
    with SmartPool("model:1GiB") as pool:
        told, manager = [], pool.managers[0]
        remove = pool.hooks.on_allocate(lambda event: None)
        hook_requests = type(manager.telemetry).hook_requests

        def overtaken(self, *arguments, **options):
            monkeypatch.undo()
            pool.hooks.on_allocate(told.append)
            hook_requests(self, *arguments, **options)

        monkeypatch.setattr(type(manager.telemetry), "hook_requests", overtaken)
        remove()
        pool.free(pool.malloc(1000))
        assert len(told) == 1
