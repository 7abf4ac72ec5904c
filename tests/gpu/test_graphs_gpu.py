"""CUDA graphs captured by CuPy and by the raw driver, over memory of a pool."""

from __future__ import annotations

import gc
import threading

import pytest

import smartpool
import smartpool.interop.cupy as interop
from smartpool.driver import open_driver
from smartpool.errors import CaptureError, DeviceNotFoundError, DriverError, DriverNotInstalledError

try:
    KEEPER = open_driver("cuda:0")
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)
cupy = pytest.importorskip("cupy")

MiB = 1 << 20
API = KEEPER.context.api


@pytest.fixture(params=["balanced", "tight"])
def pool(request):
    config = smartpool.SmartPoolConfig(max_bytes="2GiB", policy=request.param)
    with smartpool.SmartPool("cuda:0", config) as pool:
        yield pool
        gc.collect()
        KEEPER.synchronize()
        pool.check()


@pytest.fixture
def new_stream(pool):  # `pool`: captures end before it does
    """Make streams whose captures end with the test: nothing waits for the device beside one left behind."""
    made = []

    def make(*, non_blocking=True):
        made.append(cupy.cuda.Stream(non_blocking=non_blocking))
        return made[-1]

    yield make
    for stream in made:
        if KEEPER.is_capturing(KEEPER.stream(stream.ptr)):
            API.cuStreamEndCapture(API.CUstream(stream.ptr))


@pytest.fixture(params=[True, False], ids=["non-blocking", "blocking"])
def stream(request, new_stream):
    return new_stream(non_blocking=request.param)


def others_write(pool, size=32 * MiB):
    """Fill whatever the pool hands out, to spoil what was not kept."""
    blocks = [pool.malloc(size) for _ in range(40)]
    for block in blocks:
        pool.managers[0].driver.fill(block, 0xEE, size, 0)
    KEEPER.synchronize()
    for block in blocks:
        pool.free(block)


def test_a_graph_of_cupy_keeps_its_memory(pool, stream):
    with interop.using(pool):
        given = cupy.arange(1 << 20, dtype=cupy.float32)
        cupy.cuda.runtime.deviceSynchronize()
        with stream:
            warm = given * 2 + 1  # compiled before the capture
            del warm
            warm = given * given
            del warm
        stream.synchronize()
        with pool.capture(stream) as held, stream:
            stream.begin_capture()
            first = given * 2
            second = first + 1
            del first  # its memory is the graph's
            third = second * second
            graph = stream.end_capture()
        assert held.held_bytes >= 8 * MiB
        others_write(pool)
        for value in (1.0, 3.0):
            given[:] = value
            cupy.cuda.runtime.deviceSynchronize()
            others_write(pool)
            graph.launch(stream)
            stream.synchronize()
            assert float(third[-1]) == (2 * value + 1) ** 2
            assert float(third.min()) == float(third.max())
        del second, third
        others_write(pool)
        graph.launch(stream)
        stream.synchronize()
    del graph
    held.close()
    assert held.held_bytes == 0


def test_growth_and_windows_inside_of_a_capture(pool, stream):
    """A pool that has nothing yet grows beside the capture, in whichever way it likes."""
    driver = pool.managers[0].driver
    torn = [pool.malloc(24 * MiB) for _ in range(30)]
    for pointer in torn[::2]:
        pool.free(pointer)
    with pool.capture(stream) as held:
        stream.begin_capture()
        blocks = []
        for size in (1000, 40 * MiB, 100 * MiB, 3 * MiB, 500 * MiB):
            block = pool.malloc(size, stream.ptr)
            driver.fill(block, len(blocks) + 1, size, stream.ptr)
            blocks.append((block, size))
        pool.free(pool.malloc(10 * MiB))  # the default stream goes on
        graph = stream.end_capture()
    for pointer, _ in blocks:
        pool.free(pointer)
    others_write(pool, 8 * MiB)
    graph.launch(stream)
    stream.synchronize()
    for number, (pointer, size) in enumerate(blocks):
        assert driver.read(pointer + size - 1, 1) == bytes([number + 1])
    held.close()
    for pointer in torn[1::2]:
        pool.free(pointer)


def test_a_capture_that_spreads_to_a_second_stream(pool, stream, new_stream):
    second = new_stream()
    driver = pool.managers[0].driver
    with pool.capture(stream) as held:
        stream.begin_capture()
        fork = stream.record()
        second.wait_event(fork)
        assert driver.is_capturing(driver.stream(second.ptr))
        block = pool.malloc(5 * MiB, second.ptr)
        assert held.holds(block)
        driver.fill(block, 9, 5 * MiB, second.ptr)
        stream.wait_event(second.record())
        graph = stream.end_capture()
    pool.free(block)
    others_write(pool)
    graph.launch(stream)
    stream.synchronize()
    assert driver.read(block, 1) == b"\x09"
    held.close()


def test_two_graphs_in_one_memory(pool, stream):
    held, graphs = None, []
    driver = pool.managers[0].driver
    for value in (1, 2):
        with pool.capture(stream, memory=held) as held:
            stream.begin_capture()
            block = pool.malloc(20 * MiB, stream.ptr)
            driver.fill(block, value, 20 * MiB, stream.ptr)
            pool.free(block)
            graphs.append(stream.end_capture())
    assert held.held_bytes == 20 * MiB
    for value, graph in enumerate(graphs, 1):
        graph.launch(stream)
        stream.synchronize()
        assert driver.read(block, 1) == bytes([value])
    held.close()


def test_by_the_raw_driver_and_in_every_mode(pool):
    driver = pool.managers[0].driver
    stream = driver.create_stream()
    for mode in (0, 1, 2):  # global, thread-local, relaxed
        with pool.capture(stream) as held:
            assert (
                API.cuStreamBeginCapture(driver.stream_handle(stream), API.CUstreamCaptureMode(mode))[0] == 0
            )
            try:
                block = pool.malloc(MiB, stream)
                driver.fill(block, mode + 1, MiB, stream)
                pool.free(block)
                pool.trim()
            finally:
                code, graph = API.cuStreamEndCapture(driver.stream_handle(stream))
            assert code == 0
        code, ready = API.cuGraphInstantiate(graph, 0)[:2]
        assert code == 0
        assert API.cuGraphLaunch(ready, driver.stream_handle(stream))[0] == 0
        driver.synchronize()
        assert driver.read(block, 1) == bytes([mode + 1])
        API.cuGraphExecDestroy(ready)
        API.cuGraphDestroy(graph)
        held.close()
    driver.destroy_stream(stream)


@pytest.mark.parametrize("warm", [False, True])
def test_a_capture_without_the_scope(pool, stream, warm):
    with interop.using(pool):
        given = cupy.arange(1 << 20, dtype=cupy.float32)
        cupy.cuda.runtime.deviceSynchronize()
        (given * 2 + 1) * (given + given)  # compiled before the capture
        if warm:
            with stream:
                (given * 2 + 1) * (given + given)
        cupy.cuda.runtime.deviceSynchronize()
        graphs = []
        for _ in range(2):
            with stream:
                stream.begin_capture()
                first = given * 2
                second = first + 1
                del first
                third = second * second
                graphs.append((stream.end_capture(), second, third))
        memories = list(pool.managers[0].graphs.memories)
        assert len(memories) == 2
        for memory, (_, second, third) in zip(memories, graphs, strict=True):
            assert memory.holds(second.data.ptr)
            assert memory.holds(third.data.ptr)
        del second, third
        for value in (1.0, 3.0):
            given[:] = value
            cupy.cuda.runtime.deviceSynchronize()
            others_write(pool)
            for graph, second, third in graphs:
                graph.launch(stream)
                stream.synchronize()
                assert float(second[0]) == 2 * value + 1
                assert float(third[-1]) == (2 * value + 1) ** 2
        others = [pool.malloc(4 * MiB, stream.ptr) for _ in range(20)]
        assert not any(memory.holds(block) for memory in memories for block in others)
        for block in others:
            pool.free(block)
        graphs.clear()
        del graph, second, third
        gc.collect()
        KEEPER.synchronize()
        pool.trim(captures=True)
        assert not any(memory.held_bytes for memory in memories)
        assert cupy.empty(1000, dtype=cupy.float32).size == 1000


def test_a_capture_without_the_scope_that_spreads_and_fails(pool, new_stream):
    driver = pool.managers[0].driver
    with interop.using(pool):
        first, second = new_stream(), new_stream()
        with first:
            cupy.zeros(1000)
        first.synchronize()
        first.begin_capture()
        with first:
            a = cupy.empty(1000)
        second.wait_event(first.record())
        with second:
            b = cupy.empty(1000)
        assert (
            driver.is_capturing(driver.stream(second.ptr))
            == driver.is_capturing(driver.stream(first.ptr))
            != 0
        )
        (memory,) = pool.managers[0].graphs.memories
        assert memory.holds(a.data.ptr)
        assert memory.holds(b.data.ptr)
        first.wait_event(second.record())
        first.end_capture()
        first.begin_capture()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            first.synchronize()  # ruins it
        with first:
            c = cupy.empty(1000)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            first.end_capture()
        del a, b, c
    assert float(cupy.ones(10).sum()) == 10


def test_memory_of_a_graph_that_goes_beside_another_capture(pool, stream, new_stream):
    """The device cannot be waited for then."""
    other = new_stream()
    with pool.capture(stream) as gone:
        stream.begin_capture()
        pool.free(pool.malloc(5 * MiB, stream.ptr))
        stream.end_capture()
    with pool.capture(other) as held:
        other.begin_capture()
        block = pool.malloc(MiB, other.ptr)
        pool.managers[0].driver.fill(block, 6, MiB, other.ptr)
        gone.close()
        graph = other.end_capture()
    assert gone.held_bytes == 0
    graph.launch(other)
    other.synchronize()
    assert pool.managers[0].driver.read(block, 1) == b"\x06"
    pool.free(block)
    held.close()


def test_what_the_scope_cannot_do_is_said(pool, stream):
    outside = pool.allocate(MiB)
    stream.begin_capture()
    with pytest.raises((CaptureError, DriverError)), pool.capture(stream):
        pass
    stream.end_capture()
    with pytest.raises(CaptureError, match="default stream"), pool.capture(None):
        pass
    with pool.capture(stream) as held:
        stream.begin_capture()
        with stream, pytest.raises(CaptureError, match="before the capture"):
            cupy.from_dlpack(outside)
        stream.end_capture()
    held.close()
    assert cupy.from_dlpack(outside).shape == (MiB,)


def test_other_threads_beside_a_capture(pool, new_stream):
    """Requests of other threads, on streams of their own, do not ruin a capture in CUDA's global mode."""
    stream = new_stream()
    stop, errors = threading.Event(), []

    def work():
        own = cupy.cuda.Stream(non_blocking=True)
        try:
            while not stop.is_set():
                pool.free(pool.malloc(3 * MiB, own.ptr))
                pool.free(pool.malloc(7000))
        except smartpool.SmartPoolError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with pool.capture(stream) as held:
                stream.begin_capture()
                for size in range(1, 30):
                    pointer = pool.malloc(size * 100_000, stream.ptr)
                    pool.managers[0].driver.fill(pointer, 1, 1000, stream.ptr)
                    pool.free(pointer)
                graph = stream.end_capture()
            graph.launch(stream)
            stream.synchronize()
            held.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
