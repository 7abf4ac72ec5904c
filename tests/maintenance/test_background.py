"""The background thread: passes, wakes, errors, ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest
from waiting import PATIENCE_S, wait_until

from smartpool.maintenance.background import Background


class Target:
    def __init__(self):
        self.passes = 0
        self.failures = []
        self.entered = threading.Event()
        self.proceed = threading.Event()
        self.proceed.set()

    def background_pass(self):
        self.passes += 1
        self.entered.set()
        self.proceed.wait(PATIENCE_S)
        if self.failures:
            raise self.failures.pop()


def test_it_passes_every_interval():
    target = Target()
    background = Background(target.background_pass, 0.002)
    assert not background.running
    background.start()
    thread = background._thread
    background.start()
    assert background._thread is thread
    assert thread.daemon
    wait_until(lambda: background.passes > 3)
    background.stop()
    background.stop()
    assert not background.running
    passes = target.passes
    time.sleep(0.01)
    assert target.passes == passes


def test_a_wake_needs_no_interval_and_many_are_one():
    target = Target()
    background = Background(target.background_pass, 3600)
    background.start()
    for _ in range(100):
        background.wake()
    wait_until(lambda: background.passes >= 1)
    assert target.passes <= 2
    background.stop()


def test_it_starts_again_after_a_stop():
    target = Target()
    background = Background(target.background_pass, 3600)
    for _ in range(3):
        background.start()
        passes = background.passes
        background.wake()
        wait_until(lambda passes=passes: background.passes > passes)
        background.stop()


def test_stop_waits_for_the_pass_under_way():
    target = Target()
    target.proceed.clear()
    background = Background(target.background_pass, 3600)
    background.start()
    background.wake()
    assert target.entered.wait(PATIENCE_S)
    background.stop(timeout=0.01)
    assert background.running
    target.proceed.set()
    background.stop()
    assert not background.running
    assert background.passes == 1


def test_errors_are_kept_told_once_and_do_not_end_it(caplog):
    target = Target()
    target.failures = [ValueError("first")]
    background = Background(target.background_pass, 0.002)
    background.start()
    wait_until(lambda: background.passes > 2)
    background.stop()
    assert isinstance(background.take_error(), ValueError)
    assert background.take_error() is None
    assert sum("optimizer failed" in record.message for record in caplog.records) == 1


def test_it_ends_with_its_target():
    target = Target()
    background = Background(target.background_pass, 3600)
    background.start()
    del target
    gc.collect()
    wait_until(lambda: not background.running)


def test_the_pass_itself_may_stop_it():
    class Stopping(Target):
        def background_pass(self):
            super().background_pass()
            background.stop()

    target = Stopping()
    background = Background(target.background_pass, 0.001)
    background.start()
    wait_until(lambda: not background.running)
    assert target.passes == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals by a timer are POSIX")
def test_wakes_in_the_middle_of_wakes():
    """As by a destructor or a signal handler that requests memory while this thread wakes the optimizer."""
    script = """
import faulthandler, signal
from smartpool.maintenance.background import NEVER, Background
faulthandler.dump_traceback_later(60, exit=True)
class Work:
    def do(self):
        pass
work, rung = Work(), 0
background = Background(work.do, NEVER)
def ring(*_):
    global rung
    rung += 1
    background.wake()
background.start()
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
while rung < 2000:
    background.wake()
signal.setitimer(signal.ITIMER_REAL, 0)
background.stop(None)
print(background.running)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
