"""Frames: what the cells say is what the pool holds."""

from __future__ import annotations

import base64
import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE_S

import smartpool
import smartpool.errors
from smartpool.errors import InvalidRequestError
from smartpool.live import LiveView
from smartpool.units import MiB

WHOLE = {"device": 0, "first": 0, "last": None, "cells": 64, "after": 0}


def unpacked(frame, name):
    return np.frombuffer(base64.b64decode(frame["map"][name]), dtype=np.uint8)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40 * MiB), st.booleans()), max_size=30),
    st.integers(1, 400),
    st.sampled_from(["cpu", "model:8GiB"]),
)
def test_cells_add_up_to_what_is_live_cached_and_free(requests, cells, device):
    with smartpool.SmartPool(device) as pool:
        held = [(pool.malloc(nbytes), frees) for nbytes, frees in requests]
        for pointer, frees in held:
            if frees:
                pool.free(pointer)
        frame = LiveView(pool).frame(WHOLE | {"cells": cells})
        now = pool.statistics.devices[0]
        extent = frame["map"]["extent_bytes"]
        assert extent == now.reserved_bytes
        tolerance = extent / cells * (1 / 255 + 0.5 / 255 * cells) + 1
        for name, expected in (
            ("live", now.block_bytes),
            ("cached", now.cached_bytes),
            ("free", now.gap_bytes),
        ):
            shown = unpacked(frame, name).sum() / 255 * extent / cells
            assert abs(shown - expected) <= tolerance, name
        assert unpacked(frame, "edge").sum() <= now.live_blocks + len(requests)
        assert sum(held["bytes"] for held in frame["holders"]) <= now.live_bytes
        json.dumps(frame, allow_nan=False)
        for pointer, frees in held:
            if not frees:
                pool.free(pointer)


def test_a_block_is_found_at_its_position_and_named():
    with smartpool.SmartPool("model:8GiB") as pool:
        held = [pool.malloc(n * MiB) for n in (3, 20, 5)]
        view = LiveView(pool)
        layout = pool.memory_map()
        position = 0
        for nbytes, block in zip(layout.ranges.nbytes, layout.ranges.block, strict=True):
            lines = view.block({"device": 0, "first": position, "last": position + nbytes})["lines"]
            if block in held:
                size = (3, 20, 5)[held.index(block)]
                assert lines[0] == f"live: {size} MiB"
                assert f"{block:#x}" in lines[1]
            else:
                assert lines[0].startswith(("gap of", "cached"))
            position += nbytes
        assert view.block({"device": 0, "first": position + 5, "last": position + 6})["lines"]
        for pointer in held:
            pool.free(pointer)


def test_a_stitched_block_says_so():
    config = smartpool.SmartPoolConfig(policy="tight", max_bytes="64MiB")
    with smartpool.SmartPool("model:1GiB", config) as pool:
        held = [pool.malloc(4 * MiB) for _ in range(16)]
        for pointer in held[::2]:
            pool.free(pointer)
        large = pool.malloc(32 * MiB)
        view, position, told = LiveView(pool), 0, []
        for nbytes, block in zip(
            *(getattr(pool.memory_map().ranges, name) for name in ("nbytes", "block")), strict=True
        ):
            if block == large:
                told.append(view.block({"device": 0, "first": position, "last": position + nbytes})["lines"])
            position += nbytes
        assert len(told) == 8
        assert all(lines[0] == "live: 32 MiB" and "stitched" in lines[-1] for lines in told)
        for pointer in (*held[1::2], large):
            pool.free(pointer)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": 1}, "device"),
        ({"device": "0"}, "device"),
        ({"cells": 0}, "cells"),
        ({"cells": 1 << 30}, "cells"),
        ({"first": -1}, "first"),
        ({"first": 5, "last": 4}, "last"),
        ({"after": None}, "after"),
    ],
)
def test_a_wrong_question_is_refused(wrong, said):
    with smartpool.SmartPool("model:1GiB") as pool, pytest.raises(InvalidRequestError, match=said):
        LiveView(pool).frame(WHOLE | wrong)


def test_an_empty_and_a_closed_pool_have_frames_too():
    pool = smartpool.SmartPool("model:1GiB")
    view = LiveView(pool)
    assert view.frame(WHOLE)["map"]["extent_bytes"] == 0
    assert view.block({"device": 0, "first": 0, "last": None})["lines"] == ["nothing is mapped here"]
    pool.close()
    assert view.frame(WHOLE)["closed"]


def test_failures_are_told_once_and_no_more_after_the_end():
    config = smartpool.SmartPoolConfig(max_bytes="64MiB")
    with smartpool.SmartPool("model:1GiB", config) as pool:
        view = LiveView(pool)
        forget = pool.hooks.on_out_of_memory(view.note_failure)
        held = pool.malloc(40 * MiB)
        for nbytes in (50 * MiB, 60 * MiB):
            with pytest.raises(smartpool.errors.OutOfMemoryError):
                pool.malloc(nbytes)
        events = view.frame(WHOLE)["events"]
        assert [("50 MiB" in event["text"], "60 MiB" in event["text"]) for event in events] == [
            (True, False),
            (False, True),
        ]
        assert view.frame(WHOLE | {"after": events[-1]["number"]})["events"] == []
        forget()
        pool.free(held)


def test_a_closed_server_is_told_nothing_more():
    with smartpool.SmartPool("model:1GiB") as pool:
        server = pool.serve()
        assert pool.hooks.out_of_memory
        server.close()
        assert not pool.hooks.out_of_memory


def test_a_failure_is_noted_while_a_frame_is_made():
    """It is noted under the pool's lock, which the maker of a frame waits for."""
    config = smartpool.SmartPoolConfig(max_bytes="64MiB")
    with smartpool.SmartPool("model:1GiB", config) as pool:
        view = LiveView(pool)
        forget = pool.hooks.on_out_of_memory(view.note_failure)
        held = pool.malloc(40 * MiB)
        asked, go_on = threading.Event(), threading.Event()
        original = pool.managers[0].snapshot

        def waiting_snapshot():
            asked.set()
            assert go_on.wait(PATIENCE_S)
            return original()

        pool.managers[0].snapshot = waiting_snapshot
        looker = threading.Thread(target=view.frame, args=(WHOLE,))
        looker.start()
        assert asked.wait(PATIENCE_S)
        with pytest.raises(smartpool.errors.OutOfMemoryError):
            pool.malloc(50 * MiB)
        go_on.set()
        looker.join(PATIENCE_S)
        assert not looker.is_alive()
        forget()
        pool.free(held)
