"""Every driver call of every scenario fails once, in every way it can; nothing may be lost by it.

A scenario is run once to count its calls, then again with the first, the second, ... the last
failing. Afterwards the books agree, live is what the caller holds, the pool serves the next request
and the whole device, gives everything back, and closes.
"""

from __future__ import annotations

import pytest

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import DriverError, OutOfMemoryError, SmartPoolError
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.units import MiB

CAPACITY = 32 * MiB


class Device(ModelDriver):
    """A device that goes on working while the host waits for it."""

    def __init__(self, granularity):
        super().__init__(CAPACITY)
        self.granularity = granularity
        self.paused = set()

    def hold(self, stream):
        self.pause(stream)
        self.paused.add(stream)

    def go_on(self):
        while self.paused:
            self.resume(self.paused.pop())

    def synchronize(self, stream=None):
        self.go_on()
        super().synchronize(stream)

    def synchronize_event(self, event):
        self.go_on()
        super().synchronize_event(event)


class Caller:
    """Who makes requests, and knows what is live whatever fails."""

    def __init__(self, granularity, config):
        self.driver = Device(granularity)
        self.pool = AdvancedMemoryPoolManager(self.driver, config)
        self.stream = self.driver.create_stream()
        self.live = set()

    def malloc(self, nbytes, stream=None, alignment=512):
        pointer = self.pool.malloc_aligned(nbytes, alignment, stream)
        assert pointer % alignment == 0
        self.live.add(pointer)
        return pointer

    def free(self, pointer):
        self.live.remove(pointer)
        self.pool.free(pointer)

    def may_fail(self, nbytes):
        """Ask for something that raw segments are too coarse for."""
        try:
            return self.malloc(nbytes)
        except OutOfMemoryError:
            assert not self.driver.granularity or not self.pool._pooling
            return None


def stitching(caller):
    blocks = [caller.malloc(4 * MiB) for _ in range(6)]
    for block in blocks[::2]:
        caller.free(block)
    caller.may_fail(10 * MiB)
    caller.malloc(1000)
    caller.pool.trim()


def windows_one_after_the_other(caller):
    for _ in range(2):
        blocks = [caller.malloc(3 * MiB + 512) for _ in range(8)]
        for block in blocks[::2]:
            caller.free(block)
        window = caller.may_fail(7 * MiB)
        if window:
            caller.free(window)
        for block in blocks[1::2]:
            caller.free(block)
    caller.pool.trim(wait=True)


def streams(caller):
    block = caller.malloc(20 * MiB, caller.stream)
    caller.driver.hold(caller.stream)
    caller.driver.fill(block, 1, MiB, caller.stream)
    caller.free(block)
    block = caller.malloc(20 * MiB)
    caller.driver.go_on()
    caller.pool.record_stream(block, caller.stream)
    caller.free(block)
    caller.pool.flush()
    caller.pool.order_after(caller.malloc(24 * MiB, caller.stream), 0)
    caller.pool.trim(wait=True)


def alignments(caller):
    blocks = [caller.malloc(3 * MiB + 5, alignment=1 << shift) for shift in (12, 20, 22)]
    for block in blocks:
        caller.free(block)
    caller.malloc(28 * MiB)


def out_of_memory(caller):
    caller.malloc(20 * MiB)
    with pytest.raises(OutOfMemoryError):
        caller.malloc(20 * MiB)
    caller.malloc(12 * MiB)


def planned_steps(caller):
    for _ in range(3):
        caller.pool.begin_step("step", wait_for_plan=True)
        try:
            first, second = caller.malloc(3 * MiB), caller.malloc(5 * MiB)
            caller.free(first)
            caller.free(second)
        finally:
            caller.pool.end_step()
    caller.pool.trim()


def small_and_large(caller):
    blocks = [caller.malloc(step * 700) for step in range(20)]
    for block in blocks[::2]:
        caller.free(block)
    caller.may_fail(29 * MiB)


SCENARIOS = [
    stitching, windows_one_after_the_other, streams, alignments, out_of_memory, planned_steps, small_and_large
]  # fmt: skip
KINDS = {
    "balanced": (2 * MiB, SmartPoolConfig()),
    "tight": (2 * MiB, SmartPoolConfig(policy="tight")),
    "segments": (0, SmartPoolConfig()),
    "direct": (2 * MiB, SmartPoolConfig(enable_advanced_pooling=False)),
}


def attempt(scenario, kind, nth=None, error=None):
    """Run a scenario with the nth call failing; return the calls that were made and what was raised."""
    caller = Caller(*KINDS[kind])
    driver, pool = caller.driver, caller.pool
    calls = []
    if nth is None:
        driver.faults.fail("*", nth=1 << 30, when=lambda call, _: calls.append(call) or True)
    else:
        fault = driver.faults.fail("*", nth=nth, error=error)
    raised = None
    try:
        scenario(caller)
    except (SmartPoolError, MemoryError, KeyboardInterrupt) as failure:
        assert nth is not None
        assert fault.fired
        raised = failure
    driver.faults.clear()
    driver.go_on()
    assert driver.faults.lost is None
    pool.check()
    driver.check()
    assert set(pool.live_blocks()) == caller.live
    for pointer in caller.live:
        pool.free(pointer)
    pool.check()
    pool.trim(wait=True)
    assert pool.reserved_bytes == 0
    held = driver.held()
    assert (held["chunks"], held["mappings"], held["raw"]) == (0, 0, 0)
    pool.free(pool.malloc(CAPACITY))
    pool.check()
    pool.close()
    assert not any(driver.held().values())
    return calls, raised


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_call_fails_once(scenario, kind):
    if kind == "direct" and scenario is planned_steps:
        pytest.skip("without pooling there is nothing to plan")
    calls, _ = attempt(scenario, kind)
    for nth, call in enumerate(calls, 1):
        errors = [None, KeyboardInterrupt("in the middle")]
        if call in ("create_chunk", "allocate"):  # for lack of memory, and for any other reason
            errors.append(DriverError)
        for error in errors:
            _, raised = attempt(scenario, kind, nth, error)
            if raised is not None and not isinstance(error, BaseException):
                assert isinstance(raised, SmartPoolError)


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_of_close_fails_once(kind):
    """What close could not give back, the next close does."""
    for scenario in (streams, stitching):
        for nth in range(1, 200):
            caller = Caller(*KINDS[kind])
            scenario(caller)
            for pointer in list(caller.live):
                caller.free(pointer)
            fault = caller.driver.faults.fail("*", nth=nth)
            try:
                caller.pool.close()
            except DriverError:
                caller.driver.faults.clear()
                caller.pool.check()
                caller.pool.close()
            assert not any(caller.driver.held().values())
            caller.pool.check()
            if not fault.fired:
                break
        assert nth >= 3
