"""Exports that outlive the interpreter: exit status 0, nothing on standard error, memory still there.

Each test is a program of its own, run with the debug allocators and with warnings as errors.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE_S

import smartpool

PREAMBLE = """
import atexit, ctypes, gc, os, sys, threading, time
import numpy as np
from smartpool.dlpack import DType, export

class Owner:
    ended = False

    def __init__(self, dtype="int32", words=b"still here"):
        self.dtype = DType.parse(dtype)
        self.memory = ctypes.create_string_buffer(words, 64)

    def __dlpack__(self, *, stream=None, **asked):
        address = ctypes.addressof(self.memory)
        return export(self, pointer=address, shape=(4, 2), dtype=self.dtype, device=(1, 0), **asked)

    def __dlpack_device__(self):
        return (1, 0)

def capsules():
    return Owner().__dlpack__(), Owner("bfloat16").__dlpack__(max_version=(1, 0))
"""

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def run(program: str) -> str:
    """Run a program to its end and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(Path(smartpool.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PREAMBLE + program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


CONSUME = {"numpy": "consume = np.from_dlpack", "torch": "import torch; consume = torch.from_dlpack"}
consumers = pytest.mark.parametrize("consumer", ["numpy", pytest.param("torch", marks=needs_torch)])


@consumers
def test_held_by_modules_classes_cycles_and_threads(consumer: str) -> None:
    program = """
in_module = [consume(Owner()), capsules()]

class Holder:
    in_class = consume(Owner())

    def __init__(self):
        self.myself, self.array, self.capsules = self, consume(Owner()), capsules()

Holder()  # a cycle, never collected before the end
gc.disable()
sys.held_by_a_builtin_module = [consume(Owner()), capsules()]

local = threading.local()

def wait(event):
    local.array, stacked, more = consume(Owner()), consume(Owner()), capsules()
    event.wait()

threading.Thread(target=wait, args=(threading.Event(),), daemon=True).start()
late = threading.Event()
threading.Thread(target=wait, args=(late,)).start()
threading.Timer(0.05, late.set).start()
"""
    run(CONSUME[consumer] + program)


@consumers
def test_made_and_dropped_by_exit_hooks_and_destructors(consumer: str) -> None:
    program = """
held = [consume(Owner())]

def at_exit():
    consume(Owner())
    held.append(consume(Owner()))
    held.pop(0)
    held.append(capsules())

atexit.register(at_exit)

class Late:
    def __del__(self, consume=consume, Owner=Owner, capsules=capsules):
        consume(Owner())
        Late.kept = consume(Owner()), capsules()
        capsules()

sys.late = late = Late()
"""
    run(CONSUME[consumer] + program)


@pytest.mark.parametrize("attempt", range(3))
def test_daemon_threads_that_go_on_to_the_end(attempt: int) -> None:
    """With NumPy only: on Python 3.11 even `torch.zeros` in a daemon thread aborts the process at the end."""
    program = f"""
def churn():
    while True:
        array = consume(Owner())
        capsules()
        del array

for _ in range(4):
    threading.Thread(target=churn, daemon=True).start()
time.sleep({0.02 + attempt * 0.03})
"""
    run(CONSUME["numpy"] + program)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="registers handlers with the C library")
@pytest.mark.parametrize("version", [None, (1, 0)])
def test_native_code_reads_and_releases_after_the_interpreter(version: tuple[int, int] | None) -> None:
    """Handlers of the C library run after the interpreter has ended, last registered first."""
    form = "LEGACY_NAME, ManagedTensor" if version is None else "VERSIONED_NAME, ManagedTensorVersioned"
    printed = run(f"""
from smartpool.dlpack.capsule import _pointer_of
from smartpool.dlpack.structs import *
name, struct = {form}
rename = ctypes.pythonapi.PyCapsule_SetName
rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
used = b"used_" + name

def hand_to_native_code():
    capsule = Owner().__dlpack__(max_version={version})
    address = _pointer_of(capsule, name)
    rename(capsule, used)
    managed = struct.from_address(address)
    libc = ctypes.CDLL(None)
    for function, argument in ((managed.deleter, address), (libc.puts, managed.data)):
        function = ctypes.cast(function, ctypes.c_void_p)
        assert libc.__cxa_atexit(function, ctypes.c_void_p(argument), None) == 0

hand_to_native_code()
print("the end", flush=True)
""")
    assert printed.split("\n") == ["the end", "still here", ""]


def test_the_owner_is_not_dropped_after_the_end() -> None:
    """A destructor that runs while modules are taken apart would find half of its world gone."""
    printed = run("""
class Loud(Owner):
    def __del__(self):
        os.write(1, self.memory.value)

array, held = np.from_dlpack(Loud(words=b"dropped before")), np.from_dlpack(Loud(words=b"never"))
del array
""")
    assert printed == "dropped before"
