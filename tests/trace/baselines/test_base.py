"""What the peers' published rules say, one rule a test, and what holds for all of them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from peers import make

from smartpool.driver import CpuDriver, ModelDriver
from smartpool.errors import (
    ConfigurationError,
    InvariantError,
    OutOfMemoryError,
    UnknownPointerError,
)
from smartpool.trace.baselines import BASELINES, make_baseline
from smartpool.trace.baselines.cupy import CuPyPool
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


def test_check_finds_what_is_wrong():
    baseline = make(CuPyPool)
    pointer = baseline.malloc(1024, 0)
    baseline.malloc(512, 0)
    baseline._live[pointer].size = 512
    with pytest.raises(InvariantError):
        baseline.check()
