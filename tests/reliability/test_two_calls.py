"""Two calls about one block at once: whichever comes first, it has one owner, and no work is forgotten.

The first call is stopped before each line of the pool in turn, and the second runs meanwhile. A free that is
accepted happens once; a stream that was accepted by `record_stream`, or named by the free, is waited for.
"""

import time
from functools import partial

import pytest
from between import WatchedLock, interleaved
from waiting import PATIENCE_S

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import DoubleFreeError, PoolClosedError, UnknownPointerError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.testing import WatchedDriver
from smartpool.units import MiB

CAPACITY = 16 * MiB
SIZE = 3 * MiB
KINDS = {
    "balanced": SmartPoolConfig(),
    "direct": SmartPoolConfig(enable_advanced_pooling=False),
    "tracked": SmartPoolConfig(track=True),
}
CALLS = {
    "free": lambda case: case.pool.free(case.block),
    "free on its stream": lambda case: case.pool.free(case.block, case.named),
    "record": lambda case: case.pool.record_stream(case.block, case.recorded),
    "order after": lambda case: case.pool.order_after(case.block, case.recorded),
    "request": lambda case: case.got.append(case.pool.malloc(SIZE)),
    "flush": lambda case: case.pool.flush(),
    "trim": lambda case: case.pool.trim(),
    "close": lambda case: case.pool.close(),
    "look": lambda case: case.pool.snapshot(),
}
FREES = ("free", "free on its stream")
USES = ("record", "order after")
TOLD = (DoubleFreeError, UnknownPointerError)


class Case:
    """A pool with one block that two busy streams work on."""

    def __init__(self, kind):
        self.driver = WatchedDriver(ModelDriver(CAPACITY))
        self.pool = AdvancedMemoryPoolManager(self.driver, KINDS[kind])
        self.pool.slow_path.section.lock = WatchedLock()
        self.named, self.recorded = self.driver.create_stream(), self.driver.create_stream()
        self.pool.free(self.pool.malloc(SIZE))
        self.block = self.pool.malloc(SIZE)
        self.got = []

    def streams(self):
        return (("free on its stream", self.named), *((use, self.recorded) for use in USES))

    def work(self, stream):
        self.driver.busy(stream)
        self.driver.fill(self.block, 1, SIZE, stream)

    def forget_work(self, stream):
        """The pool was not told of the stream, and said so: the program's mistake, not the pool's."""
        self.driver._work = [work for work in self.driver._work if work.stream != stream]
        self.driver.torn = [what for what in self.driver.torn if f"of stream {stream}," not in what]

    def must_be_sound(self, outcomes):
        """Look at what came of it; `outcomes` has what each call raised, by name."""
        closed = self.pool.closed
        freed = [name for name in FREES if name in outcomes and outcomes[name] is None]
        assert len(freed) == bool({*FREES} & outcomes.keys()), outcomes
        for name, raised in outcomes.items():
            assert (
                raised is None
                or (name in USES and freed and isinstance(raised, TOLD))
                or (name in FREES and isinstance(raised, TOLD))
                or (closed and isinstance(raised, PoolClosedError))
            ), (name, raised)
        assert self.pool.owns(self.block) is not bool(freed) or self.block in self.got
        for name, stream in self.streams():
            if outcomes.get(name) is not None:
                self.forget_work(stream)
        if not closed:
            self.pool.check()
        if self.block not in self.got:
            self.pool.free(self.block) if not freed else None
        self.must_be_ordered()
        for pointer in self.got:
            self.pool.free(pointer)
        self.must_go()

    def must_be_ordered(self):
        """Ask for all memory on the default stream: it is behind all work that the pool was told of."""
        self.pool.flush()
        while not self.pool.closed:
            try:
                self.got.append(self.pool.malloc(2 * MiB))
            except MemoryError:
                break
        for pointer in self.got:
            assert self.driver.is_ordered(pointer, 2 * MiB, 0), f"{pointer:#x} is still worked on"

    def must_go(self):
        if not self.pool.closed:  # else the last free gives all back
            self.pool.close()
        deadline = time.monotonic() + PATIENCE_S
        while any(self.driver.held().values()):
            assert time.monotonic() < deadline, self.driver.held()
            time.sleep(0.0005)
        assert not self.driver.torn, self.driver.torn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second", ["free", "free on its stream", "record", "close"])
@pytest.mark.parametrize("first", CALLS)
def test_two_calls_at_once(first, second, kind):
    if first == second and first not in FREES:
        pytest.skip("they take turns")
    seen = set()
    while True:
        case = Case(kind)
        for name, stream in case.streams():
            if name in (first, second):
                case.work(stream)
        one, two = interleaved(
            partial(CALLS[first], case),
            partial(CALLS[second], case),
            seen=seen,
            lock=case.pool.slow_path.section.lock,
        )
        if two is None:
            break
        outcomes = {first: one.raised, second: two.raised}
        if first == second:
            assert sum(call.raised is None for call in (one, two)) == 1
            outcomes = {first: None}
        try:
            case.must_be_sound(outcomes)
        except BaseException as error:
            error.add_note(f"{first} stopped at {one.place}, with {second} on {kind}: {outcomes}")
            raise
    assert len(seen) > 3
