"""The errors that PyTorch throws when the pool has no memory: made here, thrown through real C++ frames."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from waiting import PATIENCE_S

pytest.importorskip("torch")
if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
    pytest.skip("machine code for Linux on x86-64", allow_module_level=True)

ROOT = Path(__file__).parents[2]

# A C++ allocator of PyTorch's is an object with a table of functions; the third is `allocate`. In the place
# of the host's it is called by every kernel that makes a tensor, through the same frames as a device's.
PRELUDE = """
import ctypes, threading, torch
from smartpool.driver.protocol import MemoryInfo
from smartpool.errors import OutOfMemoryError, StreamError
from smartpool.interop._torch_callbacks import AllocateFunction, address_of
from smartpool.interop._torch_rescue import ROOM, CppErrors, Rescue
from smartpool.interop._torch_front import Front
from smartpool.interop.torch import _libc10

kept = torch.ones(1000)
libc10 = _libc10(torch)

class Exported:  # what libc10 exports in all releases: in 2.11 for CUDA this class is somewhere else
    def __getitem__(self, name):
        if "OutOfMemoryError" in name:
            raise AttributeError(f"undefined symbol: {name}")
        return libc10[name]

errors = CppErrors(Exported())

class Manager:
    class driver:
        @staticmethod
        def memory_info():
            return MemoryInfo(free=5 << 30, total=80 << 30)

    def malloc(self, size, stream):
        raise problem

rescue = Rescue({0: Manager()}, errors)
problem, asked = None, []

def allocate(size, device, stream):
    asked.append(threading.get_ident())
    return rescue.allocation_failed(problem, 2 << 30, 0, None)

calls_us = address_of(AllocateFunction, allocate)
code = Front(0, 65536, print, first=calls_us, second=calls_us, throw=errors.throw, room=ROOM).allocate
table = (ctypes.c_void_p * 8)(*[code] * 8)
fake = (ctypes.c_void_p * 1)(ctypes.addressof(table))
set_allocator = libc10._ZN3c1012SetAllocatorENS_10DeviceTypeEPNS_9AllocatorEh
set_allocator.argtypes = (ctypes.c_int8, ctypes.c_void_p, ctypes.c_uint8)
get_allocator = libc10._ZN3c1012GetAllocatorERKNS_10DeviceTypeE
get_allocator.argtypes, get_allocator.restype = (ctypes.POINTER(ctypes.c_int8),), ctypes.c_void_p
hosts_own = get_allocator(ctypes.c_int8(0))

class failing:
    def __init__(self, error):
        self.error = error

    def __enter__(self):
        global problem
        problem = self.error
        set_allocator(0, ctypes.addressof(fake), 3)

    def __exit__(self, *_):
        set_allocator(0, hosts_own, 3)

def raised(error, function):
    with failing(error):
        try:
            function()
        except BaseException as caught:
            return caught
    raise AssertionError("nothing was raised")
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program) + "\nprint('alive')"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["alive"]), done.stdout + done.stderr


def test_out_of_memory_is_pytorchs_own_error_with_the_pools_story():
    run("""
        calls = lambda: torch.ones(300), lambda: kept + 1, lambda: kept.clone(), lambda: torch.zeros(8)
        for function in calls:
            error = raised(OutOfMemoryError("17 of 18 bytes are live \\u2014 \\ud800"), function)
            assert type(error) is torch.OutOfMemoryError, type(error)
            text = str(error)
            assert text.startswith(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80.00 GiB "
                "of which 5.00 GiB is free. 17 of 18 bytes"
            ), text
        assert rescue.failures == len(asked) == 4
        assert float((kept + 1).sum()) == 2000
    """)


def test_other_failures_are_errors_of_pytorchs_that_begin_with_their_class():
    run("""
        error = raised(StreamError("expected a stream of this device"), lambda: torch.ones(300))
        assert type(error) is RuntimeError
        assert str(error).startswith("StreamError: expected a stream of this device"), error
        assert rescue.failures == 0
    """)


def test_thousands_of_errors_leave_nothing_behind():
    """An exception that is freed twice, or whose text is, ends the process sooner or later."""
    run("""
        import resource
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        def many(count):
            with failing(OutOfMemoryError("x" * 5000)):
                for _ in range(count):
                    try:
                        torch.empty(10)
                    except torch.OutOfMemoryError:
                        pass
        many(1000)
        before = peak()
        many(10_000)
        assert peak() - before < 20_000, peak() - before  # KiB; their texts alone are 50 MB
    """)


def test_autograd_carries_the_error_to_the_thread_that_waits():
    run("""
        class Node(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2
            @staticmethod
            def backward(ctx, g):
                set_allocator(0, ctypes.addressof(fake), 3)
                return g * 2
        problem = OutOfMemoryError("nothing left")
        out = Node.apply(torch.ones(10, requires_grad=True)).sum()
        errors_seen = []
        def work():
            try:
                out.backward()
            except BaseException as error:
                errors_seen.append(error)
        thread = threading.Thread(target=work)
        thread.start(); thread.join()
        set_allocator(0, hosts_own, 3)
        assert [type(error) for error in errors_seen] == [torch.OutOfMemoryError], errors_seen
    """)


def test_what_failed_with_another_error_is_tried_again_and_control_c_is_kept():
    run("""
        class Interrupt(KeyboardInterrupt):
            pass
        def in_two():
            try:
                torch.ones(5)
            finally:
                for _ in range(1000):
                    pass
        problem = Interrupt("^C")
        Manager.malloc = lambda self, size, stream: (_ for _ in ()).throw(OutOfMemoryError("full"))
        caught = raised(problem, in_two)
        assert isinstance(caught, Interrupt), caught
        assert isinstance(caught.__context__, torch.OutOfMemoryError), caught.__context__
    """)
