"""The modules of CuPy, Numba, cuda.core and RMM under frameworks that are played; and what all share."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from fake_frameworks import FakeNumbaCuda, Stream, fake_cuda_core, fake_cupy, fake_rmm_mr
from waiting import PATIENCE_S

import smartpool.interop.cuda_core as for_cuda_core
import smartpool.interop.cupy as for_cupy
import smartpool.interop.numba as for_numba
import smartpool.interop.rmm as for_rmm
from smartpool.config import SmartPoolConfig
from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.errors import (
    AllocatorError,
    DeviceNotFoundError,
    DriverError,
    InvalidRequestError,
    MissingPackageError,
    OutOfMemoryError,
    UnknownPointerError,
    UnsupportedError,
)
from smartpool.interop import upstream
from smartpool.manager import AdvancedMemoryPoolManager

MiB = 1 << 20
MODULES = ["cuda_core", "cupy", "numba", "rmm", "torch", "upstream"]

# ------------------------------------------------------------------ all of them


def test_importing_the_modules_brings_no_framework_and_hides_none():
    names = ", ".join(f"smartpool.interop.{name}" for name in MODULES)
    code = (
        f"import sys, {names}\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'torch', 'cupy', 'numba', 'rmm', 'cuda'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_documented_and_there(name):
    module = importlib.import_module(f"smartpool.interop.{name}")
    assert module.__name__ == f"smartpool.interop.{name}"
    assert module.__all__ == sorted(module.__all__)
    assert module.__doc__
    for public in module.__all__:
        assert getattr(module, public).__doc__


ENTRIES = {
    "cupy": [for_cupy.allocator, for_cupy.install],
    "numba": [for_numba.manager_class, for_numba.install],
    "cuda": [for_cuda_core.memory_resource],
    "rmm": [for_rmm.memory_resource, for_rmm.install],
}


@pytest.mark.parametrize("package", ENTRIES)
def test_a_framework_that_is_not_there(package, pool, absent):
    for_cuda_core._resource_class.cache_clear()
    absent(package)
    for entry in ENTRIES[package]:
        with pytest.raises(MissingPackageError, match=rf"expected the package {package}.* pip install"):
            entry(pool)
    assert issubclass(MissingPackageError, ImportError)


@pytest.mark.parametrize("package", ENTRIES)
@pytest.mark.usefixtures("frameworks")
def test_what_is_not_a_pool_on_cuda(package, open_pool):
    for entry in ENTRIES[package]:
        with pytest.raises(DeviceNotFoundError, match="pool on CUDA devices, got one on model:1GiB"):
            entry(open_pool("model:1GiB"))
        with pytest.raises(InvalidRequestError, match="expected a SmartPool"):
            entry(None)


@pytest.fixture
def frameworks(monkeypatch):
    cupy, core, mr, numba = fake_cupy(), fake_cuda_core(), fake_rmm_mr(), FakeNumbaCuda()
    for name, module in {"cupy": cupy, "cuda.core": core, "rmm.mr": mr, "numba.cuda": numba}.items():
        monkeypatch.setitem(
            sys.modules, name.partition(".")[0], sys.modules.get(name.partition(".")[0], module)
        )
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(for_cupy, "_installed", None)
    monkeypatch.setattr(for_numba, "_installed", None)
    monkeypatch.setattr(for_rmm, "_before", {})
    for_cuda_core._resource_class.cache_clear()
    yield {"cupy": cupy, "core": core, "mr": mr, "numba": numba}
    for_cuda_core._resource_class.cache_clear()


def test_what_outlives_the_modules_says_nothing():
    """Modules that are held are emptied when the interpreter ends, ours before `__main__`."""
    tests = Path(__file__).parents[1]
    program = f"""
import sys
sys.path[:0] = [{str(tests / "interop" / "kit")!r}, {str(tests / "driver" / "kit")!r}]
from fake_cuda import FakeCuda
from fake_frameworks import FakeNumbaCuda, fake_cuda_core, fake_cupy, fake_rmm_mr
made = fake_cupy(), fake_cuda_core(), fake_rmm_mr(), FakeNumbaCuda()
sys.modules.update(zip(("cupy", "cuda.core", "rmm.mr", "numba.cuda"), made))
cupy, core, mr, numba = made
import smartpool, smartpool.smart_pool
from smartpool.driver.cuda import Bindings, CudaDriver
from smartpool.interop import cuda_core, cupy as for_cupy, numba as for_numba, rmm
bindings = Bindings(FakeCuda(), "13.4.4")
smartpool.pool_set.open_driver = lambda name: CudaDriver(0, bindings)
pool = smartpool.SmartPool("cuda:0")

class Freed:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __del__(self):
        self.function(*self.arguments)

resource = cuda_core.memory_resource(pool)
of_cuda_core = Freed(resource.allocate(1000).close)
resource = rmm.memory_resource(pool)
of_rmm = Freed(resource.deallocate, resource.allocate(1000), 1000)
for_cupy.install(pool)
of_cupy = cupy.alloc(1000)
for_numba.install(pool)
of_numba = numba.context().manager.memalloc(1000)
assert len(pool.managers[0].live_blocks()) == 4
pool.close()  # whoever frees last would give everything back
sys.held = [module for name, module in sys.modules.items() if name[:8] in ("smartpoo", "__main__")]
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ------------------------------------------------------------------ CuPy


def test_cupy_allocates_on_its_device_and_stream(frameworks, open_pool):
    cupy, pool = frameworks["cupy"], open_pool(["cuda:0", "cuda:1"])
    first, second = pool.managers
    for_cupy.install(pool)
    array = cupy.alloc(1000)
    assert first.live_blocks() == {array.ptr: 1000}
    assert (array.mem.size, array.mem.device_id) == (1000, 0)
    nothing = cupy.alloc(0)
    assert (nothing.ptr, nothing.mem.size) == (0, 0)
    assert len(first.live_blocks()) == 1
    cupy.state.stream = Stream(first.driver.create_stream())
    on_a_stream = cupy.alloc(1000)
    assert first.stream_of(on_a_stream.ptr) == cupy.state.stream.ptr
    cupy.state.device, cupy.state.stream = 1, Stream()
    elsewhere = cupy.alloc(1000)
    assert second.owns(elsewhere.ptr)
    assert elsewhere.mem.device_id == 1
    cupy.state.device = 5
    with pytest.raises(DeviceNotFoundError, match=r"of the pool \(cuda:0, cuda:1\), got one on cuda:5"):
        cupy.alloc(1)
    cupy.state.device = 0
    del array, on_a_stream, elsewhere
    gc.collect()
    assert first.live_bytes == second.live_bytes == 0
    assert cupy.alloc(0).mem.size == 0
    with pytest.raises(OutOfMemoryError):
        cupy.alloc(1 << 40)
    pool.check()


def test_cupy_a_second_installation_and_the_way_back(frameworks, pool):
    cupy = frameworks["cupy"]
    cupy.cuda.set_allocator(len)
    for_cupy.install(pool)
    with pytest.raises(AllocatorError, match=r"one is installed already; call .*uninstall\(\) first"):
        for_cupy.install(pool)
    for_cupy.uninstall()
    for_cupy.uninstall()
    assert cupy.cuda.get_allocator() is len
    for_cupy.install(pool)
    cupy.cuda.set_allocator(abs)
    with pytest.raises(AllocatorError, match="another was set since"):
        for_cupy.uninstall()
    assert cupy.cuda.get_allocator() is abs


@pytest.mark.parametrize("capture", ["captured", "ruined"])
def test_cupy_in_a_capture_takes_nothing_that_lay_ready(frameworks, pool, capture):
    cupy, manager = frameworks["cupy"], pool.managers[0]
    for_cupy.install(pool)
    driver = manager.driver
    cupy.state.stream = Stream(driver.create_stream())
    ready = cupy.alloc(1000).ptr  # freed at once
    assert cupy.alloc(1000).ptr == ready
    getattr(cupy.state, capture).add(cupy.state.stream.ptr)
    asked = []
    driver.is_capturing = lambda stream: asked.append(stream) or 0
    cupy.alloc(1000)
    assert asked == [cupy.state.stream.ptr]  # the search is where captures are found
    for_cupy.uninstall()


def test_cupy_collects_garbage_before_a_request_fails(frameworks, pool, no_collector):
    class Garbage:
        def __init__(self):
            self.myself, self.array = self, frameworks["cupy"].alloc(40 * MiB)

    for_cupy.install(pool)
    try:
        for _ in range(6):
            Garbage()
    finally:
        for_cupy.uninstall()


def test_cupy_for_a_while(frameworks, pool):
    cupy = frameworks["cupy"]
    with for_cupy.using(pool):
        array = cupy.alloc(5)
        assert pool.managers[0].owns(array.ptr)
    assert cupy.cuda.get_allocator() is None


# ------------------------------------------------------------------ Numba


def test_numba_allocates_and_frees(frameworks, pool):
    cuda, manager = frameworks["numba"], pool.managers[0]
    for_numba.install(pool)
    context = cuda.context()
    memory = context.manager.memalloc(1000)
    assert manager.live_blocks() == {memory.device_pointer.value: 1000}
    info = context.manager.get_memory_info()
    assert 0 < info.free <= info.total
    with pytest.raises(UnsupportedError, match="IPC"):
        context.manager.get_ipc_handle(memory)
    with pytest.raises(OutOfMemoryError):
        context.manager.memalloc(1 << 40)
    del memory
    assert manager.live_bytes == 0
    with pytest.raises(DeviceNotFoundError):
        cuda.context(1)


def test_numba_refusals(frameworks, open_pool):
    cuda, pool = frameworks["numba"], open_pool()
    cuda.plugin = for_numba.manager_class(pool)
    cuda.context()
    with pytest.raises(AllocatorError, match=r"before the first numba\.cuda array"):
        for_numba.install(pool)
    cuda.devices.clear()
    for_numba.install(pool)
    with pytest.raises(AllocatorError, match="expected Numba to have no SmartPool yet"):
        for_numba.install(open_pool())


def test_numba_by_the_environment(frameworks, fake_cuda, open_pool):
    cuda = frameworks["numba"]
    open_pool()  # so that the fake devices are opened
    cuda.set_memory_manager(for_numba._numba_memory_manager)
    context = cuda.context()
    memory = context.manager.memalloc(64)
    assert context.manager._manager().owns(memory.device_pointer.value)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = for_numba.nonsense
    del memory


# ------------------------------------------------------------------ cuda.core


@pytest.mark.parametrize("older", [False, True])
def test_cuda_core_buffers(frameworks, pool, older):
    frameworks["core"].Buffer.older = older
    manager = pool.managers[0]
    resource = for_cuda_core.memory_resource(pool)
    assert isinstance(resource, frameworks["core"].MemoryResource)
    assert (resource.device_id, resource.is_device_accessible) == (0, True)
    assert not resource.is_host_accessible
    assert not resource.is_managed
    stream = Stream(manager.driver.create_stream())
    buffer = resource.allocate(3000, stream=stream)
    assert manager.stream_of(buffer.handle) == stream.ptr
    buffer.close()
    assert manager.live_bytes == 0
    buffer = resource.allocate(100)
    other = Stream(manager.driver.create_stream())
    buffer.close(other)
    again = resource.allocate(100, other)  # positional, as older versions call it
    assert again.handle == buffer.handle
    again.close()
    with pytest.raises(UnknownPointerError):
        resource.deallocate(0x7000, 5)
    with pytest.raises(OutOfMemoryError):
        resource.allocate(1 << 40)
    with pytest.raises(DeviceNotFoundError):
        for_cuda_core.memory_resource(pool, 1)
    pool.check()


def test_cuda_core_that_cannot_wrap_the_memory_leaves_the_pool_as_it_was(frameworks, pool, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no context")

    monkeypatch.setattr(frameworks["core"].Buffer, "from_handle", broken)
    resource = for_cuda_core.memory_resource(pool)
    with pytest.raises(RuntimeError, match="no context"):
        resource.allocate(5)
    assert pool.managers[0].live_bytes == 0


def test_an_interrupt_as_cuda_core_has_its_buffer_frees_the_block_once(frameworks, pool, monkeypatch):
    """The buffer dies with the call that was interrupted, and frees its block; the next owner has it then."""
    manager, taken = pool.managers[0], []

    def interrupted(pointer, size, mr, **_):
        mr.deallocate(pointer, size)
        taken.append(pool.malloc(size))
        raise KeyboardInterrupt

    monkeypatch.setattr(frameworks["core"].Buffer, "from_handle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for_cuda_core.memory_resource(pool).allocate(5000)
    assert manager.owns(taken[0])
    pool.free(taken[0])


# ------------------------------------------------------------------ RMM


def test_rmm_requests_and_frees_by_stream(frameworks, pool):
    manager = pool.managers[0]
    resource = for_rmm.memory_resource(pool)
    pointer = resource.allocate(1000)
    assert manager.live_blocks() == {pointer: 1000}
    resource.deallocate(pointer, 1000)
    stream = Stream(manager.driver.create_stream())
    pointer = resource.allocate(1000, stream)
    assert manager.stream_of(pointer) == stream.ptr
    resource.deallocate(pointer, 1000, stream)
    assert resource.allocate(1000, stream) == pointer
    resource.deallocate(pointer, 1000, Stream())
    with pytest.raises(MemoryError, match="Tried to allocate"):
        resource.allocate(1 << 40)
    assert manager.live_bytes == 0
    pool.check()


def test_rmm_on_every_device_and_back(frameworks, open_pool):
    current, pool = frameworks["mr"].current, open_pool(["cuda:0", "cuda:1"])
    for_rmm.install(pool)
    pointer = current[1].allocate(5)
    assert pool.managers[1].owns(pointer)
    current[1].deallocate(pointer, 5)
    with pytest.raises(AllocatorError, match=r"uninstall\(\) first"):
        for_rmm.install(pool)
    for_rmm.uninstall()
    assert current == {0: "before", 1: "before"}
    for_rmm.uninstall()


# ------------------------------------------------------------------ somebody else's memory below ours


class Upstream:
    """A resource of RMM, or of cuda.core when it gives buffers, over the fake device."""

    def __init__(self, driver, core=None):
        self.driver, self.core, self.held = driver, core, {}

    def allocate(self, size, **stream):
        if self.core and not isinstance(stream.get("stream"), Stream):
            raise TypeError("allocate() needs keyword-only argument stream")
        pointer = self.driver.allocate(size)
        self.held[pointer] = size
        return self.core.Buffer.from_handle(pointer, size, mr=self) if self.core else pointer

    def deallocate(self, pointer, size, **_):
        assert self.held.pop(pointer) == size
        self.driver.free(pointer)


@pytest.mark.parametrize("kind", ["rmm", "cuda.core"])
def test_a_pool_over_somebody_elses_memory(frameworks, fake_cuda, kind):
    below = CudaDriver(0, Bindings(fake_cuda, "13.4.4"))
    resource = Upstream(below, frameworks["core"] if kind == "cuda.core" else None)
    driver = upstream.UpstreamDriver(resource, 0, bindings=Bindings(fake_cuda, "13.4.4"))
    with AdvancedMemoryPoolManager(driver, SmartPoolConfig(max_bytes=64 * MiB)) as manager:
        pointers = [manager.malloc(size) for size in (100, 5000, 3 * MiB)]
        assert sum(resource.held.values()) == manager.reserved_bytes > 0
        for pointer in pointers:
            assert any(base <= pointer < base + size for base, size in resource.held.items())
            driver.fill(pointer, 7, 100, 0)
        assert driver.read(pointers[0], 100) == b"\7" * 100
        with pytest.raises(OutOfMemoryError):
            manager.malloc(63 * MiB)
        manager.check()
        for pointer in pointers:
            manager.free(pointer)
        manager.trim()
        assert resource.held == {}
    below.close()


def test_the_resources_failures_are_ours(frameworks, fake_cuda):
    class Failing:
        error = MemoryError("the resource is empty")

        def allocate(self, size, **_):
            raise self.error

        def deallocate(self, *_):
            raise NotImplementedError

    driver = upstream.UpstreamDriver(Failing(), 0, bindings=Bindings(fake_cuda, "13.4.4"))
    with AdvancedMemoryPoolManager(driver) as manager:
        with pytest.raises(OutOfMemoryError):
            manager.malloc(5)
        Failing.error = RuntimeError("no context")
        with pytest.raises(DriverError, match=r"allocate\(size=.*no context"):
            manager.malloc(5)
        manager.check()
    with pytest.raises(InvalidRequestError, match="expected a memory resource of RMM or cuda"):
        upstream.manager_over(5)
