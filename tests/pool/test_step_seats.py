"""Whatever happens in the middle of a planned request: no two live blocks overlap.

The quick path of a planned request takes no lock. These tests stop it wherever CPython may let a
destructor, a signal or another thread run, and at the beginning of every line, and do something there.
"""

from __future__ import annotations

import dis
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import PoolClosedError
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.steps import StepBin
from smartpool.units import KiB, MiB

POP = StepBin.pop.__code__
SIZES = (1 * MiB, 1 * MiB + 512, 300 * KiB, 1 * MiB)


def bytecodes(*behind, lines=False):
    """The bytecodes behind others of these names, and those that begin a line."""
    found, before = set(), ""
    for instruction in dis.get_instructions(POP):
        if before.startswith(behind) or (lines and instruction.starts_line):
            found.add(instruction.offset)
        before = instruction.opname
    return found


INTERRUPTS = bytecodes("CALL", "RESUME", "JUMP_BACKWARD")
"""Where CPython looks for signals, and lets other threads run."""
ANYTHING = bytecodes("CALL", "RESUME", "JUMP_BACKWARD", "GET_ITER", lines=True)
"""And where the collector may run, and everywhere else that is a step of the algorithm."""


class Planned:
    """A pool in the middle of a planned step whose four slots lie on top of one another."""

    def __init__(self, threads: int = 1):
        self.driver = ModelDriver(256 * MiB)
        self.other_stream = self.driver.create_stream()
        self.pool = AdvancedMemoryPoolManager(self.driver, SmartPoolConfig(recognise_after=None))
        self.live: dict[int, int] = {}
        for _ in range(2):
            self.pool.begin_step("step", wait_for_plan=True)
            for nbytes in SIZES:
                self.pool.free(self.pool.malloc(nbytes))
            self.pool.end_step()
        self.pool.begin_step("step", wait_for_plan=True)
        assert self.pool.snapshot().steps.planned_bytes < 2 * MiB

    def take(self, nbytes, stream=None):
        self.enter(self.pool.malloc(nbytes, stream), nbytes)

    def enter(self, pointer, nbytes):
        for other, size in self.live.items():
            assert pointer + nbytes <= other or other + size <= pointer, "two live blocks overlap"
        self.live[pointer] = nbytes

    def give(self, stream=None):
        if self.live:
            pointer = next(iter(self.live))
            self.pool.free(pointer, stream)
            del self.live[pointer]

    def end(self):
        if self.pool._steps.active:
            self.pool.end_step()
        self.pool.check()
        while self.live:
            self.give()
        if not self.pool._closed:
            self.pool.check()
            self.pool.trim(wait=True)
        deadline = time.monotonic() + 5
        while self.pool.reserved_bytes and time.monotonic() < deadline:
            time.sleep(0.001)  # a pool that closes in the middle of a request waits for it on a thread
        assert self.pool.reserved_bytes == 0


@contextmanager
def before_bytecode(number, action, among):
    """Run `action` once, before the so many-th bytecode `among` these of this thread's planned request."""
    count = 0
    ran = []

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code is not POP or ran:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in among:
            if count == number:
                ran.append(True)
                sys.settrace(None)
                frame.f_trace = None
                action()
                return None
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(before)


def on_another_thread(action):
    def run():
        caught = []

        def guarded():
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - shown by the thread that started it
                caught.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "waits for the thread that waits for it"
        if caught:
            raise caught[0]

    return run


ACTIONS = {
    "the same request": lambda planned: planned.take(SIZES[1]),
    "the next request": lambda planned: planned.take(SIZES[2]),
    "the next two": lambda planned: (planned.take(SIZES[1]), planned.take(SIZES[2])),
    "a request and its free": lambda planned: planned.pool.free(planned.pool.malloc(SIZES[1])),
    "another request": lambda planned: planned.take(12_345),
    "a free": lambda planned: planned.give(),
    "a free and a request": lambda planned: (planned.give(), planned.take(SIZES[2])),
    "a free on another stream": lambda planned: planned.give(planned.other_stream),
    "a request on another stream": lambda planned: planned.take(SIZES[1], planned.other_stream),
    "a use elsewhere": lambda planned: (
        planned.live and planned.pool.record_stream(next(iter(planned.live)), planned.other_stream)
    ),
    "a trim": lambda planned: planned.pool.trim(wait=True),
    "a flush": lambda planned: planned.pool.flush(),
}


@pytest.mark.parametrize("late", [False, True], ids=["as planned", "late"])
@pytest.mark.parametrize("where", ["a destructor", "another thread"])
@pytest.mark.parametrize("what", ACTIONS)
def test_anything_in_the_middle_of_a_planned_request(what, where, late):
    for number in range(200):
        planned = Planned()
        planned.take(SIZES[0])
        if not late:
            planned.give()
        action = lambda: ACTIONS[what](planned)  # noqa: E731, B023 - run within this turn
        if where == "another thread":
            action = on_another_thread(action)
        with before_bytecode(number, action, ANYTHING) as ran:
            pointer = planned.pool.malloc(SIZES[1])
        planned.enter(pointer, SIZES[1])
        planned.take(SIZES[2])
        planned.take(SIZES[3])
        planned.end()
        if not ran:
            assert number > (8 if late else 14)
            return
    raise AssertionError("the planned request has no end")


@pytest.mark.parametrize("where", ["a destructor", "another thread"])
def test_closing_in_the_middle_of_a_planned_request(where):
    for number in range(200):
        planned = Planned()
        action = planned.pool.close
        if where == "another thread":
            action = on_another_thread(action)
        with before_bytecode(number, action, ANYTHING) as ran:
            try:
                planned.take(SIZES[0])
            except PoolClosedError:
                assert ran
        planned.end()
        if not ran:
            assert number > 1
            return


@pytest.mark.parametrize("late", [False, True], ids=["as planned", "late"])
def test_an_interrupt_in_the_middle_of_a_planned_request(late):
    """It may lose the block, as it may everywhere between a request and its caller; it harms no other."""
    for number in range(200):
        planned = Planned()
        planned.take(SIZES[0])
        if not late:
            planned.give()

        def interrupt():
            raise KeyboardInterrupt

        with before_bytecode(number, interrupt, INTERRUPTS) as ran:
            try:
                planned.take(SIZES[1])
            except KeyboardInterrupt:
                assert ran
        planned.pool.check()
        lost = {p: n for p, n in planned.pool.live_blocks().items() if p not in planned.live}
        assert len(lost) <= 1
        planned.live |= lost
        while planned.live:
            planned.give()
        for nbytes in SIZES[2:]:
            planned.take(nbytes)
        planned.end()
        if not ran:
            assert number > 1
            return
