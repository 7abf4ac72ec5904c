"""`smartpool.interop.torch` under a PyTorch that is played; `tests/gpu` has the real one."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from fake_torch import FakeTorch
from waiting import PATIENCE_S

import smartpool.interop.torch as interop
from smartpool.errors import (
    AllocatorError,
    DeviceNotFoundError,
    InvalidRequestError,
    MissingPackageError,
    UnsupportedError,
)

MiB = 1 << 20


@pytest.fixture
def torch(monkeypatch):
    fake = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(interop, "_installation", None)
    monkeypatch.setattr(interop, "_libc10", lambda torch: torch.libc10)
    yield fake
    assert fake.libc10.take() is None, "an exception that nobody saw"
    assert not fake.libc10.alive, "an exception that was made and never thrown"


@pytest.fixture
def allocator(torch, pool):
    interop.install(pool)
    yield torch.allocator
    pool.check()


def settled(pool):
    """Return the first device's manager when it has taken back what PyTorch freed."""
    interop._installation.front.drain(everything=True)
    return pool.managers[0]


# ------------------------------------------------------------------ requests


def test_requests_and_frees_are_the_pools(allocator, pool):
    pointer = allocator.raw_alloc(1000)
    assert pool.managers[0].live_blocks() == {pointer: 1000}
    ctypes.memset(pointer, 1, 1000)
    allocator.raw_delete(pointer)
    assert interop.memory_allocated() == 0
    assert allocator.raw_alloc(1000) == pointer
    assert interop.installed_pool() is pool
    allocator.raw_delete(pointer)


def test_nothing_is_a_null_pointer(allocator):
    assert allocator.raw_alloc(0) is None


def test_the_stream_of_the_request_is_kept(allocator, pool):
    manager = pool.managers[0]
    stream = manager.driver.create_stream()
    pointer = allocator.raw_alloc(4096, 0, stream)
    assert manager.stream_of(pointer) == stream
    allocator.raw_delete(pointer)
    assert allocator.raw_alloc(4096, 0, stream) == pointer
    allocator.raw_delete(pointer)


def test_anybodys_search_takes_back_what_pytorch_freed(allocator, pool):
    pointer = allocator.raw_alloc(200_000)
    allocator.raw_delete(pointer)
    assert pool.managers[0].owns(pointer)
    assert pool.malloc(100_000) == pointer  # placed by address: the search looked
    pool.free(pointer)
    pointer = allocator.raw_alloc(7000)
    allocator.raw_delete(pointer)
    assert pool.managers[0].snapshot().live_bytes == 0
    allocator.raw_delete(allocator.raw_alloc(3 * MiB))
    pool.trim()
    assert pool.managers[0].reserved_bytes == 0


def test_a_pool_of_several_devices_serves_each(torch, open_pool):
    pool = open_pool(["cuda:1", "cuda:0"])
    interop.install(pool)
    pointers = [torch.allocator.raw_alloc(512, device) for device in (0, 1)]
    assert [manager.live_bytes for manager in pool.managers] == [512, 512]
    assert pool.managers[0].owns(pointers[1])
    for pointer in pointers:
        torch.allocator.raw_delete(pointer)
    settled(pool)
    assert [manager.live_bytes for manager in pool.managers] == [0, 0]


def test_a_device_that_the_pool_does_not_have(allocator):
    with pytest.raises(
        RuntimeError, match=r"DeviceNotFoundError: expected .* of the pool \(cuda:0\), got one on"
    ):
        allocator.raw_alloc(512, 1)


def test_threads_allocate_and_free(allocator, pool):
    def work():
        for size in range(1, 2000, 7):
            pointer = allocator._allocate(size, 0, None)
            ctypes.memset(pointer, 7, size)
            allocator._free(pointer, size, 0, None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settled(pool).live_bytes == 0


# ------------------------------------------------------------------ refusals


def test_a_second_installation(allocator, open_pool):
    with pytest.raises(AllocatorError, match=r"expected PyTorch to have no SmartPool yet, but <SmartPool"):
        interop.install(open_pool())
    pointer = allocator.raw_alloc(100)  # the first one goes on
    allocator.raw_delete(pointer)


def test_cuda_was_initialised_already(torch, pool):
    torch.initialized = True
    with pytest.raises(
        AllocatorError, match=r"expected PyTorch not to have used CUDA yet.*install\(\) first"
    ):
        interop.install(pool)
    assert interop.installed_pool() is None
    torch.initialized = False
    interop.install(pool)


def test_pytorch_itself_refuses(torch, pool):
    torch.allocator = object()
    with pytest.raises(AllocatorError, match="it refused: Can't swap"):
        interop.install(pool)
    assert interop.installed_pool() is None
    assert pool.managers[0].driver.held()["chunks"] == 0


def test_a_pytorch_without_cuda(torch, pool):
    torch.version.cuda = None
    with pytest.raises(UnsupportedError, match=r"expected a PyTorch with CUDA.*got 2\.11\.0\+fake"):
        interop.install(pool)
    with pytest.raises(UnsupportedError):
        interop.mem_pool(pool)


def test_no_pytorch(pool, absent):
    absent("torch")
    for function in (interop.install, interop.mem_pool):
        with pytest.raises(MissingPackageError, match="expected the package torch to be installed"):
            function(pool)


@pytest.mark.usefixtures("torch")
def test_a_pool_that_is_not_on_cuda(open_pool):
    for function in (interop.install, interop.mem_pool):
        with pytest.raises(DeviceNotFoundError, match=r"expected a pool on CUDA devices, got one on cpu"):
            function(open_pool("cpu"))
        with pytest.raises(InvalidRequestError, match="expected a SmartPool, got 'cuda:0'"):
            function("cuda:0")


# ------------------------------------------------------------------ out of memory


def test_garbage_is_collected_before_a_request_fails(allocator, no_collector):
    """PyTorch frees into the front, which is to be looked at once more after the collection."""

    class Garbage:
        def __init__(self):
            self.myself, self.block = self, allocator.raw_alloc(40 * MiB)

        def __del__(self, free=allocator.raw_delete):
            free(self.block)

    for _ in range(6):
        Garbage()


def test_out_of_memory_is_pytorchs_error_with_the_pools_story(allocator, pool, torch):
    kept = allocator.raw_alloc(40 * MiB)
    device = pool.managers[0].driver.context.api.cpus[0]  # behind the fake
    held = device.held()
    capacity = r"GPU 0 has a total capacity of 96\.00 MiB of which \d+\.00 MiB is free\."
    message = (
        rf"^CUDA out of memory\. Tried to allocate 70\.00 MiB\. {capacity} .*73400320 bytes.*largest free"
    )
    with pytest.raises(torch.OutOfMemoryError, match=message):
        allocator.raw_alloc(70 * MiB)
    assert interop.memory_stats()["num_ooms"] == 1
    assert device.held()["mappings"] <= held["mappings"]  # nothing stands in for it
    allocator.raw_delete(kept)
    again = allocator.raw_alloc(70 * MiB)  # the pool is as it was
    allocator.raw_delete(again)


def test_beyond_an_exabyte_pytorch_has_other_words(allocator, torch):
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate more than 1EB memory"):
        allocator.raw_alloc(7 << 60)
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 1024\.00 GiB\. GPU 0 has a total"):
        allocator.raw_alloc(1 << 40)


@pytest.mark.parametrize("size", [300 << 30, 1 << 40, 4 * 10**15, 1 << 60])
def test_a_request_beyond_any_device_is_an_error_at_once(allocator, pool, torch, size):
    held = pool.managers[0].driver.held()
    with pytest.raises(torch.OutOfMemoryError, match=rf"^CUDA out of memory\. Tried to allocate .*{size}"):
        allocator.raw_alloc(size)
    assert pool.managers[0].driver.held() == held


def test_errors_in_a_thread_without_python(allocator):
    """As on autograd's threads. The device number is whatever the register holds, hence a plain error."""
    if sys.platform != "linux":
        pytest.skip("starts a thread through the C library")
    libc = ctypes.CDLL(None)
    handle, answer = ctypes.c_ulong(), ctypes.c_void_p()
    routine = ctypes.c_void_p(allocator.allocate_address)
    assert libc.pthread_create(ctypes.byref(handle), None, routine, ctypes.c_void_p(1 << 40)) == 0
    libc.pthread_join(handle, ctypes.byref(answer))
    (thrown,) = FakeTorch.libc10.thrown.values()
    FakeTorch.libc10.thrown.clear()
    assert "Error" in thrown[0]
    assert thrown[1].startswith(("DeviceNotFoundError", "CUDA out of memory"))


def test_a_callback_that_fails_is_told(pool, allocator):
    def fail(_nbytes):
        raise ZeroDivisionError("mine")

    pool.add_out_of_memory_callback(fail)
    kept = allocator.raw_alloc(50 * MiB)
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: mine"):
        allocator.raw_alloc(60 * MiB)
    allocator.raw_delete(kept)


def test_control_c_within_a_request_costs_nothing_but_the_interrupt(torch, pool, monkeypatch):
    manager = pool.managers[0]
    malloc, interrupts = manager.malloc, [KeyboardInterrupt("^C")]

    def interrupted(nbytes, stream=None):
        if interrupts:
            raise interrupts.pop()
        return malloc(nbytes, stream)

    monkeypatch.setattr(manager, "malloc", interrupted)
    interop.install(pool)
    with pytest.raises(KeyboardInterrupt, match=r"\^C"):
        torch.allocator.raw_alloc(3 * MiB)
    assert manager.live_bytes == 3 * MiB  # PyTorch got its memory


def test_control_c_on_its_way_strikes_behind_the_request(torch, pool, capsys):
    """It strikes at the first instruction of our function, which cannot catch it there."""
    interop.install(pool)
    allocate, pointers = torch.allocator._allocate, []
    rescue = interop._installation.rescue

    def operator():
        interrupt = map(rescue.raise_in, (threading.get_ident(),), (KeyboardInterrupt,))
        requests = map(allocate, (5 * MiB, 7000), (0,) * 2, (None,) * 2)
        pointers.extend(itertools.chain(interrupt, requests))  # in C: no Python between them
        for _ in range(1000):
            pass

    with pytest.raises(KeyboardInterrupt):
        operator()
    assert set(pointers[1:]) == set(pool.managers[0].live_blocks())
    assert sorted(pool.managers[0].live_blocks().values()) == [7000, 5 * MiB]  # PyTorch got its memory
    for pointer in pool.managers[0].live_blocks():
        pool.free(pointer)
    assert capsys.readouterr().err == ""


def test_a_pointer_of_another_allocator_is_reported(allocator, pool, caplog):
    allocator._free(0x7000, 512, 0, None)
    pointer = allocator.raw_alloc(100)
    assert "expected the address of a live block of this pool" in caplog.text
    allocator.raw_delete(pointer)
    pool.check()


def test_a_free_while_an_error_is_on_its_way(allocator, pool):
    """What a tensor's C++ destructor does among the operands of a call that raises."""
    pointer = allocator.raw_alloc(4096)
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    dies_in_c = ctypes.cast(allocator._free, ctypes.c_void_p)
    del allocator._of[pointer]
    for _ in range(3):  # the capsule's destructor is handed the capsule, which is nobody's block
        with pytest.raises(ZeroDivisionError):
            (new(pointer, None, dies_in_c), 1 / 0)
    allocator._free(pointer, 4096, 0, None)
    assert settled(pool).live_bytes == 0


# ------------------------------------------------------------------ PyTorch's other calls


def test_record_stream(allocator, pool):
    manager = pool.managers[0]
    side = manager.driver.create_stream()
    pointer = allocator.raw_alloc(4096)
    allocator.record_stream(pointer, side)
    allocator.record_stream(0x7000, side)  # not ours: theirs to order
    allocator.raw_delete(pointer)
    manager.flush()
    assert manager.snapshot().driver_calls["record_event"] >= 2  # its own stream's and the other's


def test_empty_cache_gives_idle_memory_back(allocator, pool):
    allocator.raw_delete(allocator.raw_alloc(30 * MiB))
    assert interop.memory_reserved() >= 30 * MiB
    allocator.empty_cache()
    assert interop.memory_reserved() == 0
    assert interop.max_memory_reserved() >= 30 * MiB
    pool.close()
    allocator.empty_cache()  # nothing to do, no error


def test_the_memory_fraction_has_no_effect_and_says_so(allocator):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        allocator.set_fraction(0.5, 0)
    assert "max_bytes" in str(told[0].message)


# ------------------------------------------------------------------ statistics


def test_statistics_by_pytorchs_keys(allocator):
    pointers = [allocator.raw_alloc(size) for size in (100, 1000, 5 * MiB)]
    stats = interop.memory_stats()
    assert stats["requested_bytes.all.current"] == 1100 + 5 * MiB
    assert stats["allocated_bytes.all.current"] == 512 + 1024 + 5 * MiB == interop.memory_allocated()
    assert stats["allocation.all.current"] == 3
    assert stats["reserved_bytes.all.current"] == interop.memory_reserved() >= 5 * MiB
    assert stats["allocated_bytes.all.peak"] >= stats["allocated_bytes.all.current"]
    snapshot = interop.memory_snapshot()
    assert [block["address"] for block in snapshot] == sorted(pointers)
    assert {block["requested_size"]: block["size"] for block in snapshot} == {
        100: 512,
        1000: 1024,
        5 * MiB: 5 * MiB,
    }
    assert {block["state"] for block in snapshot} == {"active_allocated"}
    with pytest.raises(DeviceNotFoundError):
        interop.memory_stats(1)
    for pointer in pointers:
        allocator.raw_delete(pointer)
    assert interop.memory_snapshot() == []


@pytest.mark.usefixtures("torch")
def test_statistics_of_nothing():
    for function in (interop.memory_stats, interop.memory_snapshot, interop.memory_allocated):
        with pytest.raises(AllocatorError, match=r"install\(pool\) first"):
            function()


# ------------------------------------------------------------------ a MemPool


@pytest.mark.usefixtures("allocator")
def test_a_mem_pool_beside_an_installation(pool):
    with pytest.raises(AllocatorError, match="PyTorch's own allocator, which a MemPool stands on"):
        interop.mem_pool(pool)


# ------------------------------------------------------------------ the end


@pytest.mark.parametrize(
    "modules",
    [
        'del smartpool, interop, sys.modules["smartpool.interop.torch"]',
        "sys.held = [module for name, module in sys.modules.items() if name[:8] in ('smartpoo', '__main__')]",
    ],
    ids=["gone", "empty"],
)
def test_frees_after_the_end_of_the_interpreter_say_nothing(modules):
    """Blocks held by a module's globals, by a class and by a built-in module, and a thread that goes on."""
    tests = Path(__file__).parents[1]
    program = f"""
import sys
sys.path[:0] = [{str(tests / "interop" / "kit")!r}, {str(tests / "driver" / "kit")!r}]
from fake_cuda import FakeCuda
from fake_torch import FakeTorch
torch = sys.modules["torch"] = FakeTorch()
import smartpool, smartpool.smart_pool, smartpool.interop.torch as interop
interop._libc10 = lambda torch: torch.libc10
from smartpool.driver.cuda import Bindings, CudaDriver
bindings = Bindings(FakeCuda(), "13.4.4")
smartpool.pool_set.open_driver = lambda name: CudaDriver(0, bindings)
interop.install(smartpool.SmartPool("cuda:0"))

class Tensor:
    def __init__(self, size, free=torch.allocator._free, take=torch.allocator._allocate):
        self.pointer, self.size, self.free = take(size, 0, None), size, free

    def __del__(self):
        self.free(self.pointer, self.size, 0, None)

tensors = [Tensor(size) for size in range(1, 3000, 10)]
sys.held_by_a_builtin_module = [Tensor(1 << 20)]

class Holder:
    in_class = Tensor(12345)

{modules}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
