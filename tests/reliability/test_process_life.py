"""The life of a process around a pool: forks, exits, signals, imports; each in a process of its own.

Development mode and every warning as an error: what ends well says nothing, and ends.
"""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from processes import FORKED
from waiting import PATIENCE_S

import smartpool

if sys.platform != "linux":
    pytest.skip("needs the cpu device's virtual memory, and forks", allow_module_level=True)


def run(script, status=0):
    """Run a script; return what it printed. It must end by itself, as it should, without a message."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-W", FORKED, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (status, ""), done.stderr
    return done.stdout


BEGIN = """
import atexit, gc, os, signal, sys, threading, time
import numpy as np
import smartpool
from smartpool.errors import *
MiB = 1 << 20
"""

# ---------------------------------------------------------------------- after the modules


@pytest.mark.parametrize(
    "made",
    [
        'pool = smartpool.SmartPool("cpu"); buffer = pool.empty(9); array = np.from_dlpack(pool.empty(9))',
        'pool = smartpool.SmartPool("cpu"); buffer = pool.empty(5); pool.close()',
        'pool = smartpool.SmartPool("cpu"); array = np.from_dlpack(pool.empty(5)); pool.close()',
        'pool = smartpool.SmartPool("cpu", debug=True); buffer = pool.empty(9); pool.empty(7)',
        'pool = smartpool.SmartPool("cpu", record=True); buffer = pool.empty(10)',
        'pool = smartpool.SmartPool("cpu", optimization_interval=0.01); buffer = pool.empty(10)',
        'pool = smartpool.SmartPool("model:1GiB"); buffer = pool.empty(10); pool.malloc(77)',
        'pool = smartpool.SmartPool("cpu", shareable=True); shared = pool.export(pool.empty(10)).open()',
        'optimizer = smartpool.GPUMemoryOptimizer({"devices": ["cpu"]})',
    ],
)
def test_what_outlives_the_modules_says_nothing(made):
    """A module that is held is emptied when the interpreter ends, and `__main__` is emptied after ours."""
    names = 'name.partition(".")[0] in ("smartpool", "__main__")'
    run(f"{BEGIN}{made}\nsys.held = [module for name, module in sys.modules.items() if {names}]")


# ---------------------------------------------------------------------- forks


def test_a_child_has_nothing_of_the_parents_pool_and_may_have_its_own():
    assert run(
        BEGIN
        + """
pool = smartpool.SmartPool("cpu")
buffer = pool.empty(1000, "uint8")
array = np.from_dlpack(buffer)
array[:] = 7
pointer, other = pool.malloc(5 * MiB), pool.malloc(100)
child = os.fork()
if not child:
    manager = pool.managers[0]
    assert "the parent process's" in repr(pool) and "the parent process's" in repr(manager)
    asked = [lambda: pool.malloc(100), lambda: pool.malloc(9 * MiB), lambda: pool.empty(3),
             pool.get_statistics, pool.check, pool.trim, manager.snapshot, manager.flush,
             manager.fragmentation, lambda: manager.available_bytes]
    for ask in asked:
        try:
            ask()
        except PoolClosedError as error:
            assert "before a fork" in str(error) or ask is pool.trim, error
        else:
            raise AssertionError(ask)
    calls = manager.driver.calls.copy()
    pool.free(pointer)
    buffer.free()
    pool.close()
    pool.close()
    del buffer, array
    assert manager.driver.calls == calls
    with smartpool.SmartPool("cpu") as own:
        mine = np.from_dlpack(own.empty(4 * MiB, "uint8"))
        mine[:] = 9
        assert own.statistics.devices[0].live_bytes == 4 * MiB
        del mine
        own.check()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert (array == 7).all()
pool.free(pointer)
pool.free(other)
pool.check()
print(pool)
"""
    ).startswith("<SmartPool on cpu: 1000 B live")


def test_forks_while_other_threads_are_in_the_middle_of_everything():
    run(
        BEGIN
        + """
sys.setswitchinterval(1e-5)
pool = smartpool.SmartPool("cpu", smartpool.SmartPoolConfig(optimization_interval=0.001, record=True))
over = threading.Event()
def work():
    while not over.is_set():
        held = [pool.empty(size, "uint8") for size in (10, 100_000, 3 * MiB)]
        shared = [np.from_dlpack(buffer) for buffer in held]
        pool.trim()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
mine = np.from_dlpack(pool.empty(1000, "uint8"))
buffer = pool.empty(2000, "uint8")
for turn in range(6):
    child = os.fork()
    if not child:
        signal.alarm(30)
        np.from_dlpack(smartpool.SmartPool("cpu").empty(MiB, "uint8"))[:] = 1
        try:
            np.from_dlpack(buffer)
        except PoolClosedError:
            pass
        del mine, buffer
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, turn
over.set()
for thread in threads:
    thread.join()
pool.check()
pool.close()
"""
    )


def test_a_pool_in_processes_of_multiprocessing():
    assert (
        run("""
import multiprocessing, smartpool
def work(number):
    with smartpool.SmartPool("cpu") as pool:
        pool.free(pool.malloc(number * 100_000))
        return pool.statistics.devices[0].live_bytes
if __name__ == "__main__":
    pool = smartpool.SmartPool("cpu")
    pointer = pool.malloc(1000)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        print(processes.map(work, range(6)))
    pool.free(pointer)
    pool.close()
""")
        == "[0, 0, 0, 0, 0, 0]\n"
    )


# ---------------------------------------------------------------------- the end


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "os._exit(0)", "pool.close()", "del pool"])
def test_the_end_with_everything_held(end):
    """Live blocks, buffers, arrays, a cycle, a plan and the optimizer at work: no message, no crash."""
    run(
        BEGIN
        + f"""
pool = smartpool.SmartPool("cpu", smartpool.SmartPoolConfig(optimization_interval=0.001, record=True))
pointer, buffer = pool.malloc(3 * MiB), pool.empty((100, 100))
array, capsule = np.from_dlpack(pool.empty(5 * MiB, "uint8")), pool.empty(10).__dlpack__()
result = pool.allocate_memory(smartpool.AllocationRequest(size=1000))
cycle = [pool.allocate(7000)]
cycle.append(cycle)
for _ in range(3):
    with pool.step():
        pool.free(pool.malloc(2 * MiB))
kept = pool
{end}
"""
    )


def test_the_end_while_daemon_threads_hold_and_make_buffers():
    run(
        BEGIN
        + """
sys.setswitchinterval(1e-5)
pool = smartpool.SmartPool("cpu")
begun = threading.Barrier(5)
def work():
    held = [pool.allocate(1000), np.from_dlpack(pool.empty(3 * MiB, "uint8"))]
    begun.wait()
    while True:
        held = held[-20:] + [pool.allocate(100 * len(held)), pool.empty(3 * MiB, "uint8")]
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(0.1)
"""
    )


def test_exit_handlers_before_and_after_the_import():
    """They run last in, first out: those from before the import run when SmartPool's own are through."""
    assert (
        run("""
import atexit
held = []
@atexit.register
def before():
    pool, buffer = held
    pool.free(pool.malloc(1000))
    buffer.free()
    pool.check()
    pool.close()
    print("before")
import smartpool
held.append(smartpool.SmartPool("cpu"))
held.append(held[0].allocate(5000))
@atexit.register
def after():
    held[0].free(held[0].malloc(3 << 20))
    print("after")
""")
        == "after\nbefore\n"
    )


def test_destructors_of_globals_that_use_the_pool():
    run(
        BEGIN
        + """
class Late:
    def __init__(self, pool):
        self.pool, self.buffer = pool, pool.allocate(3000)
    def __del__(self):
        self.buffer.free()
pool = smartpool.SmartPool("cpu")
late = Late(pool)
sys.late = Late(pool)  # goes when modules are taken apart
"""
    )


HELD = """
from pickle import dumps
sys.unraisablehook = lambda told: sys.__unraisablehook__(told)  # keeps this module, and what it holds
pool = smartpool.SmartPool("cpu", {options})
pool.start_recording()
buffer, array, views = pool.allocate(100), np.from_dlpack(pool.allocate(100)), pool.allocate(9).memoryview()
pointer = pool.malloc(3 * MiB)
cycle = [pool.allocate(7000)]
cycle.append(cycle)
"""


@pytest.mark.parametrize(
    "more",
    [
        "",
        "pool.close()",
        "sys.modules['held'] = [pool, buffer, array]",
        "shared = pool.export(pool.empty(9)); opened = shared.open(); shared.close()",
        "shared = pool.export(pool.empty(9)); opened = np.from_dlpack(shared.open()); dumps(shared)",
        "server = pool.serve(); (optimizer := smartpool.GPUMemoryOptimizer({'devices': ['cpu']})).pool",
    ],
)
@pytest.mark.parametrize(
    "options", ["track=True", "optimization_interval=0.001", "enable_advanced_pooling=False"]
)
def test_the_end_with_a_hook_of_the_programs_is_silent(options, more):
    """Modules are emptied then before what they defined is dropped: destructors find no name in them."""
    options = f"smartpool.SmartPoolConfig({options}, shareable={'export' in more})"
    if "advanced" in options and "export" in more:
        pytest.skip("raw memory cannot be shared")
    run(BEGIN + HELD.replace("{options}", options) + more)


def test_destructors_use_no_module_at_the_end():
    """Whether the interpreter ends is bound to the destructor: the module's names are gone by then."""
    unsafe = []
    for path in sorted(Path(smartpool.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__del__":
                names = {
                    name.id for line in node.body for name in ast.walk(line) if isinstance(name, ast.Name)
                }
                if "finalizing" not in names or "sys" in names:
                    unsafe.append(f"{path.name}:{node.lineno}")
    assert not unsafe


def test_an_error_of_the_program_is_all_that_is_told():
    command = [
        sys.executable,
        "-X",
        "dev",
        "-c",
        textwrap.dedent(
            BEGIN
            + """
pool = smartpool.SmartPool("cpu")
buffer = pool.empty(100)
raise SystemError("the program's own")
"""
        ),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == "SystemError: the program's own"
    assert lines[0].startswith("Traceback")
    assert done.stderr.count("Traceback") == 1


# ---------------------------------------------------------------------- signals


def test_interrupts_by_the_keyboard():
    run(
        BEGIN
        + """
pool = smartpool.SmartPool("cpu")
armed = False
def handler(*_):  # one interrupt for each turn, and none in the `except`: signals may merge or come late
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, handler)
def lost(unraisable):  # it came within a destructor, which raises nothing: the turn gets another one
    global armed
    assert unraisable.exc_type is KeyboardInterrupt
    armed = True
sys.unraisablehook = lost
def interrupt():
    while seen < 40:
        time.sleep(0.003)
        os.kill(os.getpid(), signal.SIGINT)
seen, kept = 0, {}
threading.Thread(target=interrupt, daemon=True).start()
while seen < 40:
    try:
        armed = True
        while True:
            array = np.from_dlpack(pool.empty(3 * MiB, "uint8"))
            array[-1] = 1
            kept[seen] = array
            pool.trim()
    except KeyboardInterrupt:
        seen += 1
pool.malloc(20 * MiB)
pool.managers[0].slow_path.heap.check()
assert all(array[-1] == 1 for array in kept.values())
os._exit(0)  # a block may be lost, which the pool would wait for
"""
    )


def test_a_handler_that_uses_the_pool():
    """What a handler asks for in the middle of a request is served by a bin, or refused in so many words."""
    assert (
        run(
            BEGIN
            + """
pool = smartpool.SmartPool("cpu", smartpool.SmartPoolConfig(enable_auto_defragmentation=False))
told, held = {"served": 0, "refused": 0}, []
def handler(*_):
    try:
        held.append(pool.malloc(MiB + 512 * len(held)))
        told["served"] += 1
    except ReentrantCallError:
        told["refused"] += 1
    if len(held) > 5:
        pool.free(held.pop())
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while sum(told.values()) < 500:
    blocks = [pool.malloc(nbytes) for nbytes in (100, 3 * MiB, 70_000)]
    for block in blocks:
        pool.free(block)
    pool.trim()
signal.setitimer(signal.ITIMER_REAL, 0)
for block in held:
    pool.free(block)
pool.check()
pool.close()
assert not any(pool.managers[0].driver.held().values())
print(told["served"] > 0)
"""
        )
        == "True\n"
    )


def test_termination():
    run(
        BEGIN
        + """
pool = smartpool.SmartPool("cpu")
buffer = pool.empty(100)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
""",
        status=-15,
    )


# ---------------------------------------------------------------------- imports


def test_imported_twice():
    """Two copies of the package do not meet: each frees its own."""
    run(
        BEGIN
        + """
pool, buffer = (first := smartpool.SmartPool("cpu")), first.empty(1000, "uint8")
for name in [name for name in sys.modules if name.partition(".")[0] == "smartpool"]:
    del sys.modules[name]
import smartpool as again
assert again is not smartpool
other = again.SmartPool("cpu")
np.from_dlpack(other.empty(1000, "uint8"))[:] = np.from_dlpack(buffer)
child = os.fork()
if not child:
    for one, errors in ((pool, smartpool.PoolClosedError), (other, again.PoolClosedError)):
        try:
            one.malloc(1)
        except errors:
            continue
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
pool.check()
other.check()
other.close()
"""
    )


def test_importing_takes_no_driver_and_no_thread():
    run("""
import sys, threading, smartpool
assert threading.active_count() == 1
assert not {"numpy", "cuda", "ctypes"} & set(sys.modules)
""")


def test_subinterpreters_are_refused():
    assert run("""
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
sub = interpreters.create()
interpreters.run_string(sub, '''
import smartpool
for name in ("SmartPool", "plan"):
    try:
        getattr(smartpool, name)
    except smartpool.errors.UnsupportedError as error:
        print(error, flush=True)
''')
interpreters.destroy(sub)
import smartpool
smartpool.SmartPool("model:1GiB").close()
""").startswith("expected the main interpreter, got subinterpreter")


def test_a_closed_standard_error_is_no_reason_to_fail():
    """As under a service manager: nothing is told to nobody."""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(BEGIN + "pool = smartpool.SmartPool('cpu'); kept = pool.empty(9)"),
        ]
        assert (
            subprocess.run(command, stderr=write, stdout=write, timeout=PATIENCE_S, check=False).returncode
            == 0
        )
    finally:
        os.close(write)
