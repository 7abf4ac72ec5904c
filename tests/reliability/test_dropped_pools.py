"""A pool that nobody holds gives everything back: what is live by its bare address, and what was lost, too.

An explicit close leaves live blocks valid until they are freed; once the pool is gone nobody can free them.
"""

import gc
import subprocess
import sys
import threading

import pytest
import scenarios
from attack import KINDS, Caller

from smartpool import MiB, SmartPool, SmartPoolConfig
from smartpool.debug_options import DebugOptions
from smartpool.driver.model import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager


def must_be_empty(driver):
    assert not any(driver.held().values()), driver.held()
    assert not driver._queues._events
    driver.check()
    driver.synchronize()
    assert driver.faults.lost is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "measured"])
@pytest.mark.parametrize("scenario", scenarios.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_whatever_it_did_before(scenario, kind):
    cannot = {
        "direct": scenarios.NEED_A_HEAP,
        "segments": (scenarios.a_step_that_is_left,),
        "debug": (scenarios.capturing, scenarios.closed_beside_a_capture, scenarios.out_of_memory),
    }
    caller = Caller(kind)
    if scenario in cannot.get(kind, ()) or (scenario in scenarios.READ and not caller.readable):
        pytest.skip("it needs what this pool has not")
    caller.open()
    if kind == "debug":
        vars(caller.pool)["options"] = DebugOptions(leaks=False)
    scenario(caller)
    driver = caller.driver
    if caller.live:
        assert any(driver.held().values())
    vars(caller).clear()  # the bare addresses are all that is left
    gc.collect()
    must_be_empty(driver)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("settings", [{}, {"track": True}])
def test_at_once(no_collector, settings, closed):
    driver = ModelDriver(64 * MiB)
    pool = AdvancedMemoryPoolManager(driver, SmartPoolConfig(**settings))
    stream = driver.create_stream()
    for nbytes in (1000, 3 * MiB, 5 * MiB):
        pool.malloc(nbytes, stream)
    driver.pause(stream)
    block = pool.malloc(4 * MiB, stream)
    driver.fill(block, 1, 4 * MiB, stream)
    if closed:
        pool.close()
    driver.resume(stream)
    del pool
    must_be_empty(driver)


def test_what_was_lost_goes_too(no_collector):
    """An interrupt may lose a block: then a closed pool waits for it, and a dropped one does not."""
    driver = ModelDriver(64 * MiB)
    pool = AdvancedMemoryPoolManager(driver)
    pool.malloc(3 * MiB)
    dict.pop(pool.slow_path.live, pool.malloc(5 * MiB))
    pool.slow_path.section.torn = True
    del pool
    must_be_empty(driver)


def test_a_planned_step_and_a_graph_in_the_middle():
    driver = ModelDriver(64 * MiB)
    pool = AdvancedMemoryPoolManager(driver)
    for _ in range(2):
        pool.begin_step("step", wait_for_plan=True)
        for block in [pool.malloc(3 * MiB), pool.malloc(5 * MiB)]:
            pool.free(block)
        pool.end_step()
    pool.begin_step("step", wait_for_plan=True)
    pool.malloc(3 * MiB)
    assert pool.steps.regions()
    del pool
    gc.collect()
    must_be_empty(driver)


def test_the_memory_of_a_capture_that_was_not_announced():
    pool = SmartPool("model:64MiB")
    driver = pool.managers[0].driver
    stream = driver.create_stream()
    driver.begin_capture(stream)
    pool.malloc(3 * MiB, stream)
    driver.end_capture(stream)
    assert driver.held()["raw"]
    del pool
    gc.collect()
    must_be_empty(driver)


def test_what_cannot_be_given_back_is_a_warning():
    driver = ModelDriver(64 * MiB)
    pool = AdvancedMemoryPoolManager(driver)
    pool.malloc(3 * MiB)
    driver.faults.fail("unmap")
    with pytest.warns(ResourceWarning, match="keeps its memory"):
        del pool


PROGRAM = """
import ctypes, gc, warnings
import smartpool

def held():
    pages, resident = map(int, open("/proc/self/statm").read().split()[:2])
    return pages >> 18, resident >> 8  # GiB of addresses, MiB of memory

def pool():
    return smartpool.SmartPool("cpu", enable_auto_defragmentation=False)

def round(number):
    one = pool()
    block = one.malloc(32 << 20)
    ctypes.memset(block, 1, 32 << 20)
    if number % 2:
        one.close()

round(0), round(1)
before = held()
for number in range(10):
    round(number)
gc.collect()
addresses, resident = (now - then for now, then in zip(held(), before))
print(addresses, resident)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_real_memory_and_addresses_go():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    addresses, resident = map(int, done.stdout.split())
    assert addresses < 8
    assert resident < 64


def test_a_buffer_or_an_array_keeps_the_pool():
    pool = SmartPool("cpu")
    manager, driver = pool.managers[0], pool.managers[0].driver
    buffer = pool.empty(1000, "uint8")
    view = buffer.memoryview()
    view[:] = b"x" * 1000
    del pool, manager, buffer
    gc.collect()
    assert driver.held()["mappings"] == 1
    assert bytes(view) == b"x" * 1000
    del view
    gc.collect()
    assert not any(driver.held().values())


@pytest.mark.filterwarnings("ignore:.*never freed:RuntimeWarning")
@pytest.mark.parametrize(
    "settings", [{}, {"track": True}, {"debug": True}, {"enable_advanced_pooling": False}]
)
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("buffer_first", [False, True])
def test_in_a_cycle_with_its_buffers(no_collector, monkeypatch, settings, closed, buffer_first):
    """The collector ends a pool before or after the buffers that it finds with it."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    driver = ModelDriver(64 * MiB)
    held = []
    if buffer_first:
        held.append(SmartPool("model:64MiB").allocate(5))  # so that one is older than the pool
    pool = SmartPool(driver, SmartPoolConfig(**settings))
    held += [pool.allocate(nbytes) for nbytes in (1000, 3 * MiB, 5 * MiB)]
    held += [pool, held, *pool.managers]
    if closed:
        pool.close()
    del pool, held
    gc.collect()
    assert not told
    must_be_empty(driver)


@pytest.mark.parametrize("last", ["the pool", "a buffer of a closed pool"])
def test_no_destructor_waits_for_the_device(no_collector, last):
    before = threading.enumerate()  # those of pools that other tests dropped for good
    driver = ModelDriver(64 * MiB)
    pool = SmartPool(driver)
    stream = driver.create_stream()
    buffer = pool.allocate(4 * MiB, stream)
    driver.pause(stream)
    driver.fill(buffer.pointer, 1, 4 * MiB, stream)
    if last == "the pool":
        del pool, buffer
    else:
        pool.close()
        del buffer
    assert any(driver.held().values())
    driver.resume(stream)
    for thread in threading.enumerate():
        if thread.name == "smartpool-closing" and thread not in before:
            thread.join(60)
    must_be_empty(driver)
