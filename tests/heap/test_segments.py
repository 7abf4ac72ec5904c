"""Pools on devices without virtual memory: raw segments, whole or not at all."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import DriverError, InvariantError, OutOfMemoryError, RequestTooLargeError
from smartpool.heap.segments import SegmentHeap
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import KiB, MiB

CAPACITY = 64 * MiB


class RawModel(ModelDriver):
    """Raw memory only, as where the platform lacks the virtual-memory calls."""

    def __init__(self, capacity=CAPACITY):
        super().__init__(capacity)
        self.granularity = 0


class RawCpu(CpuDriver):
    def __init__(self):
        super().__init__(capacity=CAPACITY)
        self.granularity = 0


class SegmentMachine(RuleBasedStateMachine):
    """Any program on raw memory, with real bytes, several streams and refusals of the device."""

    def __init__(self):
        super().__init__()
        self.driver = RawCpu()
        self.pool = AdvancedMemoryPoolManager(self.driver)
        self.streams = [0, self.driver.create_stream()]
        self.live = {}

    @rule(
        nbytes=st.one_of(st.integers(0, 4 * KiB), st.integers(0, 6 * MiB), st.just(33 * MiB)),
        stream=st.sampled_from([0, 1]),
        shift=st.sampled_from([9, 9, 9, 12, 21, 23]),
    )
    def malloc(self, nbytes, stream, shift):
        try:
            pointer = self.pool.malloc_aligned(nbytes, 1 << shift, self.streams[stream])
        except (OutOfMemoryError, DriverError):
            return
        assert pointer % (1 << shift) == 0
        for other, size in self.live.items():
            assert pointer + max(nbytes, 1) <= other or other + max(size, 1) <= pointer
        self.live[pointer] = nbytes
        if nbytes:
            self.driver.write(pointer, bytes([pointer >> 9 & 255]) * min(nbytes, KiB))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), stream=st.sampled_from([None, 0, 1]))
    def free(self, data, stream):
        pointer = data.draw(st.sampled_from(sorted(self.live)))
        nbytes = self.live.pop(pointer)
        if nbytes:
            ends = min(nbytes, KiB)
            assert self.driver.read(pointer, ends) == bytes([pointer >> 9 & 255]) * ends
        self.pool.free(pointer, None if stream is None else self.streams[stream])

    @rule(keep=st.integers(0, CAPACITY))
    def trim(self, keep):
        try:
            self.pool.trim(keep)
        except DriverError:
            return

    @rule(call=st.sampled_from(["allocate", "free", "record_event"]), nth=st.integers(1, 3))
    def script_fault(self, call, nth):
        self.driver.faults.fail(call, nth=nth)

    @invariant()
    def agrees(self):
        self.pool.check()
        assert self.pool.live_blocks() == self.live

    def teardown(self):
        self.driver.faults.clear()
        for pointer in self.live:
            self.pool.free(pointer)
        self.pool.trim(wait=True)
        assert self.pool.reserved_bytes == 0
        self.pool.close()
        assert not any(self.driver.held().values())


TestSegments = SegmentMachine.TestCase
TestSegments.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_request_of_the_whole_device():
    pool = AdvancedMemoryPoolManager(RawModel())
    assert isinstance(pool.slow_path.heap, SegmentHeap)
    pool.free(pool.malloc(CAPACITY))
    with pytest.raises(RequestTooLargeError):
        pool.malloc(CAPACITY + 1)
    pool.check()


@pytest.mark.parametrize("nbytes", [100, 600 * KiB, 1 * MiB, 5 * MiB, 17 * MiB])
@pytest.mark.parametrize("shift", [9, 12, 16, 20, 21, 23, 25])
def test_alignments(nbytes, shift):
    pool = AdvancedMemoryPoolManager(RawModel(128 * MiB))
    pool.malloc(700)
    pool.malloc(3 * MiB)
    assert pool.malloc_aligned(nbytes, 1 << shift) % (1 << shift) == 0
    pool.check()


def test_small_and_large_help_each_other_out_when_the_device_is_full():
    pool = AdvancedMemoryPoolManager(RawModel(32 * MiB))
    large = pool.malloc(20 * MiB)  # takes a shared segment of all there is
    small = [pool.malloc(1000) for _ in range(100)]
    pool.check()
    for pointer in (*small, large):
        pool.free(pointer)
    pool.trim()
    assert pool.reserved_bytes == 0


def test_segments_are_never_joined_and_go_back_whole():
    driver = RawModel()
    pool = AdvancedMemoryPoolManager(driver)
    first, second = pool.malloc(32 * MiB), pool.malloc(32 * MiB)
    pool.free(first)
    with pytest.raises(OutOfMemoryError):
        pool.malloc(33 * MiB)
    pool.free(second)
    pool.free(pool.malloc(64 * MiB))
    assert driver.calls["allocate"] - driver.calls["free"] == 1


def test_a_segment_under_running_work_stays():
    driver = RawModel()
    pool = AdvancedMemoryPoolManager(driver)
    block = pool.malloc(8 * MiB)
    driver.pause(0)
    driver.fill(block, 1, MiB, 0)
    pool.free(block)
    assert pool.trim() == 0
    driver.resume(0)
    assert pool.trim() == 32 * MiB
    assert driver.faults.lost is None


def test_check_finds_a_lost_segment():
    pool = AdvancedMemoryPoolManager(RawModel())
    pool.malloc(Random(1).randrange(5000))
    pool.slow_path.heap._segments.clear()
    with pytest.raises(InvariantError):
        pool.check()
