"""An interrupt, or no memory for an object, at any line of the pool.

Promised, and held here: no block is handed out twice or loses its memory, what the caller holds stays
as it is, the next call finds the books mended and serves, and what was lost is at most one block (that
of the request or free that was broken off) or one thing that the driver handed out at that instant.

Each line is tried once, where it first comes up; with SMARTPOOL_EVERY_LINE=1 in every scenario and each
time, which takes some minutes.
"""

import inspect
import os
import signal
import sys

import pytest
import scenarios
from attack import DEBUG_AT_ONCE, Caller
from lines import break_off, lines_of

from smartpool.errors import DriverError, OutOfMemoryError
from smartpool.heap.mappings import Mappings
from smartpool.log import LOGGER
from smartpool.units import KiB, MiB, align_up

EVERY = bool(os.environ.get("SMARTPOOL_EVERY_LINE"))
ORDER = [
    (scenario, kind)
    for kind in ("balanced", "segments", "direct", "cpu", "tight")
    for scenario in scenarios.SCENARIOS
    if kind in ("balanced", "segments", "direct")
    or scenario in (scenarios.stitching, scenarios.buffers, scenarios.copies, scenarios.closing)
    if kind != "direct" or scenario not in scenarios.NEED_A_HEAP
    if kind == "cpu" or scenario not in scenarios.READ
]


def chosen(lines, tried):
    """Return which of the lines to try: those that were not tried yet, where they come up first."""
    return [nth for nth, place in enumerate(lines) if EVERY or (place not in tried and not tried.add(place))]


def test_what_is_promised_holds_at_every_line():
    tried = set()
    for scenario, kind in ORDER:
        for nth in chosen(lines_of(scenario, kind), tried):
            error = (KeyboardInterrupt, MemoryError)[nth % 2]("broken off")
            try:
                break_off(scenario, kind, nth, error)
            except BaseException as failure:
                failure.add_note(f"{type(error).__name__} at line {nth} of {scenario.__name__} on {kind}")
                raise
    assert EVERY or len(tried) > 600  # lines of the pool of one device


@pytest.mark.parametrize("kind", ["debug", DEBUG_AT_ONCE])
def test_debug_mode_goes_on_after_it_was_broken_off(kind):
    lines = lines_of(scenarios.buffers, kind)
    parts = ("debug/", "buffer.py", "owner.py")
    for nth in chosen(lines, {place for place in lines if not EVERY and not place[0].startswith(parts)}):
        break_off(scenarios.buffers, kind, nth, KeyboardInterrupt(f"broken off at line {nth}"))


def a_growth_is_refused(caller):
    """When its chunks are mapped already."""
    caller.malloc(2 * MiB)
    caller.driver.faults.fail("enable_access")
    with pytest.raises(DriverError):
        caller.malloc(9 * MiB)


def a_window_is_refused(caller):
    """When its pieces are mapped, some of them new."""
    blocks = [caller.malloc(3 * MiB) for _ in range(8)]
    for block in blocks[::2]:
        caller.free(block)
    caller.driver.faults.fail("enable_access", when=lambda _, arguments: arguments["size"] > 12 * MiB)
    with pytest.raises(DriverError):
        caller.malloc(14 * MiB)


@pytest.mark.parametrize("scenario", [a_growth_is_refused, a_window_is_refused])
def test_an_interrupt_while_another_failure_is_undone(scenario):
    """It comes out as itself there, too, and what was not undone then is undone before the next call."""
    source, first = inspect.getsourcelines(Mappings.take_back)
    lines = lines_of(scenario, "tight")
    undoing = [
        nth
        for nth, (file, line) in enumerate(lines)
        if file == "heap/mappings.py" and first <= line < first + len(source)
    ]
    assert undoing, "nothing is undone in this scenario"
    for nth in range(undoing[0], undoing[-1] + 1):
        break_off(scenario, "tight", nth, KeyboardInterrupt(f"broken off at line {nth}"))


class Alarm(BaseException):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals by a timer are POSIX")
@pytest.mark.parametrize("kind", ["balanced", "cpu", "segments"])
def test_signals_at_any_time(kind, monkeypatch):
    """A handler that raises, as Ctrl-C does, hundreds of times while blocks come and go."""

    def raise_it(_number, _frame):
        raise Alarm

    caller = Caller(kind)
    caller.open()
    pool = caller.pool
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # it comes in destructors, too
    monkeypatch.setattr(LOGGER, "disabled", True)  # an interrupt in `logging` itself leaves its lock taken
    before = signal.signal(signal.SIGALRM, raise_it)
    interrupts = 0
    try:
        while interrupts < 300:
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002 + interrupts % 97 * 0.00002)
                    _come_and_go(caller)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                interrupts += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    pool.flush()
    pool.slow_path.heap.check()
    known = pool.live_blocks()
    assert caller.live.items() <= known.items()
    for pointer in caller.live:
        caller.look(pointer)
    lost = pool.slow_path.heap.live_bytes - sum(align_up(nbytes, 512) for nbytes in known.values())
    assert lost <= interrupts * 3 * MiB
    pool.disown()


def _come_and_go(caller):
    for step in range(40):
        for nbytes in (3 * MiB, 700 * step, 60 * KiB, 2 * MiB + 512):
            try:
                caller.malloc(nbytes)
            except OutOfMemoryError:
                break
        for pointer in list(caller.live)[step % 3 :: 2]:
            caller.free(pointer)
        if step % 8 == 0:
            caller.pool.trim()
