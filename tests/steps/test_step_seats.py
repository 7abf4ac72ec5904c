"""Whatever happens in the middle of a planned request: no two live blocks overlap.

The quick path of a planned request takes no lock. These tests stop it wherever CPython may let a
destructor, a signal or another thread run, and at the beginning of every line, in the quick path and
in the slow one, and do something there.
"""

from __future__ import annotations

import dis
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from waiting import PATIENCE_S, wait_until

from smartpool.driver.model import ModelDriver
from smartpool.errors import PoolClosedError, ReentrantCallError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.steps.planned import PlannedStep
from smartpool.steps.plans import Sequence, make_plan
from smartpool.steps.stand_ins import PlannedBin
from smartpool.units import KiB, MiB

SIZES = (1 * MiB, 1 * MiB + 512, 300 * KiB, 1 * MiB)
PLAN = make_plan(Sequence(SIZES, (1, 2, 3, 4)))
QUICK = [PlannedBin.pop, AdvancedMemoryPoolManager.malloc]
SLOW = [
    PlannedStep.serve,
    PlannedStep._find,
    PlannedStep._order,
    PlannedStep._look_at_due,
    PlannedStep._open_seat,
]
POLLS = ("CALL", "RESUME", "JUMP_BACKWARD")
"""Behind these CPython looks for signals, and lets other threads run."""


def points(functions, behind, *, lines):
    """The bytecodes of functions that stand behind some others, and those that begin a line."""
    found = set()
    for function in functions:
        code, before = function.__code__, ""
        for instruction in dis.get_instructions(code):
            if before.startswith(behind) or (lines and instruction.starts_line):
                found.add((code, instruction.offset))
            before = instruction.opname
    return found


ANYWHERE = {
    "quick": points(QUICK, (*POLLS, "GET_ITER"), lines=True),  # the collector may run at GET_ITER
    "slow": points(SLOW, (*POLLS, "GET_ITER"), lines=True),
}
INTERRUPTS = points([PlannedBin.pop], POLLS, lines=False)


class Planned:
    """A pool in the middle of a planned step whose four slots lie on top of one another.

    A second stream stands still; what it was given to do counts as done only when the first waits.
    """

    def __init__(self, plan=PLAN):
        self.driver = ModelDriver(256 * MiB)
        self.other = self.driver.create_stream()
        self.pool = AdvancedMemoryPoolManager(self.driver)
        self.live: dict[int, int] = {}
        self.used_elsewhere: list[tuple[int, int]] = []
        steps = self.pool.steps
        steps._plans["step"] = {self.driver.default_stream: plan}
        self.pool.free(self.pool.malloc(4 * MiB))  # what the region is made of
        self.pool.begin_step("step")
        assert 0 < steps.statistics.planned_bytes < 2 * MiB
        self.driver.pause(self.other)

    def take(self, nbytes, stream=None):
        self.enter(self.pool.malloc(nbytes, stream), nbytes, stream)

    def enter(self, pointer, nbytes, stream=None):
        for other, size in self.live.items():
            assert pointer + nbytes <= other or other + size <= pointer, "two live blocks overlap"
        self.live[pointer] = nbytes
        touched = [r for r in self.used_elsewhere if r[0] < pointer + nbytes and pointer < sum(r)]
        if touched and stream is None:
            event = self.driver.create_event()
            self.driver.record_event(event, self.driver.default_stream)
            assert not self.driver.event_done(event), "handed out while another stream is at work on it"

    def give(self, stream=None):
        for pointer in list(self.live)[:1]:
            size = self.live.pop(pointer)
            if stream is not None:
                self.driver.fill(pointer, 1, size, stream)
                self.used_elsewhere.append((pointer, size))
            self.pool.free(pointer, stream)

    def give_all_but_the_first(self):
        for pointer in list(self.live)[1:]:
            del self.live[pointer]
            self.pool.free(pointer)

    def use_elsewhere(self):
        for pointer, size in list(self.live.items())[:1]:
            self.pool.record_stream(pointer, self.other)
            self.driver.fill(pointer, 1, size, self.other)
            self.used_elsewhere.append((pointer, size))
            self.give()

    def end(self):
        self.driver.resume(self.other)
        if self.pool.steps.active:
            self.pool.end_step()
        self.pool.check()
        while self.live:
            self.give()
        if not self.pool.closed:
            self.pool.check()
            self.pool.trim(wait=True)
        # A pool that closes in the middle of a request waits for it on a thread.
        wait_until(lambda: self.pool.reserved_bytes == 0)


@contextmanager
def stopped_at(number, places, action):
    """Run `action` once, at the so many-th of the places that this thread comes to."""
    codes = {code for code, _ in places}
    count = 0
    ran = []

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code not in codes or ran:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and (frame.f_code, frame.f_lasti) in places:
            if count == number:
                ran.append(True)
                sys.settrace(None)
                frame.f_trace = None
                action()
                return None
            count += 1
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at this when a trace is set, and not later
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
            except BaseException as error:  # noqa: BLE001 - raised where the thread was started
                caught.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "waits for the thread that waits for it"
        if caught:
            raise caught[0]

    return run


FREES = {
    "nothing": lambda planned: None,
    "a free": lambda planned: planned.give(),
    "a free on another stream": lambda planned: planned.give(planned.other),
}
REQUESTS = {
    "the same request": lambda planned: planned.take(SIZES[1]),
    "the next request": lambda planned: planned.take(SIZES[2]),
    "the next two": lambda planned: (planned.take(SIZES[1]), planned.take(SIZES[2])),
    "a request and its free": lambda planned: planned.pool.free(planned.pool.malloc(SIZES[1])),
    "another request": lambda planned: planned.take(12_345),
    "a free and a request": lambda planned: (planned.give(), planned.take(SIZES[2])),
    "a request on another stream": lambda planned: planned.take(SIZES[1], planned.other),
    "a use elsewhere": lambda planned: planned.use_elsewhere(),
    "a trim": lambda planned: planned.pool.trim(wait=True),
    "a flush": lambda planned: planned.pool.flush(),
}
CASES = [*(("quick", what) for what in (*FREES, *REQUESTS)), *(("slow", what) for what in FREES)]


@pytest.mark.parametrize("late", [False, True], ids=["on time", "late"])
@pytest.mark.parametrize("where", ["a destructor", "another thread"])
@pytest.mark.parametrize(("path", "what"), CASES)
def test_anything_in_the_middle_of_a_planned_request(path, what, where, late):
    places = ANYWHERE[path]
    for number in range(1000):
        planned = Planned()
        planned.take(SIZES[0])
        if path == "slow":
            planned.pool.record_stream(next(iter(planned.live)), planned.other)
        if not late:
            planned.give()
        action = lambda: (FREES | REQUESTS)[what](planned)  # noqa: E731, B023 - run within this turn
        if where == "another thread":
            action = on_another_thread(action)
        with stopped_at(number, places, action) as ran:
            pointer = planned.pool.malloc(SIZES[1])
        planned.enter(pointer, SIZES[1])
        planned.take(SIZES[2])
        planned.take(SIZES[3])
        planned.end()
        if not ran:
            assert number > 8
            return
    raise AssertionError("the planned request has no end")


@pytest.mark.parametrize("where", ["a destructor", "another thread"])
def test_closing_in_the_middle_of_a_planned_request(where):
    for number in range(200):
        planned = Planned()
        action = planned.pool.close
        if where == "another thread":
            action = on_another_thread(action)
        with stopped_at(number, ANYWHERE["quick"], action) as ran:
            try:
                planned.take(SIZES[0])
            except PoolClosedError:
                assert ran
        planned.end()
        if not ran:
            return


@pytest.mark.parametrize("late", [False, True], ids=["on time", "late"])
def test_an_interrupt_in_the_middle_of_a_planned_request(late):
    """It may lose the block, as it may everywhere between a request and its caller; it harms no other."""
    for number in range(200):
        planned = Planned()
        planned.take(SIZES[0])
        if not late:
            planned.give()

        def interrupt():
            raise KeyboardInterrupt

        with stopped_at(number, INTERRUPTS, interrupt) as ran:
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


def test_a_request_in_the_middle_of_the_slow_path_is_refused_or_cached():
    """As in the middle of every search on the same thread."""
    for number in range(1000):
        planned = Planned()
        planned.take(SIZES[0])

        def ask():
            with suppress(ReentrantCallError):
                planned.take(SIZES[2])  # noqa: B023 - run within this turn

        with stopped_at(number, ANYWHERE["slow"], ask) as ran:
            planned.take(SIZES[1])
        planned.take(SIZES[3])
        planned.end()
        if not ran:
            assert number > 8
            return


@pytest.mark.parametrize("where", ["a destructor", "another thread"])
def test_a_free_on_another_stream_while_the_slow_path_gives_the_seat_back(where):
    sizes = (200 * KiB, 1 * MiB, 1 * MiB + 512, 1 * MiB + 210 * KiB)
    plan = make_plan(Sequence(sizes, (3, 2, 3, 4)))
    for number in range(1000):
        planned = Planned(plan)
        third = planned.driver.create_stream()
        planned.take(sizes[0])
        planned.take(sizes[1])
        planned.pool.record_stream(list(planned.live)[1], planned.other)
        planned.give_all_but_the_first()
        action = lambda: planned.give(third)  # noqa: E731, B023 - run within this turn
        if where == "another thread":
            action = on_another_thread(action)
        planned.driver.pause(third)
        with stopped_at(number, ANYWHERE["slow"], action) as ran:
            pointer = planned.pool.malloc(sizes[2])
        planned.enter(pointer, sizes[2])
        planned.pool.free(pointer)
        del planned.live[pointer]
        if not ran:
            planned.give(third)
        planned.driver.resume(planned.other)
        planned.take(sizes[3])
        planned.driver.resume(third)
        planned.end()
        if not ran:
            assert number > 20
            return
