"""Graphs of PyTorch: which memory is meant by which id, and when it goes."""

from __future__ import annotations

import sys
import threading
from unittest.mock import patch

import pytest
from fake_cuda import OK, FakeCuda
from waiting import PATIENCE_S, wait_until

import smartpool
from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.interop._torch_graphs import Graphs

MiB = 1 << 20


class Capturing(FakeCuda):
    """Streams can be captured, and a capture spreads; what CUDA forbids meanwhile is an error of the test."""

    captured = frozenset()
    status = FakeCuda.CUstreamCaptureStatus

    def cuStreamIsCapturing(self, stream):
        assert int(stream), "asking about the legacy stream would ruin the capture"
        active = int(stream) in self.captured
        return OK, self.status.CU_STREAM_CAPTURE_STATUS_ACTIVE if active else self.status(0)

    def _allowed(self):
        assert not self.captured or self.mode.endswith("RELAXED"), "forbidden beside a capture"

    def cuEventQuery(self, event):
        self._allowed()
        return super().cuEventQuery(event)

    def cuCtxSynchronize(self):
        assert not self.captured, "a captured stream is one of the context's"
        return super().cuCtxSynchronize()

    def cuEventRecord(self, event, stream):
        assert int(stream) not in self.captured, "the event would be the capture's"
        return super().cuEventRecord(event, stream)

    def cuStreamWaitEvent(self, stream, event, flags):
        assert int(stream) not in self.captured, "a capture waits for no other work"
        return super().cuStreamWaitEvent(stream, event, flags)

    def cuMemAlloc(self, size):
        self._allowed()
        return super().cuMemAlloc(size)

    def cuCtxRecordEvent(self, context, event):
        assert not self.captured, "invalidates the capture"
        return super().cuCtxRecordEvent(context, event)


@pytest.fixture
def fake():
    return Capturing(capacity=128 * MiB)


@pytest.fixture
def pool(fake):
    driver = CudaDriver(0, Bindings(fake, "13.4.4"))
    config = smartpool.SmartPoolConfig(enable_auto_defragmentation=False, policy="tight")
    with patch("smartpool.pool_set.open_driver", lambda _, **__: driver):
        pool = smartpool.SmartPool("cuda:0", config)
    yield pool
    pool.check()
    assert pool.managers[0].live_bytes == 0
    pool.close()


@pytest.fixture
def graphs(pool):
    return Graphs(pool)


@pytest.fixture
def streams(pool):
    return [pool.managers[0].driver.create_stream() for _ in range(2)]


def test_a_graph_keeps_what_its_captured_streams_requested(fake, pool, graphs, streams):
    first, second = streams
    warm = pool.malloc(MiB, second)
    pool.free(warm)
    graphs.begin(0, 7, 8)
    fake.captured = {first}
    assert graphs.capturing
    inside = pool.malloc(MiB, first)
    outside = pool.malloc(MiB, second)  # an eager request beside the capture
    fake.captured = {first, second}  # the capture has spread by an event
    joined = pool.malloc(MiB, second)
    assert (graphs.holds(inside), graphs.holds(outside), graphs.holds(joined)) == (True, False, True)
    for pointer in (inside, joined):
        pool.free(pointer)
    fake.captured = frozenset()
    graphs.end(0, 7, 8)
    assert not graphs.capturing
    eager = [pool.malloc(MiB, stream) for stream in (first, second) for _ in range(5)]
    assert not {inside, joined} & set(eager)
    assert graphs.held_bytes(0) == 2 * MiB
    assert graphs.held_bytes(1) == 0
    graphs.release(0, 7, 8)
    assert graphs.held_bytes(0) == 0
    for pointer in [*eager, outside]:
        pool.free(pointer)


def test_what_others_captured_is_held_by_graphs_too(fake, pool, graphs, streams):
    fake.captured = {streams[0]}
    pointer = pool.malloc(MiB, streams[0])
    fake.captured = frozenset()
    assert graphs.holds(pointer)
    assert graphs.held_bytes(0) >= MiB
    assert graphs.held_bytes(1) == 0
    pool.free(pointer)
    pool.trim(captures=True)
    assert not graphs.holds(pointer)
    assert graphs.held_bytes(0) == 0


def test_graphs_that_share_a_memory(fake, pool, graphs, streams):
    for _ in range(2):
        graphs.begin(0, 1, 1)
        fake.captured = {streams[0]}
        pointer = pool.malloc(MiB, streams[0])
        pool.free(pointer)
        fake.captured = frozenset()
        graphs.end(0, 1, 1)
    assert graphs.held_bytes(0) == MiB
    graphs.release(0, 1, 1)
    assert graphs.holds(pointer)
    graphs.release(0, 1, 1)
    assert not graphs.holds(pointer)


def test_a_graph_that_goes_beside_another_capture(fake, pool, graphs, streams):
    graphs.begin(0, 1, 1)
    pool.free(pool.malloc(MiB, streams[0]))
    fake.captured = {streams[0]}
    kept = pool.malloc(MiB, streams[0])
    fake.captured = frozenset()
    graphs.end(0, 1, 1)
    graphs.begin(0, 2, 2)
    fake.captured = {streams[1]}
    graphs.release(0, 1, 1)
    pool.free(kept)
    pool.free(pool.malloc(3 * MiB, streams[1]))
    assert pool.trim() == 0
    fake.captured = frozenset()
    graphs.end(0, 2, 2)
    graphs.release(0, 2, 2)


def test_an_end_and_a_release_that_nothing_began_are_ignored(graphs):
    graphs.end(0, 0, 1)
    graphs.release(0, 0, 1)
    assert graphs.held_bytes(0) == 0


def test_requests_of_a_capture_that_torch_did_not_announce(fake, pool, streams):
    warm = pool.malloc(MiB, streams[0])
    pool.free(warm)
    fake.captured = {streams[0]}
    inside = pool.malloc(2 * MiB, streams[0])
    fake.captured = set(streams)  # the capture has spread by an event
    joined = pool.malloc(MiB, streams[1])
    fake.captured = frozenset()
    fake.capture_id += 1
    fake.captured = {streams[0]}
    another = pool.malloc(MiB, streams[0])
    fake.captured = frozenset()
    first, second = pool.managers[0].graphs.memories
    assert (first.holds(inside), first.holds(joined), second.holds(another)) == (True, True, True)
    for pointer in (inside, joined, another):
        pool.free(pointer)
    eager = [pool.malloc(MiB, stream) for stream in streams for _ in range(5)]
    assert not {inside, joined, another} & set(eager)
    for pointer in eager:
        pool.free(pointer)
    pool.trim(captures=True)
    assert not pool.managers[0].graphs.found


def test_a_graph_that_goes_in_the_middle_of_a_request_waits_for_nobody(pool, graphs):
    """Its thread holds the pool, which another thread that begins a capture waits for."""
    graphs.begin(0, 1, 1)
    graphs.end(0, 1, 1)
    beginning = threading.Thread(target=graphs.begin, args=(0, 2, 2), daemon=True)

    def waits():
        frame = sys._current_frames().get(beginning.ident)
        while frame is not None and frame.f_code.co_name != "begin_capture":
            frame = frame.f_back
        return frame is not None

    def make_room(_nbytes):  # under the pool's lock; as a destructor there
        if beginning.ident is None:
            beginning.start()
            wait_until(waits)
            graphs.release(0, 1, 1)
            assert not graphs.holds(0)
            assert graphs.held_bytes(0) == 0
        return False

    pool.add_out_of_memory_callback(make_room)

    def request():
        with pytest.raises(smartpool.OutOfMemoryError):
            pool.malloc(200 * MiB)
        with pytest.raises(smartpool.OutOfMemoryError):
            pool.malloc(100 * MiB), pool.malloc(100 * MiB)

    asking = threading.Thread(target=request, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    beginning.join(PATIENCE_S)
    assert not asking.is_alive()
    assert not beginning.is_alive()
    graphs.end(0, 2, 2)
    graphs.release(0, 2, 2)
    for pointer in list(pool.managers[0].live_blocks()):
        pool.free(pointer)
