"""What the peers' published rules say, one rule a test, and what holds for all of them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.errors import (
    ConfigurationError,
    InvalidRequestError,
    InvariantError,
    OutOfMemoryError,
    UnknownPointerError,
)
from smartpool.trace.baselines import BASELINES, make_baseline
from smartpool.trace.baselines.cupy import CuPyPool
from smartpool.trace.baselines.pytorch import PyTorchAllocator, round_request
from smartpool.trace.baselines.pytorch_expandable import PyTorchExpandableAllocator
from smartpool.trace.baselines.rmm import RmmPool
from smartpool.units import GiB, MiB

CAPACITY = 256 * MiB


class AllocatorMachine(RuleBasedStateMachine):
    """Any baseline on a device so small that it runs out, against a dict."""

    @initialize(name=st.sampled_from(sorted(BASELINES)))
    def open(self, name):
        self.driver = ModelDriver(CAPACITY)
        self.baseline = make_baseline(name, self.driver)
        self.live = {}

    @rule(
        nbytes=st.one_of(st.integers(1, 4096), st.integers(1, 3 * MiB), st.integers(1, 150 * MiB)),
        stream=st.integers(0, 2),
    )
    def malloc(self, nbytes, stream):
        reserved = self.baseline.reserved_bytes()
        try:
            pointer = self.baseline.malloc(nbytes, stream)
        except OutOfMemoryError:
            assert self.baseline.reserved_bytes() <= max(reserved, CAPACITY)
            return
        for start, (size, _) in self.live.items():
            assert pointer + nbytes <= start or start + size <= pointer
        self.live[pointer] = nbytes, stream

    @rule(pick=st.integers(0, 1 << 30), stream=st.one_of(st.none(), st.integers(0, 2)))
    def free(self, pick, stream):
        if self.live:
            pointer = sorted(self.live)[pick % len(self.live)]
            _, own = self.live.pop(pointer)
            self.baseline.free(pointer, own if stream is None else stream)

    @invariant()
    def everything_holds(self):
        if not hasattr(self, "baseline"):
            return
        self.baseline.check()
        live = sum(size for size, _ in self.live.values())
        assert live <= self.baseline.reserved_bytes() <= self.baseline.peak_reserved_bytes <= CAPACITY
        info = self.driver.memory_info()
        assert info.total - info.free >= self.baseline.reserved_bytes()

    def teardown(self):
        if hasattr(self, "baseline"):
            self.baseline.close()
            assert self.driver.memory_info().free == CAPACITY


AllocatorMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAllocators = AllocatorMachine.TestCase


def make(kind, capacity=GiB, **options):
    return kind(ModelDriver(capacity), **options)


@pytest.mark.parametrize("name", BASELINES)
def test_a_pointer_is_freed_once(name):
    baseline = make_baseline(name, ModelDriver(CAPACITY))
    pointer = baseline.malloc(1000, 0)
    baseline.free(pointer, 0)
    for wrong in (pointer, pointer + 512, 7):
        with pytest.raises(UnknownPointerError, match=name):
            baseline.free(wrong, 0)
    baseline.check()


@pytest.mark.parametrize("name", BASELINES)
def test_out_of_memory_says_who_and_how_much_and_changes_nothing(name):
    baseline = make_baseline(name, ModelDriver(CAPACITY))
    kept = baseline.malloc(1000, 0)
    with pytest.raises(OutOfMemoryError, match=rf"{name} on model:256MiB: .*1 GiB"):
        baseline.malloc(GiB, 0)
    baseline.check()
    baseline.free(kept, 0)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigurationError, match=r"pytorch-expandable.*'tcmalloc'"):
        make_baseline("tcmalloc", ModelDriver(CAPACITY))


@pytest.mark.parametrize("name", BASELINES)
def test_memory_is_real_on_the_cpu_device(name):
    driver = CpuDriver(capacity=128 * MiB)
    baseline = make_baseline(name, driver)
    pointers = [baseline.malloc(size, 0) for size in (100, 3 * MiB, 17)]
    for number, pointer in enumerate(pointers):
        driver.fill(pointer, number + 1, 17, 0)
    assert [driver.read(pointer, 17) for pointer in pointers] == [bytes([n]) * 17 for n in (1, 2, 3)]
    baseline.close()
    driver.close()


# ------------------------------------------------------------------ PyTorch


@pytest.mark.parametrize(
    ("nbytes", "reserved_mib"),
    [(1, 2), (MiB, 2), (MiB + 1, 20), (10 * MiB - 512, 20), (10 * MiB, 10), (10 * MiB + 1, 12)],
)
def test_pytorch_segment_sizes(nbytes, reserved_mib):
    baseline = make(PyTorchAllocator)
    baseline.malloc(nbytes, 0)
    assert baseline.reserved_bytes() == reserved_mib * MiB


def test_pytorch_keeps_streams_and_pools_apart():
    baseline = make(PyTorchAllocator)
    baseline.free(baseline.malloc(512, 0), 0)
    baseline.malloc(512, 1)
    assert baseline.reserved_bytes() == 4 * MiB
    baseline.free(baseline.malloc(2 * MiB, 0), 0)
    baseline.malloc(512, 0)
    assert baseline.reserved_bytes() == 24 * MiB


def test_pytorch_keeps_a_large_block_whole_when_at_most_a_mebibyte_is_left():
    baseline = make(PyTorchAllocator)
    baseline.free(baseline.malloc(12 * MiB, 0), 0)
    whole = baseline.malloc(11 * MiB, 0)
    assert baseline.reserved_bytes() == 12 * MiB
    baseline.free(whole, 0)
    baseline.malloc(11 * MiB - 512, 0)
    baseline.malloc(MiB + 1, 0)  # the rest of it
    assert baseline.reserved_bytes() == 12 * MiB


def test_pytorch_gives_whole_segments_back_and_tries_again():
    baseline = make(PyTorchAllocator, capacity=100 * MiB)
    baseline.free(baseline.malloc(60 * MiB, 0), 0)
    pinned = baseline.malloc(MiB, 0)
    baseline.malloc(70 * MiB, 1)
    assert dict(baseline.driver_calls)["free"] == 1
    assert baseline.reserved_bytes() == 72 * MiB
    baseline.free(pinned, 0)


def test_pytorch_oversize_blocks_are_not_split_and_go_first():
    baseline = make(PyTorchAllocator, capacity=300 * MiB, max_split_bytes=50 * MiB)
    baseline.free(baseline.malloc(60 * MiB, 0), 0)
    baseline.malloc(12 * MiB, 0)  # too small for an oversize block
    assert baseline.reserved_bytes() == 72 * MiB
    baseline.free(baseline.malloc(50 * MiB, 0), 0)  # within 20 MiB of it: served whole
    assert baseline.reserved_bytes() == 72 * MiB
    baseline.malloc(100 * MiB, 0)
    small = baseline.malloc(11 * MiB, 0)
    baseline.free(small, 0)
    assert baseline.reserved_bytes() == 184 * MiB
    baseline.malloc(150 * MiB, 0)  # gives back the 60 MiB, and then everything idle
    assert baseline.reserved_bytes() == 262 * MiB
    baseline.check()


@pytest.mark.parametrize(
    ("nbytes", "divisions", "size"),
    [(0, 0, 512), (513, 0, 1024), (512 * 8, 8, 4096), (1200, 4, 1536), (9 * MiB, 8, 9 * MiB),
     (9 * MiB + 1, 8, 10 * MiB), (8 * MiB, 8, 8 * MiB)],
)  # fmt: skip
def test_pytorch_rounding(nbytes, divisions, size):
    assert round_request(nbytes, divisions) == size


def test_pytorch_divisions_are_a_power_of_two():
    with pytest.raises(InvalidRequestError, match=r"roundup_power2_divisions.*got 3"):
        make(PyTorchAllocator, roundup_power2_divisions=3)


# ------------------------------------------------------------------ PyTorch, expandable segments


def test_expandable_segments_grow_by_chunks_in_one_reservation():
    baseline = make(PyTorchExpandableAllocator)
    first = baseline.malloc(15 * MiB, 0)
    second = baseline.malloc(30 * MiB, 0)
    assert second == first + 15 * MiB
    assert baseline.reserved_bytes() == 60 * MiB
    calls = dict(baseline.driver_calls)
    assert (calls["reserve"], calls["create_chunk"], calls["enable_access"]) == (1, 3, 2)


def test_expandable_segments_give_back_the_chunks_under_free_blocks():
    baseline = make(PyTorchExpandableAllocator, capacity=100 * MiB)
    first, second, third = (baseline.malloc(30 * MiB, 0) for _ in range(3))
    assert baseline.reserved_bytes() == 100 * MiB
    baseline.free(second, 0)  # [30, 60) of 100: one chunk of 20 MiB lies under it alone
    baseline.malloc(512, 1)
    assert baseline.reserved_bytes() == 82 * MiB
    # Both free blocks of 10 MiB lie before unmapped addresses; the one that could grow less goes first.
    assert baseline.malloc(10 * MiB, 0) == second
    assert baseline.malloc(10 * MiB, 0) == third + 30 * MiB
    baseline.check()
    with pytest.raises(OutOfMemoryError):
        baseline.malloc(31 * MiB, 0)
    baseline.check()
    baseline.free(first, 0)
    baseline.check()


def test_expandable_segment_is_unreserved_when_it_is_empty():
    baseline = make(PyTorchExpandableAllocator, capacity=40 * MiB)
    baseline.free(baseline.malloc(40 * MiB, 0), 0)
    baseline.malloc(40 * MiB, 1)
    calls = dict(baseline.driver_calls)
    assert (calls["unreserve"], calls["unmap"], calls["release_chunk"]) == (1, 2, 2)
    baseline.check()


# ------------------------------------------------------------------ CuPy


def test_cupy_grows_by_exactly_what_is_asked_and_splits_everything():
    baseline = make(CuPyPool)
    baseline.free(baseline.malloc(3 * MiB + 1, 0), 0)
    assert baseline.reserved_bytes() == 3 * MiB + 512
    baseline.malloc(512, 0)
    baseline.malloc(3 * MiB, 0)
    assert baseline.reserved_bytes() == 3 * MiB + 512


def test_cupy_frees_whole_chunks_when_memory_is_short():
    baseline = make(CuPyPool, capacity=100 * MiB)
    baseline.free(baseline.malloc(60 * MiB, 0), 0)
    baseline.malloc(80 * MiB, 0)
    assert baseline.reserved_bytes() == 80 * MiB


# ------------------------------------------------------------------ RMM


def test_rmm_doubles():
    baseline = make(RmmPool)
    for expected in (1, 2, 4, 4, 8):
        baseline.malloc(MiB, 0)
        assert baseline.reserved_bytes() == expected * MiB


def test_rmm_tries_less_when_it_cannot_double():
    baseline = make(RmmPool, capacity=100 * MiB)
    baseline.malloc(64 * MiB, 0)
    baseline.malloc(30 * MiB, 0)
    assert baseline.reserved_bytes() == 96 * MiB
    with pytest.raises(OutOfMemoryError):
        baseline.malloc(10 * MiB, 0)
    baseline.check()


def test_rmm_initial_size():
    baseline = make(RmmPool, initial_bytes=64 * MiB)
    baseline.malloc(10 * MiB, 0)
    baseline.malloc(10 * MiB, 1)  # what is free belongs to the default stream: taken from there
    assert baseline.reserved_bytes() == 64 * MiB


def test_rmm_takes_from_another_stream_behind_its_event():
    baseline = make(RmmPool)
    pointer = baseline.malloc(10 * MiB, 1)
    baseline.free(pointer, 1)
    assert baseline.malloc(MiB, 2) == pointer
    assert dict(baseline.driver_calls)["wait_event"] == 1
    assert baseline.reserved_bytes() == 10 * MiB
    baseline.check()


def test_rmm_takes_all_blocks_of_other_streams_over_before_it_grows():
    baseline = make(RmmPool, initial_bytes=30 * MiB)
    first, second, third = (baseline.malloc(10 * MiB, 0) for _ in range(3))
    baseline.free(first, 1)
    baseline.free(second, 2)
    baseline.free(third, 1)
    assert baseline.malloc(30 * MiB, 0) == first
    assert baseline.reserved_bytes() == 30 * MiB
    baseline.check()


def test_check_finds_what_is_wrong():
    baseline = make(CuPyPool)
    pointer = baseline.malloc(1024, 0)
    baseline.malloc(512, 0)
    baseline._live[pointer].size = 512
    with pytest.raises(InvariantError):
        baseline.check()
