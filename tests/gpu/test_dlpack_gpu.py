"""Buffers of a CUDA pool under PyTorch, CuPy, JAX and Numba: values, streams, lifetimes, the end.

Each framework's tests are skipped where it is absent.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import smartpool
from smartpool.dlpack import DType, outstanding
from smartpool.dlpack.capsule import _pointer_of
from smartpool.dlpack.dtype import _BY_NAME
from smartpool.dlpack.structs import VERSIONED_NAME, ManagedTensorVersioned
from smartpool.driver import open_driver
from smartpool.errors import CaptureError, DeviceNotFoundError, DriverNotInstalledError, StreamError

try:
    KEEPER = open_driver("cuda:0")  # keeps the context, so that opening a pool a test is cheap
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

MiB = 1 << 20
NATIVE = [name for name, dtype in _BY_NAME.items() if dtype.native]


@pytest.fixture
def pool():
    before = outstanding()
    with smartpool.SmartPool("cuda:0") as pool:
        yield pool
        gc.collect()
        KEEPER.synchronize()
        assert outstanding() <= before
        pool.check()


def pattern(nbytes: int) -> bytes:
    """Bytes that are valid for every type, bool included."""
    return bytes(index % 2 for index in range(nbytes))


def filled(pool, shape, dtype):
    buffer = pool.empty(shape, dtype)
    if buffer.nbytes:
        KEEPER.write(buffer.pointer, pattern(buffer.nbytes))
    return buffer


def slow_fill(pool, stream, value=7, size=256 * MiB):
    """Return a buffer of bytes whose last fill is still under way on `stream`."""
    buffer = pool.empty(size, "uint8", stream=stream)
    for step in range(200):
        KEEPER.fill(buffer.pointer, step % 5, size, stream)
    KEEPER.fill(buffer.pointer, value, size, stream)
    return buffer


@pytest.fixture
def stream():
    stream = KEEPER.create_stream()
    yield stream
    KEEPER.synchronize(stream)
    KEEPER.destroy_stream(stream)


# ------------------------------------------------------------------ the protocol itself


def test_the_structure_names_the_device(pool):
    buffer = pool.empty((2, 3), "bfloat16")
    assert buffer.__dlpack_device__() == (2, 0)
    capsule = buffer.__dlpack__(max_version=(1, 0))
    managed = ManagedTensorVersioned.from_address(_pointer_of(capsule, VERSIONED_NAME))
    assert (managed.device_type, managed.device_id) == (2, 0)
    assert managed.data == buffer.pointer


@pytest.mark.parametrize("refused", [0, -2, "1", True])
def test_what_is_no_stream_is_refused(pool, refused):
    buffer = pool.empty(4, "int8")
    with pytest.raises(StreamError, match="expected a stream"):
        buffer.__dlpack__(stream=refused)
    for taken in (None, 1, 2, -1):
        assert buffer.__dlpack__(stream=taken)


def test_numpy_cannot_read_the_device_and_says_so(pool):
    with pytest.raises((BufferError, RuntimeError)):
        np.from_dlpack(pool.empty(4, "int8"))


# ------------------------------------------------------------------ copies


def test_the_host_gets_a_copy_with_all_that_was_queued(pool, stream):
    buffer = slow_fill(pool, stream)
    assert set(np.from_dlpack(buffer, device="cpu")[::MiB].tolist()) == {7}
    with pytest.raises(BufferError):
        buffer.__dlpack__(dl_device=(1, 0), copy=False, max_version=(1, 0))
    assert len(pool.managers[0].live_blocks()) == 1


@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_a_copy_on_the_device_is_made_in_order(pool, stream, framework):
    module = pytest.importorskip(framework)
    buffer = slow_fill(pool, stream)
    cuda = module.cuda
    side = cuda.Stream(non_blocking=True) if framework == "cupy" else cuda.stream(cuda.Stream())
    with side:
        copied = module.from_dlpack(buffer, copy=True)
        assert int(copied[-1]) == 7
    KEEPER.synchronize()
    KEEPER.fill(buffer.pointer, 9, buffer.nbytes, 0)
    KEEPER.synchronize()
    assert int(copied[-1]) == 7


@pytest.mark.parametrize("consumer", [None, 1, 2, -1])
def test_a_copy_for_each_consumer_that_the_protocol_names(pool, stream, consumer):
    buffer = slow_fill(pool, stream)
    capsule = buffer.__dlpack__(stream=consumer, copy=True, max_version=(1, 0))
    managed = ManagedTensorVersioned.from_address(_pointer_of(capsule, VERSIONED_NAME))
    KEEPER.synchronize()
    assert managed.data != buffer.pointer
    assert KEEPER.read(managed.data + buffer.nbytes - 1, 1) == b"\x07"


def test_a_copy_needs_no_stream_that_is_gone(pool):
    gone = KEEPER.create_stream()
    buffer = slow_fill(pool, gone)
    KEEPER.destroy_stream(gone)
    capsule = buffer.__dlpack__(stream=1, copy=True, max_version=(1, 0))
    managed = ManagedTensorVersioned.from_address(_pointer_of(capsule, VERSIONED_NAME))
    KEEPER.synchronize()
    assert KEEPER.read(managed.data, 1) == b"\x07"


def test_a_copy_beside_a_capture_is_refused_or_a_part_of_the_graph(pool):
    torch = pytest.importorskip("torch")
    side = torch.cuda.Stream()
    handle = side.cuda_stream
    buffer = pool.empty(1000, "uint8", stream=handle)
    KEEPER.fill(buffer.pointer, 5, 1000, 0)
    KEEPER.synchronize()
    graph = torch.cuda.CUDAGraph()
    with pool.capture(handle), torch.cuda.stream(side):
        graph.capture_begin()
        try:
            for asked in ({"copy": True}, {"dl_device": (1, 0)}):
                with pytest.raises(CaptureError, match="copy before the capture"):
                    buffer.__dlpack__(stream=-1, max_version=(1, 0), **asked)
            inside = torch.from_dlpack(buffer.__dlpack__(stream=handle, copy=True, max_version=(1, 0)))
        finally:
            graph.capture_end()
    KEEPER.fill(buffer.pointer, 6, 1000, 0)
    KEEPER.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    assert set(inside.cpu().tolist()) == {6}
    del inside, graph


# ------------------------------------------------------------------ buffers without elements


@pytest.mark.parametrize("shape", [0, (0, 3), (3, 0)])
def test_every_consumer_takes_a_buffer_without_elements(pool, shape):
    buffer = pool.empty(shape, "float32")
    assert np.from_dlpack(buffer, device="cpu").shape == buffer.shape
    assert buffer.__cuda_array_interface__["data"] == (0, False)
    assert buffer.__dlpack__(copy=True, max_version=(1, 0))
    for framework, by_interface in (("torch", "as_tensor"), ("cupy", "asarray")):
        if importlib.util.find_spec(framework) is not None:
            module = importlib.import_module(framework)
            assert tuple(module.from_dlpack(buffer).shape) == buffer.shape
            assert tuple(getattr(module, by_interface)(buffer).shape) == buffer.shape
    if importlib.util.find_spec("numba"):
        with warnings.catch_warnings():  # Numba asks NumPy 2.5 for what is to go
            warnings.filterwarnings("ignore", "The 'generic' unit for NumPy timedelta", DeprecationWarning)
            cuda = importlib.import_module("numba.cuda")
        assert cuda.as_cuda_array(buffer).shape == buffer.shape


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="starts a thread through the C library")
def test_a_native_thread_gives_the_memory_back(pool):
    """The deleter is the start routine of a thread that Python has never seen; it frees on the device."""
    libc = ctypes.CDLL(None)
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )
    used = b"used_" + VERSIONED_NAME
    buffer = pool.empty(3 * MiB, "uint8")
    pointer = buffer.pointer
    capsule = buffer.__dlpack__(max_version=(1, 0))
    del buffer
    address = _pointer_of(capsule, VERSIONED_NAME)
    deleter = ManagedTensorVersioned.from_address(address).deleter
    assert rename(capsule, used) == 0
    handle = ctypes.c_ulong()
    routine, argument = ctypes.c_void_p(deleter), ctypes.c_void_p(address)
    assert libc.pthread_create(ctypes.byref(handle), None, routine, argument) == 0
    assert libc.pthread_join(handle, None) == 0
    assert pool.empty(3 * MiB, "uint8").pointer == pointer  # it is free again


# ------------------------------------------------------------------ PyTorch


def test_pytorch_reads_every_type_that_it_has(pool):
    torch = pytest.importorskip("torch")
    for name, dtype in _BY_NAME.items():
        if not isinstance(getattr(torch, name, None), torch.dtype):
            continue
        for shape in ((), (5,), (3, 4), (0, 2)):
            buffer = filled(pool, shape, name)
            tensor = torch.from_dlpack(buffer)
            assert tensor.dtype is getattr(torch, name)
            assert tensor.device == torch.device("cuda", 0)
            assert tensor.shape == shape
            if tensor.numel():
                assert tensor.data_ptr() == buffer.pointer
                raw = tensor.reshape(-1).view(torch.uint8).cpu().numpy()
                assert raw.tobytes() == pattern(dtype.nbytes(tensor.numel()))


def test_pytorch_waits_for_the_buffers_stream(pool, stream):
    torch = pytest.importorskip("torch")
    side = torch.cuda.Stream()
    for consumer in (side, torch.cuda.default_stream()):
        buffer = slow_fill(pool, stream)
        with torch.cuda.stream(consumer):
            tensor = torch.from_dlpack(buffer)
            assert int(tensor.to(torch.int64).sum()) == 7 * buffer.nbytes
        del tensor, buffer


def test_the_block_is_reused_behind_pytorchs_last_kernel(pool, stream):
    """A consumer that drops a tensor whose kernels still run must not see the next owner's bytes."""
    torch = pytest.importorskip("torch")
    side = torch.cuda.Stream()
    source = torch.full((64 * MiB,), 3, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        tensor = torch.from_dlpack(pool.empty(64 * MiB, "uint8"))
        for _ in range(100):
            tensor.copy_(source)
        last = tensor.clone()
        del tensor
    again = pool.empty(64 * MiB, "uint8", stream=stream)
    KEEPER.fill(again.pointer, 9, again.nbytes, stream)
    torch.cuda.synchronize()
    assert bool((last == 3).all())
    assert KEEPER.read(again.pointer, 1024) == b"\11" * 1024


def test_a_tensor_keeps_its_memory_when_the_pool_is_closed():
    torch = pytest.importorskip("torch")
    pool = smartpool.SmartPool("cuda:0")
    tensor = torch.from_dlpack(pool.empty((1024, 1024), "float16")).fill_(2)
    pool.close()
    assert float(tensor.float().sum()) == 2 << 20
    del tensor


def test_one_thread_makes_and_another_drops(pool):
    torch = pytest.importorskip("torch")
    held = [torch.from_dlpack(pool.empty(MiB, "uint8")) for _ in range(16)]
    threads = [threading.Thread(target=held.pop) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not held


# ------------------------------------------------------------------ CuPy, Numba, JAX


@pytest.mark.parametrize("name", NATIVE)
def test_cupy_reads_by_both_protocols(pool, name):
    cupy = pytest.importorskip("cupy")
    buffer = filled(pool, (3, 4), name)
    for array in (cupy.from_dlpack(buffer), cupy.asarray(buffer)):
        assert array.data.ptr == buffer.pointer
        assert array.dtype == DType.parse(name).carrier
        assert array.shape == (3, 4)
        assert cupy.asnumpy(array).tobytes() == pattern(buffer.nbytes)


def test_cupy_waits_for_the_buffers_stream(pool, stream):
    cupy = pytest.importorskip("cupy")
    for read in (cupy.from_dlpack, cupy.asarray):
        buffer = slow_fill(pool, stream)
        with cupy.cuda.Stream(non_blocking=True):
            assert int(read(buffer).sum(dtype=cupy.uint64)) == 7 * buffer.nbytes


def test_numba_reads_the_array_interface(pool):
    cuda = pytest.importorskip("numba.cuda")
    buffer = filled(pool, (8, 16), "float32")
    array = cuda.as_cuda_array(buffer)
    assert array.__cuda_array_interface__["data"][0] == buffer.pointer
    assert array.copy_to_host().tobytes() == pattern(buffer.nbytes)


def test_types_without_a_type_string_have_no_array_interface(pool):
    assert not hasattr(pool.empty(4, "bfloat16"), "__cuda_array_interface__")
    assert pool.empty(4, "float16").__cuda_array_interface__["stream"] != 0


@pytest.mark.parametrize("name", ["float32", "int8", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"])
def test_jax_reads(pool, name):
    jax = pytest.importorskip("jax")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("JAX sees no GPU")
    buffer = filled(pool, (4, 8), name)
    array = jax.numpy.from_dlpack(buffer)
    assert DType.parse(array.dtype).name == name
    assert array.unsafe_buffer_pointer() == buffer.pointer
    assert np.asarray(array).tobytes() == pattern(buffer.nbytes)


def test_two_frameworks_share_one_buffer(pool):
    torch = pytest.importorskip("torch")
    cupy = pytest.importorskip("cupy")
    buffer = pool.empty((256, 256), "float32")
    tensor, array = torch.from_dlpack(buffer), cupy.from_dlpack(buffer)
    array[...] = 4
    cupy.cuda.get_current_stream().synchronize()
    assert float(tensor.sum()) == 4 * 65536
    pointer = buffer.pointer
    del buffer, tensor, array
    assert pool.empty((256, 256), "float32").pointer == pointer  # freed by one, reused


# ------------------------------------------------------------------ past the end of the interpreter


@pytest.mark.parametrize("framework", ["torch", "cupy", "jax"])
def test_tensors_that_outlive_the_interpreter(framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    consume = "jax.numpy.from_dlpack" if framework == "jax" else f"{framework}.from_dlpack"
    program = f"""
import sys, threading, {framework}, smartpool
pool = smartpool.SmartPool("cuda:0")
in_module = [{consume}(pool.empty((16, 16), "float32")), pool.empty(4).__dlpack__(), pool.empty(5)]

class Holder:
    in_class = {consume}(pool.empty(1 << 20, "uint8"))

    def __init__(self):
        self.myself, self.array = self, {consume}(pool.empty((16, 16), "float16"))

Holder()
sys.held_by_a_builtin_module = {consume}(pool.empty(99, "int32"))

def wait():
    held = {consume}(pool.empty(64, "float32"))
    ready.set()
    threading.Event().wait()

ready = threading.Event()
threading.Thread(target=wait, daemon=True).start()
ready.wait()
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(smartpool.__file__).parents[1]), *sys.path])),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
