"""CuPy, cuda.core, RMM and Numba on a SmartPool. Each is skipped where its framework is absent."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import smartpool
import smartpool.interop.cupy as cupy_interop
import smartpool.interop.rmm as rmm_interop
from smartpool.driver import open_driver
from smartpool.errors import AllocatorError, DeviceNotFoundError, DriverNotInstalledError
from smartpool.interop.cuda_core import memory_resource
from smartpool.interop.upstream import manager_over

try:
    KEEPER = open_driver("cuda:0")
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

MiB, GiB = 1 << 20, 1 << 30


@pytest.fixture
def pool():
    with smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(max_bytes=2 * GiB)) as pool:
        yield pool
        gc.collect()
        KEEPER.synchronize()
        pool.check()
        assert pool.managers[0].live_bytes == 0


# ------------------------------------------------------------------ CuPy


@pytest.fixture
def for_cupy(pool):
    cupy = pytest.importorskip("cupy")
    cupy_interop.install(pool)
    yield cupy
    gc.collect()
    cupy_interop.uninstall()


def test_cupy_arrays_are_the_pools_blocks(for_cupy, pool):
    cupy, manager = for_cupy, pool.managers[0]
    array = cupy.zeros((1000, 1001), cupy.float32)
    assert manager.live_blocks() == {array.data.ptr: 4_004_000}
    view = array[10:20]
    address = array.data.ptr
    del array
    assert float(view.sum()) == 0
    assert manager.owns(address)
    del view
    assert not manager.owns(address)
    assert cupy.empty(0).size == 0
    assert cupy.empty((0, 3)).data.ptr == 0
    assert float(cupy.empty((0, 3)).sum()) == 0
    assert float(cupy.arange(1000.0) @ cupy.ones(1000)) == 499_500


def test_cupy_streams(for_cupy, pool):
    cupy, manager = for_cupy, pool.managers[0]
    with cupy.cuda.Stream(non_blocking=True) as stream:
        array = cupy.empty(MiB, cupy.uint8)
        assert manager.stream_of(array.data.ptr) == manager.driver.stream(stream.ptr)
        address = array.data.ptr
        del array
        assert cupy.empty(MiB, cupy.uint8).data.ptr == address
    assert manager.stream_of(cupy.empty(MiB, cupy.uint8).data.ptr) == 0


def test_cupy_arrays_in_a_cycle(for_cupy, pool):
    class Node:
        pass

    for _ in range(50):
        node = Node()
        node.self, node.array = node, for_cupy.empty(MiB, for_cupy.uint8)
    del node
    gc.collect()
    assert pool.managers[0].live_bytes == 0


def test_cupy_collects_garbage_before_a_request_fails(for_cupy):
    class Node:
        pass

    gc.collect()
    gc.disable()
    try:
        for _ in range(12):
            node = Node()
            node.me, node.array = node, for_cupy.empty(400 * MiB, for_cupy.uint8)
    finally:
        gc.enable()
    del node


def test_cupy_out_of_memory(for_cupy):
    with pytest.raises(MemoryError, match=r"out of memory. Tried to allocate"):
        for_cupy.empty(3 * GiB, for_cupy.uint8)
    assert float(for_cupy.ones(10).sum()) == 10


def test_cupy_threads(for_cupy, pool):
    cupy, wrong = for_cupy, []

    def work(seed):
        with cupy.cuda.Stream(non_blocking=True):
            for step in range(200):
                held = [cupy.full(1 + (seed * 7919 + step * 31 + k) % 200_000, seed) for k in range(4)]
                if not all(bool((array == seed).all()) for array in held):
                    wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_cupy_a_second_installation_and_using(for_cupy, pool):
    with pytest.raises(AllocatorError, match="one is installed already"):
        cupy_interop.install(pool)
    with smartpool.SmartPool("cuda:0") as other:
        with cupy_interop.using(other):
            array = for_cupy.empty(MiB, for_cupy.uint8)
        assert other.managers[0].owns(array.data.ptr)
        del array
    kept = for_cupy.empty(5)
    assert pool.managers[0].owns(kept.data.ptr)


# ------------------------------------------------------------------ cuda.core


@pytest.fixture
def core():
    core = pytest.importorskip("cuda.core")
    return core if hasattr(core, "Buffer") else pytest.importorskip("cuda.core.experimental")


def test_cuda_core(core, pool):
    manager = pool.managers[0]
    resource = memory_resource(pool)
    assert isinstance(resource, core.MemoryResource)
    device = core.Device(0)
    device.set_current()
    stream = device.create_stream()
    buffer = resource.allocate(3 * MiB, stream=stream)
    address = int(buffer.handle)
    assert manager.stream_of(address) == manager.driver.stream(int(stream.handle))
    assert (buffer.size, buffer.memory_resource) == (3 * MiB, resource)
    assert (buffer.is_device_accessible, buffer.is_host_accessible, buffer.device_id) == (True, False, 0)
    buffer.close()
    assert manager.live_bytes == 0
    buffer = resource.allocate(3 * MiB, stream=stream)
    assert int(buffer.handle) == address
    other = device.create_stream()
    buffer.close(other)  # freed in the order of another stream
    again = resource.allocate(3 * MiB, stream=other)
    assert int(again.handle) == address
    del again, buffer
    gc.collect()
    with pytest.raises(smartpool.OutOfMemoryError):
        resource.allocate(3 * GiB, stream=stream)
    with pytest.raises(DeviceNotFoundError):
        memory_resource(pool, 7)


def test_cuda_core_as_the_devices_own_resource(core, pool):
    device = core.Device(0)
    device.set_current()
    before = device.memory_resource
    device.memory_resource = memory_resource(pool)
    try:
        stream = device.create_stream()
        one, two = (device.allocate(MiB, stream=stream) for _ in range(2))
        one.copy_to(two, stream=stream)
        stream.sync()
        assert pool.managers[0].live_bytes == 2 * MiB
        one.close()
        two.close()
    finally:
        device.memory_resource = before


# ------------------------------------------------------------------ RMM


def test_rmm(pool):
    rmm = pytest.importorskip("rmm")
    manager = pool.managers[0]
    rmm_interop.install(pool)
    try:
        with pytest.raises(AllocatorError):
            rmm_interop.install(pool)
        buffer = rmm.DeviceBuffer(size=MiB)
        assert manager.live_blocks() == {buffer.ptr: MiB}
        stream = rmm.pylibrmm.stream.Stream()
        other = rmm.DeviceBuffer(size=2 * MiB, stream=stream)
        assert manager.stream_of(other.ptr) == manager.driver.stream(stream)
        del other
        stream.synchronize()
        with pytest.raises(MemoryError):
            rmm.DeviceBuffer(size=3 * GiB)
        del buffer
        assert manager.live_bytes == 0
    finally:
        rmm_interop.uninstall()
    assert not isinstance(rmm.mr.get_current_device_resource(), rmm.mr.CallbackMemoryResource)


# ------------------------------------------------------------------ their memory below ours


@pytest.mark.parametrize("kind", ["rmm", "cuda.core"])
def test_a_pool_over_somebody_elses_memory(kind, request):
    if kind == "rmm":
        rmm = pytest.importorskip("rmm")
        resource = rmm.mr.CudaMemoryResource()
    else:
        core = request.getfixturevalue("core")
        core.Device(0).set_current()
        resource = core.Device(0).memory_resource
    with manager_over(resource, config=smartpool.SmartPoolConfig(max_bytes=GiB)) as manager:
        stream = manager.driver.create_stream()
        pointers = [manager.malloc(size, stream) for size in (100, 5000, 3 * MiB, 300 * MiB)]
        for value, pointer in enumerate(pointers):
            manager.driver.fill(pointer, value, 100, stream)
        assert [manager.driver.read(pointer, 100)[0] for pointer in pointers] == [0, 1, 2, 3]
        with pytest.raises(smartpool.OutOfMemoryError):
            manager.malloc(900 * MiB)
        manager.check()
        for pointer in pointers:
            manager.free(pointer)
        manager.trim(wait=True)
        assert manager.reserved_bytes == 0
        manager.driver.destroy_stream(stream)


# ------------------------------------------------------------------ Numba, in a process of its own


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(Path(smartpool.__file__).parents[1]), *sys.path]))
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path} | environment,
        check=False,
    )


def test_numba_by_the_environment():
    pytest.importorskip("numba.cuda")
    program = """
import numpy
from numba import cuda
array = cuda.to_device(numpy.arange(1000))
manager = type(cuda.current_context().memory_manager)
assert manager.__name__ == "SmartPoolMemoryManager", manager
assert cuda.current_context().memory_manager._manager().owns(array.__cuda_array_interface__["data"][0])
assert (array.copy_to_host() == numpy.arange(1000)).all()
in_globals = [cuda.device_array(size) for size in range(1, 200)]
"""
    done = run(program, NUMBA_CUDA_MEMORY_MANAGER="smartpool.interop.numba")
    assert (done.returncode, done.stderr) == (0, "")


def test_numba_that_has_a_context_already():
    pytest.importorskip("numba.cuda")
    program = """
from numba import cuda
import smartpool, smartpool.interop.numba
cuda.device_array(5)
try:
    smartpool.interop.numba.install(smartpool.SmartPool("cuda:0"))
except smartpool.AllocatorError as error:
    assert "before the first numba.cuda array" in str(error)
    raise SystemExit(33)
"""
    done = run(program)
    assert (done.returncode, done.stderr) == (33, "")


@pytest.mark.parametrize("framework", ["cupy", "rmm"])
def test_arrays_that_outlive_the_interpreter(framework):
    pytest.importorskip(framework)
    make = {"cupy": "cupy.empty(1 << 20)", "rmm": "rmm.DeviceBuffer(size=1 << 20)"}[framework]
    program = f"""
import sys, {framework}, smartpool
import smartpool.interop.{framework} as interop
interop.install(smartpool.SmartPool("cuda:0"))
in_globals = [{make} for _ in range(20)]
sys.held_by_a_builtin_module = {make}
del interop, smartpool
"""
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")
