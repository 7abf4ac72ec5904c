"""Layouts are what the allocators did: no two blocks share memory, and what is live is held."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartpool.trace import Trace, bundled
from smartpool.trace.baselines import BASELINES
from smartpool.trace.exporters.torch_snapshot import page_runs
from smartpool.trace.layouts import Layout, layout_of_plan, recorded_layout, watched_replay
from smartpool.trace.replay import replay
from smartpool.trace.targets import open_target


@st.composite
def programs(draw) -> Trace:
    live, rows = [], []
    for number in range(draw(st.integers(1, 40))):
        if live and draw(st.booleans()):
            rows.append((1, *live.pop(draw(st.integers(0, len(live) - 1)))))
        else:
            live.append((number, draw(st.sampled_from([1, 700, 70_000, 3 << 20, 33 << 20]))))
            rows.append((0, *live[-1]))
    op, number, size = zip(*rows, strict=True)
    return Trace.from_columns("t", op=op, id=number, size=size)


def check(layout: Layout, trace: Trace, *, failed: int = 0) -> None:
    """Prove that no two rectangles overlap, that each lies in held memory, and that all bytes are there."""
    lifetimes = trace.lifetimes()
    start, end = lifetimes.start[layout.number], lifetimes.end[layout.number]
    low, high = layout.offset, layout.offset + layout.size
    assert (layout.size > 0).all()
    assert not len(high) or (low.min() >= 0 and high.max() <= layout.span_bytes)
    bytes_of = np.bincount(layout.number, weights=layout.size, minlength=trace.allocations)
    shown = bytes_of > 0
    assert (bytes_of == lifetimes.size)[shown].all()
    assert np.count_nonzero(~shown) == failed
    for row in range(len(low)):
        both = (start < end[row]) & (start[row] < end) & (low < high[row]) & (low[row] < high)
        assert np.flatnonzero(both).tolist() == [row]
    for row in range(len(low)):
        begun = (layout.held_start <= start[row]) & (start[row] < layout.held_end)
        inside = (layout.held_offset <= low[row]) & (high[row] <= layout.held_offset + layout.held_size)
        assert (begun & inside).any()


@pytest.mark.parametrize("name", ["smartpool", *BASELINES])
@given(trace=programs())
@settings(max_examples=15)
def test_every_allocator(name, trace):
    with open_target(name, "model:4GiB") as target:
        run, layout = watched_replay(trace, target)
    check(layout, trace)
    assert layout.reserved.max() == run.peak_reserved_bytes


@given(trace=programs())
@settings(max_examples=15)
def test_requests_that_fail_are_left_out_and_the_rest_stays_in_step(trace):
    with open_target("pytorch", "model:64MiB") as target:
        run, layout = watched_replay(trace, target)
    with open_target("pytorch", "model:64MiB") as target:
        assert replay(trace, target).failed_requests == run.failed_requests
    check(layout, trace, failed=run.failed_requests)


def test_watching_changes_nothing():
    trace = Trace.load(bundled("multistream-mix"))
    for name in ("smartpool", "rmm"):
        with open_target(name, "model:141GiB") as target:
            plain = replay(trace, target)
        with open_target(name, "model:141GiB") as target:
            watched, layout = watched_replay(trace, target)
        assert watched.peak_reserved_bytes == plain.peak_reserved_bytes == layout.span_bytes
        assert watched.driver_calls == plain.driver_calls
        assert watched.timeline == plain.timeline


def test_stitched_blocks_are_shown_in_their_pieces():
    trace = Trace.load(bundled("multistream-mix"))
    with open_target("smartpool", "model:141GiB") as target:
        layout = watched_replay(trace, target)[1]
    assert len(layout.number) > trace.allocations
    check(layout, trace)


@given(trace=programs())
@settings(max_examples=15)
def test_a_plan_has_a_layout(trace):
    layout = layout_of_plan(trace, time_limit=1)
    check(layout, trace)
    assert layout.span_bytes >= trace.peak_live_bytes


def test_recorded_addresses_are_made_compact():
    columns = {"op": [0, 0, 1], "id": [0, 1, 0], "size": [512, 512, 512]}
    assert recorded_layout(Trace.from_columns("t", **columns)) is None
    layout = recorded_layout(Trace.from_columns("t", **columns, address=[1 << 40, 512, 1 << 40]))
    assert layout is not None
    assert (layout.offset.tolist(), layout.span_bytes) == ([512, 0], 1024)


@given(st.lists(st.tuples(st.integers(0, 1 << 61), st.integers(1, 1 << 61)), min_size=1, max_size=6))
def test_a_recording_of_any_addresses_has_a_picture(blocks):
    """As any file may say: no sum on the way leaves 64 bits."""
    columns = {
        "op": [op for _ in blocks for op in (0, 1)],
        "id": [row for row in range(len(blocks)) for _ in (0, 1)],
        "size": [size for _, size in blocks for _ in (0, 1)],
        "address": [address for address, _ in blocks for _ in (0, 1)],
    }
    trace = Trace.from_columns("t", **columns)
    layout = recorded_layout(trace)
    covered = sorted({(address, address + size) for address, size in blocks})
    span, reach = 0, 0
    for begin, end in covered:
        span += max(0, end - max(begin, reach))
        reach = max(reach, end)
    assert layout.span_bytes == span
    assert (layout.offset >= 0).all()
    assert (layout.offset + layout.size <= span).all()
    begins, ends = page_runs(trace.address, trace.size)
    assert (begins < ends).all()
    assert begins[0] <= covered[0][0]
    assert ends[-1] >= reach
