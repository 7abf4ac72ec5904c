"""One attempt at a scenario with driver calls that fail, and the proof that nothing came of it.

The books agree, live is what the caller holds, its bytes are what it wrote, the pool serves the
next request and then the whole device, gives everything back, and closes.
"""

import ctypes
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import call_sites
import pytest

from smartpool.buffer import Buffer
from smartpool.config import SmartPoolConfig
from smartpool.debug.debugging import DebuggingManager
from smartpool.debug_options import DebugOptions
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.errors import (
    AsleepError,
    DriverError,
    DriverOutOfMemoryError,
    OutOfMemoryError,
    PoolClosedError,
    SmartPoolError,
)
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import MiB

CAPACITY = 32 * MiB
ALWAYS = 1 << 30
STAMP = 64  # bytes at either end of a block that are written, and looked at when it goes


class GoesOn:
    """A device that goes on working while the host waits for it."""

    paused: set

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


class ModelDevice(GoesOn, ModelDriver):
    def __init__(self, granularity):
        super().__init__(CAPACITY)
        self.granularity, self.paused = granularity, set()


class CpuDevice(GoesOn, CpuDriver):
    def __init__(self, granularity):
        super().__init__(capacity=CAPACITY)
        self.granularity, self.paused = granularity, set()


class MeasuredDevice(CpuDevice):
    """A device whose prices the pool has to measure."""

    def __init__(self, granularity):
        super().__init__(granularity)
        self.dl_device = (2, 0)


KINDS = {
    "balanced": (ModelDevice, 2 * MiB, SmartPoolConfig()),
    "tight": (ModelDevice, 2 * MiB, SmartPoolConfig(policy="tight")),
    "segments": (ModelDevice, 0, SmartPoolConfig()),
    "direct": (ModelDevice, 2 * MiB, SmartPoolConfig(enable_advanced_pooling=False)),
    "cpu": (CpuDevice, 2 * MiB, SmartPoolConfig()),
    "measured": (MeasuredDevice, 2 * MiB, SmartPoolConfig()),
    "debug": (CpuDevice, 2 * MiB, SmartPoolConfig()),
}
DEBUG_AT_ONCE = "debug without a quarantine"


class Caller:
    """Who makes requests, and knows what is live whatever fails."""

    def __init__(self, kind):
        device, granularity, config = KINDS["debug" if kind == DEBUG_AT_ONCE else kind]
        self.kind = kind
        self.driver = device(granularity)
        self.config = config
        self.readable = issubclass(device, CpuDevice)
        self.pool = None
        self.live = {}
        self.memories = []  # of graphs
        self.buffers = []
        self.consumers = []  # of what buffers exported
        self.stream = self.driver.create_stream()

    def open(self):
        self.pool = AdvancedMemoryPoolManager(self.driver, self.config)
        if self.kind == "debug":
            self.pool = DebuggingManager(self.pool, DebugOptions())
        if self.kind == DEBUG_AT_ONCE:
            self.pool = DebuggingManager(self.pool, DebugOptions(quarantine_bytes=0))

    @property
    def elastic(self):
        """Whether memory that is free in the wrong place can serve a request."""
        return bool(self.driver.granularity) and self.config.enable_advanced_pooling

    def malloc(self, nbytes, stream=None, alignment=512):
        pointer = self.pool.malloc_aligned(nbytes, alignment, stream)
        assert pointer % alignment == 0
        assert pointer not in self.live
        self._stamp(pointer, nbytes)
        self.live[pointer] = nbytes
        return pointer

    def buffer(self, nbytes, stream=None):
        """Hold a `Buffer`."""
        self.buffers.append(Buffer(self.pool, self.pool.malloc(nbytes, stream), nbytes))
        return self.buffers[-1]

    def must_own_its_buffers(self):
        """Find each buffer live or released, whatever happened, and no block freed that is somebody else's.

        A buffer that was freed and does not know it frees the next owner's block when it dies: so those come
        first, and must have their blocks when all buffers are gone.
        """
        if not self.buffers:
            return
        pool, held = self.pool, [buffer for buffer in self.buffers if not buffer.released]
        assert all(pool.owns(buffer.pointer) for buffer in held), "a buffer is not live, and not released"
        sizes, others = [buffer.nbytes for buffer in self.buffers], []
        if not pool.closed:
            with suppress(OutOfMemoryError):
                others += [pool.malloc(nbytes) for nbytes in sizes * 2]
        assert not {buffer.pointer for buffer in held}.intersection(others), "a block has two owners"
        del held
        self.buffers.clear()
        self.consumers.clear()
        assert all(pool.owns(block) for block in others), "a buffer freed a block that was not its own"
        for block in others:
            pool.free(block)

    def free(self, pointer, stream=None):
        self.look(pointer)
        try:
            self.pool.free(pointer, stream)
        except BaseException as error:
            # An error of ours leaves the block live, as it was; only debug mode looks at a block that is
            # free already, and may fail there. An interrupt may come before the free or behind it.
            whole = isinstance(error, SmartPoolError) and self.kind != "debug"
            if not whole and pointer not in self.pool.live_blocks():
                del self.live[pointer]
            raise
        del self.live[pointer]

    def may_fail(self, nbytes):
        """Ask for something that raw segments are too coarse for."""
        try:
            return self.malloc(nbytes)
        except OutOfMemoryError:
            if self.elastic:
                raise
            return None

    def look(self, pointer):
        """Find the bytes of a block as they were written."""
        if self.readable:
            nbytes = self.live[pointer]
            for at, mark in _marks(pointer, nbytes):
                assert ctypes.string_at(at, len(mark)) == mark, f"block {pointer:#x} was written to"

    def _stamp(self, pointer, nbytes):
        if self.readable:
            for at, mark in _marks(pointer, nbytes):
                ctypes.memmove(at, mark, len(mark))


def _marks(pointer, nbytes):
    size = min(STAMP, nbytes)
    mark = (pointer.to_bytes(8, "little") * (STAMP // 8))[:size]
    return (pointer, mark), (pointer + nbytes - size, mark)


@dataclass
class Outcome:
    """What an attempt did: the calls it made, the places that made them, and what was raised."""

    calls: list = field(default_factory=list)
    places: set = field(default_factory=set)
    raised: BaseException | None = None
    fired: int = 0


def attempt(scenario, kind, *, nth=None, times=1, error=None):
    """Run a scenario with the nth call, and those after it, failing; None makes none fail."""
    caller = Caller(kind)
    driver, outcome = caller.driver, Outcome()
    if nth is None or kind == "measured":  # to see it costs more than the rest
        driver.faults.fail("*", nth=ALWAYS, when=lambda call, _: _seen(outcome, call))
    fault = None if nth is None else driver.faults.fail("*", nth=nth, times=times, error=error)
    swallowed = []
    try:
        caller.open()
        with in_destructors() as swallowed:
            scenario(caller)
    except (SmartPoolError, MemoryError, KeyboardInterrupt) as failure:
        if fault is None or not fault.fired:
            raise
        outcome.raised = failure
    outcome.fired = len(fault.fired) if fault else 0
    driver.faults.clear()
    driver.go_on()
    assert driver.faults.lost is None
    for failure in (outcome.raised, *swallowed):
        if failure is not None:
            _must_be_expected(failure, error)
            _forget_frames(failure)
    if caller.pool is not None:
        _must_be_sound(caller, outcome)
    left = driver.held()
    if any(place[0] == "heap/pricing.py" for place in outcome.places) and outcome.fired:
        # What a measurement cannot give back is left to the driver: one chunk, and where it was mapped.
        assert max(left["chunks"], left["reservations"], left["mappings"]) <= 1
    else:
        assert not any(left.values()), left
    assert not driver._queues._events
    return outcome


LOST = "CUDA_ERROR_ECC_UNCORRECTABLE"


def attempt_on_a_lost_device(scenario, kind, nth):
    """Run a scenario with the device lost at the nth call; everything after it fails."""
    caller = Caller(kind)
    driver = caller.driver
    fault = driver.faults.fail("*", nth=nth, error=LOST, sticky=True)
    try:
        caller.open()
        scenario(caller)
    except DriverError as failure:
        assert failure.code == LOST  # noqa: PT017 - what else is raised ends the test
    if not fault.fired or caller.pool is None:
        return
    pool = caller.pool
    with suppress(DriverError):  # what was broken off cannot be mended any more
        pool.check()
    assert pool.live_blocks() == caller.live
    for pointer in list(caller.live):
        pool.free(pointer)
    assert not pool.live_blocks()
    repr(pool)
    for call in (pool.close, pool.snapshot, pool.trim):
        with suppress(DriverError):
            call()
    with pytest.raises((PoolClosedError, DriverError)):  # the latter where something was broken off
        pool.malloc(16 * MiB)


def _seen(outcome, call):
    outcome.calls.append(call)
    place = call_sites.running(call)
    if place is not None:
        outcome.places.add(place)
    return True


def _must_be_expected(raised, error):
    """Let only our word for what went wrong out of the pool, and an interrupt as it is."""
    if isinstance(error, BaseException):
        chain = []
        link = raised
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__cause__ or link.__context__
        assert error in chain, raised
        return
    if isinstance(raised, AsleepError):  # what is to sleep stays awake
        assert isinstance(raised.__cause__, DriverOutOfMemoryError), raised
        return
    assert isinstance(raised, DriverError | OutOfMemoryError), raised
    assert not isinstance(raised, DriverOutOfMemoryError), raised


@contextmanager
def in_destructors():
    """Yield a list of what is raised where nothing can be: in destructors, meanwhile."""
    before, swallowed = sys.unraisablehook, []
    sys.unraisablehook = lambda unraisable: swallowed.append(unraisable.exc_value)
    try:
        yield swallowed
    finally:
        sys.unraisablehook = before


def _forget_frames(error):
    """Let go of what was being made when it was raised."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _must_be_sound(caller, outcome):
    pool, driver = caller.pool, caller.driver
    for memory in caller.memories:
        memory.close()
    if not pool.closed and pool.sleeping.asleep():
        pool.sleeping.wake()
    caller.must_own_its_buffers()
    pool.check()
    driver.check()
    assert pool.live_blocks() == caller.live
    for pointer in caller.live:
        caller.look(pointer)
    if not pool.closed and not (outcome.fired and outcome.places):
        _must_serve(caller)
    for pointer in list(caller.live):
        caller.free(pointer)
    pool.close()
    pool.check()


def _must_serve(caller):
    """Serve one more request, give everything back, and serve the whole device."""
    pool, driver = caller.pool, caller.driver
    try:
        pool.free(pool.malloc(4096))
    except OutOfMemoryError:
        assert sum(caller.live.values()) > CAPACITY // 2
    for pointer in list(caller.live):
        caller.free(pointer)
    pool.check()
    pool.trim(wait=True)
    assert pool.reserved_bytes == 0
    held = driver.held()
    assert (held["chunks"], held["mappings"], held["raw"]) == (0, 0, 0)
    pool.free(pool.malloc(CAPACITY if caller.kind != "debug" else CAPACITY // 2))  # it has guards to lay
    pool.check()
