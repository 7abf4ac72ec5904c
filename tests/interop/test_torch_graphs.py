"""Memory of captured graphs: never another's before the graph is gone, however often it is freed."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from fake_cuda import OK, FakeCuda
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import smartpool
from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.interop._torch_graphs import Graphs

MiB = 1 << 20


class Capturing(FakeCuda):
    """One stream can be captured; what CUDA forbids meanwhile is an error of the test."""

    captured = None
    status = FakeCuda.CUstreamCaptureStatus

    def cuStreamIsCapturing(self, stream):
        assert int(stream), "asking about the legacy stream would ruin the capture"
        active = self.captured is not None and int(stream) == self.captured
        return OK, self.status.CU_STREAM_CAPTURE_STATUS_ACTIVE if active else self.status(0)

    def _allowed(self):
        assert self.captured is None or self.mode.endswith("RELAXED"), "forbidden beside a capture"

    def cuEventQuery(self, event):
        self._allowed()
        return super().cuEventQuery(event)

    def cuCtxSynchronize(self):
        self._allowed()
        return super().cuCtxSynchronize()

    def cuEventRecord(self, event, stream):
        assert int(stream) != self.captured or self.captured is None, "the event would be the capture's"
        return super().cuEventRecord(event, stream)

    def cuStreamWaitEvent(self, stream, event, flags):
        assert int(stream) != self.captured or self.captured is None, "a capture waits for no other work"
        return super().cuStreamWaitEvent(stream, event, flags)

    def cuCtxRecordEvent(self, context, event):
        assert self.captured is None, "invalidates the capture"
        return super().cuCtxRecordEvent(context, event)


def open_pool(fake):
    driver = CudaDriver(0, Bindings(fake, "13.4.4"))
    with patch("smartpool.smart_pool.open_driver", lambda _: driver):
        return smartpool.SmartPool(
            "cuda:0", smartpool.SmartPoolConfig(enable_auto_defragmentation=False, policy="tight")
        )


class GraphMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.fake = Capturing(capacity=128 * MiB)
        self.pool = open_pool(self.fake)
        self.manager = self.pool.managers[0]
        self.graphs = Graphs(self.pool)
        self.streams = [None, *(self.manager.driver.create_stream() for _ in range(2))]
        self.live = {}  # address -> size
        self.baked = {}  # address -> (size, graph)
        self.users = {}  # graph -> how many
        self.capturing = None  # the graph under capture

    def teardown(self):
        if self.capturing is not None:
            self.end()
        for pointer in list(self.live):
            self.free_block(pointer)
        for graph in list(self.users):
            while graph in self.users:
                self.let_go(graph)
        assert self.manager.live_bytes == 0
        self.pool.check()
        self.pool.close()

    # --- what PyTorch does ---

    @rule(size=st.integers(1, 3 * MiB), stream=st.integers(0, 2))
    def allocate(self, size, stream):
        handle = self.streams[stream]
        if self.graphs.captures:
            pointer = self.graphs.allocate(size, 0, handle)
        else:
            pointer = self.manager.malloc(size, handle)
        assert pointer not in self.live
        inside = self.capturing is not None and handle == self.fake.captured
        for address, (length, graph) in self.baked.items():
            apart = pointer + size <= address or address + length <= pointer
            assert apart or (inside and graph == self.capturing), "baked memory has a second owner"
        for address, length in self.live.items():
            assert pointer + size <= address or address + length <= pointer
        self.live[pointer] = size
        if inside:
            self.baked[pointer] = (max(size, self.baked.get(pointer, (0,))[0]), self.capturing)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data):
        self.free_block(data.draw(st.sampled_from(sorted(self.live))))

    def free_block(self, pointer):
        del self.live[pointer]
        if not ((self.graphs.private or self.graphs.captures) and self.graphs.free(pointer, 0)):
            self.manager.free(pointer)

    @precondition(lambda self: self.capturing is None)
    @rule(graph=st.integers(1, 2), stream=st.integers(1, 2))
    def begin(self, graph, stream):
        self.graphs.begin(0, 0, graph)
        self.fake.captured = self.streams[stream]
        self.capturing = graph
        self.users[graph] = self.users.get(graph, 0) + 1

    @precondition(lambda self: self.capturing is not None)
    @rule()
    def end(self):
        graph, self.capturing, self.fake.captured = self.capturing, None, None
        self.graphs.end(0, 0, graph)

    @precondition(lambda self: self.capturing is None and self.users)
    @rule(data=st.data())
    def release(self, data):
        self.let_go(data.draw(st.sampled_from(sorted(self.users))))

    def let_go(self, graph):
        self.graphs.release(0, 0, graph)
        self.users[graph] -= 1
        if not self.users[graph]:
            del self.users[graph]
            self.baked = {address: kept for address, kept in self.baked.items() if kept[1] != graph}

    @precondition(lambda self: self.capturing is None)
    @rule()
    def trim(self):
        self.pool.trim()

    @invariant()
    def books_agree(self):
        assert set(self.graphs.private) == set(self.baked)
        for pointer in self.baked:
            assert self.manager.owns(pointer)
        if self.capturing is None:
            self.pool.check()


TestGraphMemory = GraphMachine.TestCase
TestGraphMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def graphs():
    pool = open_pool(Capturing(capacity=128 * MiB))
    yield Graphs(pool)
    pool.close()


def test_the_background_optimiser_rests_during_a_capture(graphs):
    pool = graphs._pool
    pool.background.start()
    graphs.begin(0, 0, 1)
    assert not pool.background.running
    graphs.end(0, 0, 1)
    assert pool.background.running
    graphs.release(0, 0, 1)


def test_an_end_and_a_release_that_nothing_began_are_ignored(graphs):
    graphs.end(0, 0, 1)
    graphs.release(0, 0, 1)
    assert graphs.held_bytes(0) == 0
