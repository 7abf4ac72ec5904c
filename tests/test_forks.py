"""What a forked child makes anew: every lock of the package, so that none can be forgotten.

The locks are found in the source, and again as attributes of objects: a scene has an object of every class
that makes one. Another thread holds all of them while the process forks.
"""

from __future__ import annotations

import ast
import gc
import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest

import smartpool
from smartpool import metrics, optimizer
from smartpool.driver.checked import CheckedDriver
from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.driver.model import ModelDriver
from smartpool.forks import ModuleLock, call_in_children, renewed
from smartpool.live.traffic import Traffic
from smartpool.live.view import LiveView
from smartpool.steps.planning import Planning

if sys.platform != "linux":
    pytest.skip("needs forks, and the cpu device's virtual memory", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent / "driver" / "kit"))

from fake_cuda import FakeCuda

from smartpool.interop import _torch_segments
from smartpool.interop._torch_front import Front
from smartpool.interop._torch_graphs import Graphs

PACKAGE = Path(smartpool.__file__).parent
MAKERS = {
    "threading": {"Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier"},
    "_thread": {"allocate_lock", "RLock"},
    "queue": {"Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"},
}
LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event)
FRAME = {"device": 0, "first": 0, "last": None, "cells": 4, "after": 0}
PATIENCE_S = 60

pytestmark = pytest.mark.filterwarnings("ignore:This process .*is multi-threaded:DeprecationWarning")


def makers_in_source():
    """Yield (file, line, the nodes around it from the inside) where the source makes a lock, or says how."""
    for path in sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "forks.py"}):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        outer = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in filter(_makes_a_lock, ast.walk(tree)):
            around = [node]
            while around[-1] in outer:
                around.append(outer[around[-1]])
            if not _is_annotation(around):
                yield path.relative_to(PACKAGE).as_posix(), node.lineno, around


def _makes_a_lock(node):
    if isinstance(node, ast.ImportFrom):  # by a name of its own: say `threading.Lock`
        return any(alias.name in MAKERS.get(node.module, ()) for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr in MAKERS.get(getattr(node.value, "id", ""), ())


def _is_annotation(around):
    return any(
        inner in (getattr(one, "annotation", None), getattr(one, "returns", None))
        for inner, one in pairwise(around)
    )


def _enclosing(around, kind):
    return [node.name for node in around if isinstance(node, kind)]


def test_every_lock_is_made_by_renewed_or_in_what_children_call():
    unknown = []
    for file, line, around in makers_in_source():
        calls = {getattr(node.func, "id", "") for node in around if isinstance(node, ast.Call)}
        functions = _enclosing(around, ast.FunctionDef)
        if not (calls & {"renewed", "ModuleLock"} or any(name in RENEWERS for name in functions)):
            unknown.append(f"{file}:{line}")
    assert not unknown, "make locks by `smartpool.forks.renewed`: a child must not meet what a thread held"


RENEWERS = {
    "_renew_lock",  # of host drivers, by `call_in_children`
    "use_lock",  # which that calls
    "_taken",  # what `renewed` calls for the background thread
}


@pytest.fixture
def scene():
    """Return an object of every class that makes a lock, and what is to be kept with them."""
    fake = Bindings(FakeCuda(capacity=64 << 20), "13.4.4")
    on_cuda = smartpool.SmartPool(CudaDriver(0, fake), smartpool.SmartPoolConfig(record=True))
    own = smartpool.GPUMemoryOptimizer({"devices": ["cpu"], "track": True})
    made = [
        on_cuda, own, own.streams(), own.pool, LiveView(own.pool),
        Traffic(own.pool, on_cuda.recording(), 1.0), Graphs(on_cuda),
        Front(0, 65536, print, first=0, second=0, throw=0, room=1024), Planning(dict),
        CheckedDriver(ModelDriver(1 << 20)),
    ]  # fmt: skip
    yield made
    own.close()
    on_cuda.close()


def locks_of_objects():
    """Return (object, attribute, lock) for every lock that an object of the package has."""
    found = []
    gc.unfreeze()  # what is frozen would not be told
    gc.collect()  # and what is garbage is nobody's, and no weak reference finds it
    for owner in gc.get_objects():
        kind = type(owner)
        if str(kind.__module__).partition(".")[0] != "smartpool":
            continue
        slots = {name for base in kind.__mro__ for name in base.__dict__.get("__slots__", ())}
        for name in slots | getattr(owner, "__dict__", {}).keys():
            lock = getattr(owner, name, None)
            if isinstance(lock, LOCKS):
                found.append((owner, name, lock))
    return found


def test_no_lock_of_the_parents_is_met_in_a_child(scene):
    """Other threads may hold any of them: the child has others, in the same places."""
    locks = locks_of_objects()
    made_by = {name for _, _, around in makers_in_source() for name in _enclosing(around, ast.ClassDef)[:1]}
    classes = {base.__name__ for owner, _, _ in locks for base in type(owner).__mro__}
    assert made_by <= classes, "the scene lacks an object of these classes: " + str(made_by - classes)
    of_modules = (optimizer._making, metrics._registering, _torch_segments._emptying)
    assert set(map(id, of_modules)) <= {id(owner) for owner, _, _ in locks if isinstance(owner, ModuleLock)}
    assert in_a_child(lambda: [name for owner, name, lock in locks if getattr(owner, name) is lock]) == "[]"


def test_a_child_uses_everything_while_another_thread_holds_all_locks(scene):
    _, own, streams, pool, view, traffic, graphs, ring, *_ = scene
    held, over = threading.Event(), threading.Event()

    def hold():
        inner = [getattr(lock, "_cond", lock) for _, _, lock in locks_of_objects()]
        taken = [lock for lock in inner if lock.acquire(blocking=False)]  # not what it waits for itself
        held.set()
        over.wait(PATIENCE_S)
        for lock in taken:
            lock.release()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(PATIENCE_S)

    def use():
        told = []
        for ask in (
            lambda: pool.malloc(100), lambda: pool.statistics, pool.memory_map, pool.recording,
            pool.start_tracking, pool.stop_tracking, pool.reset_peaks, pool.measured_reduction,
            lambda: pool.empty(3), pool.trim, lambda: own.pool, streams.next, lambda: view.frame(FRAME),
            traffic.stop, ring.drain, lambda: graphs.held_bytes(0), pool.optimize_memory, pool.close,
            own.close,
        ):  # fmt: skip
            try:
                ask()
            except smartpool.SmartPoolError as error:
                told.append(type(error).__name__)
        return sorted(set(told) - {"PoolClosedError", "DriverError"})

    try:
        assert in_a_child(use) == "[]"
    finally:
        over.set()
        thread.join()


def in_a_child(work):
    """Return what `work` returned in a forked child, as text; it must end in time."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(PATIENCE_S)
            os.write(write, repr(work()).encode())
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(write, repr(error).encode())
        finally:
            os._exit(1)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(read) as pipe:
        told = pipe.read()
    assert status == 0, f"{status}: {told}"
    return told


class Counted:
    def __init__(self, log):
        self.log = log
        self.lock = renewed(self, "lock", threading.Lock)
        call_in_children(self, Counted.note)

    def note(self):
        self.log.append(id(self.lock))


def test_children_of_children_too_and_nothing_is_kept_alive():
    log = []
    counted, gone = Counted(log), Counted([])
    first = id(counted.lock)
    del gone
    gc.collect()

    def twice():
        inner = in_a_child(lambda: len(log))
        return len(log), inner, first not in log[:1]

    assert in_a_child(twice) == "(1, '2', True)"
    assert not log
