"""The cuda driver on a real device: the contract, the state machine, and what only a GPU shows."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from driver_contract import DriverContract
from driver_machine import DriverMachine
from hypothesis import settings
from waiting import PATIENCE_S

from smartpool.driver import open_driver
from smartpool.errors import (
    DeviceNotFoundError,
    DriverError,
    DriverNotInstalledError,
    StreamError,
)

try:
    KEEPER = open_driver("cuda:0")  # keeps the context, so that opening one a test is cheap
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

GiB = 1 << 30


class TestCuda(DriverContract):
    refuses = False

    @pytest.fixture
    def driver(self):
        return open_driver("cuda:0")


class TestCheckedCuda(DriverContract):
    @pytest.fixture
    def driver(self):
        return open_driver("cuda:0", checked=True)


class CudaMachine(DriverMachine):
    def open(self):
        return open_driver("cuda:0", checked=True)


TestCudaMachine = CudaMachine.TestCase
TestCudaMachine.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


@pytest.fixture
def driver():
    driver = open_driver("cuda:0")
    yield driver
    driver.synchronize()
    driver.check()
    assert not any(driver.held().values())
    driver.close()


@pytest.fixture
def busy(driver):
    """Return a function that gives a stream about 60 ms of work."""
    big = driver.allocate(8 * GiB)

    def work(stream):
        for _ in range(30):
            driver.fill(big, 1, 8 * GiB, stream)

    work(0)
    driver.synchronize()
    yield work
    driver.free(big)


def test_it_describes_itself(driver):
    told = driver.describe()
    assert told["device"] == "cuda:0"
    assert told["name"].startswith("NVIDIA")
    assert told["granularity"] == 2 << 20
    assert told["total_bytes"] > told["free_bytes"] > 0


def test_device_out_of_range():
    with pytest.raises(DeviceNotFoundError, match="cuda:99"):
        open_driver("cuda:99")


# --- time ---


def test_an_event_is_not_done_while_its_work_runs(driver, busy):
    stream, event = driver.create_stream(), driver.create_event()
    busy(stream)
    driver.record_event(event, stream)
    assert not driver.event_done(event)
    driver.synchronize_event(event)
    assert driver.event_done(event)
    driver.destroy_event(event)
    driver.destroy_stream(stream)


def test_an_event_destroyed_while_pending_does_not_come_back_pending(driver, busy):
    stream, event = driver.create_stream(), driver.create_event()
    busy(stream)
    driver.record_event(event, stream)
    driver.destroy_event(event)
    fresh = [driver.create_event() for _ in range(10)]
    assert all(driver.event_done(event) for event in fresh)
    assert driver.context.api.cuStreamQuery(driver.stream_handle(stream))[0].name == "CUDA_ERROR_NOT_READY"
    for event in fresh:
        driver.destroy_event(event)
    driver.destroy_stream(stream)


def test_a_waiting_stream_comes_after(driver, busy):
    first, second = driver.create_stream(), driver.create_stream()
    event, address = driver.create_event(), driver.allocate(1 << 20)
    busy(first)
    driver.fill(address, 1, 1 << 20, first)
    driver.record_event(event, first)
    driver.wait_event(second, event)
    driver.destroy_event(event)  # the wait stays
    driver.fill(address, 2, 1 << 20, second)
    driver.synchronize(second)
    assert driver.read(address, 1) == b"\x02"
    driver.free(address)
    driver.destroy_stream(first)
    driver.destroy_stream(second)


def test_a_destroyed_stream_finishes_its_work(driver, busy):
    stream, address = driver.create_stream(), driver.allocate(1 << 20)
    driver.fill(address, 0, 1 << 20, 0)
    driver.synchronize()
    busy(stream)
    driver.fill(address, 9, 1 << 20, stream)
    driver.destroy_stream(stream)
    assert driver.read(address, 1) == b"\x09"
    driver.free(address)


def test_virtual_memory_calls_do_not_wait_for_other_work(driver, busy):
    unit, stream, event = driver.granularity, driver.create_stream(), driver.create_event()
    base, chunk = driver.reserve(unit), driver.create_chunk(unit)
    busy(stream)
    driver.record_event(event, stream)
    driver.map_chunk(base, chunk)
    driver.enable_access(base, unit)
    driver.unmap(base, unit)
    driver.release_chunk(chunk)
    driver.unreserve(base, unit)
    assert not driver.event_done(event)
    driver.synchronize_event(event)
    driver.destroy_event(event)
    driver.destroy_stream(stream)


# --- streams of others ---


def test_default_streams_by_number(driver):
    assert driver.stream(1) == 0
    token = driver.stream(2)
    assert token == driver.stream(2) == driver.stream(token)
    assert token not in (0, 1)
    tokens = []
    thread = threading.Thread(target=lambda: tokens.append(driver.stream(2)))
    thread.start()
    thread.join()
    assert tokens[0] != token
    assert driver.stream(tokens[0]) == tokens[0]


def test_per_thread_streams_of_other_threads_are_waited_for(driver, busy):
    tokens, queued, finish = [], threading.Event(), threading.Event()

    def work():
        tokens.append(driver.stream(2))
        busy(tokens[0])
        queued.set()
        finish.wait(PATIENCE_S)

    thread = threading.Thread(target=work)
    thread.start()
    queued.wait(PATIENCE_S)
    event = driver.create_event()
    driver.record_event(event, driver.stream(2))  # our own, which is idle
    driver.record_event(event, tokens[0])
    done = driver.event_done(event)
    finish.set()
    thread.join()
    assert not done
    driver.synchronize_event(event)
    driver.destroy_event(event)


def test_streams_of_frameworks(driver):
    seen = []
    cupy = pytest.importorskip("cupy")
    seen.append(cupy.cuda.Stream(non_blocking=True))
    torch = pytest.importorskip("torch")
    stream = torch.cuda.Stream()
    assert driver.stream(stream.cuda_stream) == driver.stream(stream.cuda_stream) != stream.cuda_stream
    assert driver.keep_stream(stream.cuda_stream) == stream.cuda_stream == driver.stream(stream.cuda_stream)
    for stream in seen:
        assert driver.stream(stream) == driver.stream(stream.ptr)
        assert int(driver.stream_handle(driver.stream(stream))) == stream.ptr
        driver.synchronize(driver.stream(stream))

    class Named:
        def __cuda_stream__(self):
            return (0, seen[0].ptr)

    assert driver.stream(Named()) == driver.stream(seen[0].ptr)


def test_answers_that_are_no_streams(driver):
    class Wrong:
        __cuda_stream__ = (0, "x")

    class Short:
        def __cuda_stream__(self):
            return (0,)

    for wrong in (Wrong(), Short(), object()):
        with pytest.raises(StreamError, match="__cuda_stream__"):
            driver.stream(wrong)


# --- contexts and threads ---


def test_another_current_context_is_left_in_place(driver):
    api = driver.context.api
    made = api.cuCtxCreate(None, 0, 0) if driver.context.bindings.version >= "13" else api.cuCtxCreate(0, 0)
    assert made[0].name == "CUDA_SUCCESS"
    other = made[1]  # now current on this thread
    try:
        stream = api.cuStreamCreate(1)[1]
        with pytest.raises(StreamError, match="another device"):
            driver.stream(int(stream))
        address = driver.allocate(1 << 20)
        driver.fill(address, 5, 1 << 20, 0)
        assert driver.read(address, 2) == b"\x05\x05"
        event = driver.create_event()
        driver.record_event(event, 0)
        driver.synchronize_event(event)
        driver.destroy_event(event)
        driver.free(address)
        assert int(api.cuCtxGetCurrent()[1]) == int(other)
    finally:
        api.cuCtxDestroy(other)


def test_threads_remap_and_find_their_own_bytes(driver):
    unit, failures, stop = driver.granularity, [], time.monotonic() + 4
    base = driver.reserve(8 * 8 * unit)

    def work(index):
        try:
            stream, mine = driver.create_stream(), base + index * 8 * unit
            step = 0
            while time.monotonic() < stop:
                step += 1
                chunks = [driver.create_chunk(unit) for _ in range(3)]
                values = [(index * 31 + step * 7 + at) % 256 for at in range(3)]
                for at, chunk in enumerate(chunks):
                    driver.map_chunk(mine + at * unit, chunk)
                driver.enable_access(mine, 3 * unit)
                for at, value in enumerate(values):
                    driver.fill(mine + at * unit, value, unit, stream)
                driver.synchronize(stream)
                driver.unmap(mine, 3 * unit)
                for at, chunk in enumerate(reversed(chunks)):
                    driver.map_chunk(mine + (4 + at) * unit, chunk)
                driver.enable_access(mine + 4 * unit, 3 * unit)
                if step % 10 == 0:
                    for at, value in enumerate(reversed(values)):
                        assert driver.read(mine + (5 + at) * unit - 1, 1) == bytes((value,))
                driver.unmap(mine, 8 * unit)
                for chunk in chunks:
                    driver.release_chunk(chunk)
            driver.destroy_stream(stream)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    driver.unreserve(base, 8 * 8 * unit)


# --- processes of their own ---


def run(code, **environment):
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, **environment},
    )


def test_no_visible_device():
    code = "from smartpool.driver import open_driver; open_driver('cuda')"
    done = run(code, CUDA_VISIBLE_DEVICES="")
    assert "DeviceNotFoundError" in done.stderr
    assert "CUDA_VISIBLE_DEVICES" in done.stderr


def test_a_lost_context_fails_every_later_call():
    pytest.importorskip("cupy")
    code = """
import cupy
from smartpool.driver import open_driver
from smartpool.errors import DriverError
d = open_driver("cuda"); a = d.allocate(4096)
cupy.RawKernel('extern "C" __global__ void f(int* p) { p[0] = 1; }', "f")((1,), (1,), (cupy.uint64(0x10),))
for call in (d.synchronize, lambda: d.allocate(1), lambda: d.free(a), lambda: d.event_done(0)):
    try: call(); print("worked")
    except DriverError as error: print(error.call, error.code, "end the process" in str(error))
print(d.held()["raw"])
"""
    lines = run(code).stdout.splitlines()
    assert lines[:3] == [
        f"{call} CUDA_ERROR_ILLEGAL_ADDRESS True" for call in ("synchronize", "allocate", "free")
    ]
    assert lines[-1] == "1"  # the free that failed changed nothing


def test_a_forked_child_gets_a_clear_error():
    code = """
import os, sys
from smartpool.driver import open_driver
from smartpool.errors import DriverError
d = open_driver("cuda"); a = d.allocate(4096)
child = os.fork()
if child == 0:
    try: d.allocate(1); print("worked", flush=True)
    except DriverError as error: print("spawn" in str(error), error.code, flush=True)
    os._exit(0)
os.waitpid(child, 0)
d.free(a); d.check(); print("parent works")
"""
    done = run(code)
    assert done.stdout.splitlines() == ["True CUDA_ERROR_NOT_INITIALIZED", "parent works"], done


def test_leaving_without_closing_is_quiet():
    code = """
from smartpool.driver import open_driver
d = open_driver("cuda"); a = d.allocate(4096); b = d.reserve(1 << 30); c = d.create_chunk(d.granularity)
d.map_chunk(b, c); e = d.create_event(); s = d.create_stream()
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_errors_name_call_arguments_and_code(driver):
    with pytest.raises(DriverError) as caught:
        driver.fill(0x1000, 0, 10, 0)
    assert caught.value.call == "fill"
    assert caught.value.code == "CUDA_ERROR_INVALID_VALUE"
    assert caught.value.arguments["size"] == 10


# --- graphs ---


def test_beside_a_capture(driver):
    """Virtual memory and events are allowed beside a capture; the rest is in relaxed mode."""
    api, unit = driver.context.api, driver.granularity
    stream, event, raw = driver.create_stream(), driver.create_event(), driver.allocate(4096)
    base, chunk = driver.reserve(unit), driver.create_chunk(unit)
    assert not driver.is_capturing(stream)
    begun = api.cuStreamBeginCapture(driver.stream_handle(stream), api.CUstreamCaptureMode(0))
    assert begun[0].name == "CUDA_SUCCESS"
    try:
        assert driver.is_capturing(stream)
        assert not driver.is_capturing(0)
        driver.map_chunk(base, chunk)
        driver.enable_access(base, unit)
        driver.record_event(event, 0)
        driver.fill(raw, 1, 4096, stream)  # captured, not done
        with driver.beside_capture():
            assert driver.event_done(event)
            driver.free(driver.allocate(1 << 20))
            driver.memory_info()
        driver.unmap(base, unit)
    finally:
        ended = api.cuStreamEndCapture(driver.stream_handle(stream))
    assert ended[0].name == "CUDA_SUCCESS"
    api.cuGraphDestroy(ended[1])
    driver.release_chunk(chunk)
    driver.unreserve(base, unit)
    driver.destroy_event(event)
    driver.destroy_stream(stream)
    driver.free(raw)


def test_what_a_capture_forbids_says_so():
    code = """
from smartpool.driver import open_driver
from smartpool.errors import DriverError
d = open_driver("cuda"); s, e = d.create_stream(), d.create_event(); api = d.context.api
for call in (lambda: d.event_done(e), lambda: d.allocate(1)):
    api.cuStreamBeginCapture(d.stream_handle(s), api.CUstreamCaptureMode(0))
    try: call(); print("worked")
    except DriverError as error: print(error.call, "captured" in str(error))
    api.cuStreamEndCapture(d.stream_handle(s))
print(d.event_done(e), d.allocate(1) > 0)
"""
    assert run(code).stdout.splitlines() == ["event_done True", "allocate True", "True True"]
