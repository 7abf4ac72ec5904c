"""Buffers: sharing by DLPack and the older protocols, and who frees the memory when."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S

import smartpool.buffer as buffer_module
from smartpool import SmartPool
from smartpool.dlpack.capsule import _pointer_of
from smartpool.dlpack.structs import LEGACY_NAME, VERSIONED_NAME, ManagedTensor, ManagedTensorVersioned
from smartpool.errors import BufferReleasedError, DLPackError, StreamError, UnsupportedError


@pytest.fixture
def pool():
    with SmartPool("cpu") as pool:
        yield pool
        gc.collect()
        pool.check()


def live(pool):
    return pool.managers[0].live_bytes


def test_numpy_shares_the_memory(pool):
    buffer = pool.empty((3, 4), "int32")
    array = np.from_dlpack(buffer)
    array[:] = 7
    again = np.from_dlpack(buffer)
    assert again.sum() == 84
    assert (array.shape, array.strides, array.ctypes.data) == ((3, 4), (16, 4), buffer.pointer)
    assert buffer.__dlpack_device__() == (1, 0)


def test_the_last_holder_frees(pool):
    buffer = pool.empty(1000, "uint8")
    first, second = np.from_dlpack(buffer), np.from_dlpack(buffer)
    del buffer, first
    gc.collect()
    assert live(pool) == 1000
    del second
    assert live(pool) == 0


def test_free_leaves_consumers_their_memory(pool):
    buffer = pool.empty(1000, "uint8")
    array = np.from_dlpack(buffer)
    buffer.free()
    assert buffer.released
    assert live(pool) == 1000
    array[:] = 3
    del array
    assert live(pool) == 0
    for use in (
        buffer.free,
        buffer.__dlpack__,
        buffer.__dlpack_device__,
        buffer.memoryview,
        lambda: buffer.device,
    ):
        with pytest.raises(BufferReleasedError):
            use()
    assert repr(buffer) == "<Buffer: released>"


def test_a_capsule_nobody_took_frees(pool):
    capsule = pool.empty(1000, "uint8").__dlpack__()
    assert live(pool) == 1000
    del capsule
    assert live(pool) == 0


def test_copies_are_copies(pool):
    buffer = pool.empty(4, "float32")
    array = np.from_dlpack(buffer)
    array[:] = 1
    copied = np.from_dlpack(buffer, copy=True)
    copied[:] = 2
    assert array.tolist() == [1, 1, 1, 1]
    assert live(pool) == 32
    with pytest.raises(DLPackError):
        buffer.__dlpack__(dl_device=(2, 0))
    with pytest.raises(DLPackError):
        buffer.__dlpack__(dl_device=(2, 0), copy=False)


def test_read_only_is_told(pool):
    buffer = pool.empty(4, "float32").freeze()
    array = np.from_dlpack(buffer)
    assert not array.flags.writeable
    assert not np.asarray(buffer).flags.writeable
    assert buffer.memoryview().readonly
    with pytest.raises(DLPackError):
        buffer.__dlpack__()  # the legacy form cannot say it


def test_older_protocols(pool):
    buffer = pool.empty((2, 2), "float32")
    array = np.asarray(buffer)
    array[:] = 5
    view = buffer.memoryview()
    assert view.nbytes == 16
    assert view[1, 1] == 5
    assert not hasattr(buffer, "__cuda_array_interface__")
    if sys.version_info >= (3, 12):
        assert memoryview(buffer).nbytes == 16
    del buffer, array
    gc.collect()
    assert live(pool) == 16
    del view
    assert live(pool) == 0


def test_an_array_of_the_older_protocol_keeps_the_memory_after_free(pool):
    buffer = pool.empty(1000, "uint8")
    array = np.asarray(buffer)
    array[:] = 5
    buffer.free()
    pool.empty(1000, "uint8").memoryview()[:] = bytes(1000)
    assert set(array.tolist()) == {5}


def test_array_conversions(pool):
    buffer = pool.empty(3, "int32")
    np.asarray(buffer)[:] = [1, 2, 3]
    assert np.asarray(buffer, dtype="float64").tolist() == [1, 2, 3]
    assert np.array(buffer, copy=True).ctypes.data != buffer.pointer
    with pytest.raises(ValueError, match="copy"):  # what NumPy's protocol asks for
        buffer.__array__(dtype="float64", copy=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_buffer_has_one_owner(pool, duplicate):
    buffer = pool.empty(4)
    with pytest.raises(UnsupportedError, match="copy what is in it"):
        duplicate(buffer)


def test_streams_are_checked(pool):
    buffer = pool.empty(4)
    with pytest.raises(StreamError):
        buffer.__dlpack__(stream=7)
    buffer.__dlpack__(stream=-1)


def test_a_model_has_nothing_to_share():
    with SmartPool("model:1GiB") as pool:
        buffer = pool.empty(4)
        for export in (buffer.__dlpack__, buffer.memoryview):
            with pytest.raises(DLPackError):
                export()


@given(
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    dtype=st.sampled_from(["int8", "uint16", "int64", "float16", "float32", "complex64", "bool"]),
    seed=st.integers(0, 255),
)
def test_what_is_written_is_read(shape, dtype, seed):
    with SmartPool("cpu") as pool:
        buffer = pool.empty(shape, dtype)
        array = np.from_dlpack(buffer)
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        values = np.arange(seed, seed + array.size).reshape(shape).astype(dtype)
        array[...] = values
        del array
        np.testing.assert_array_equal(np.from_dlpack(buffer), values)


def test_consumers_outlive_the_pool():
    pool = SmartPool("cpu")
    array = np.from_dlpack(pool.empty(1000, "uint8"))
    driver = pool.managers[0].driver
    pool.close()
    del pool
    gc.collect()
    array[:] = 9
    assert driver.memory_info().free < driver.memory_info().total
    del array


def test_freed_on_a_foreign_thread(pool):
    held = [np.from_dlpack(pool.empty(1000, "uint8")) for _ in range(50)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert live(pool) == 0


PAST_EXIT = """
import importlib.util, sys, threading
import numpy as np
import smartpool

pool = smartpool.SmartPool("cpu")
kept = np.from_dlpack(pool.empty(1000, "float64"))
bare = pool.allocate(5000)
cycle = [np.from_dlpack(pool.empty(10))]
cycle.append(cycle)
sys.kept = np.from_dlpack(pool.empty(7))
local = threading.local()
local.kept = np.from_dlpack(pool.empty(9))
wait = lambda array: threading.Event().wait()
threading.Thread(target=wait, args=(np.from_dlpack(pool.empty(3)),), daemon=True).start()
if importlib.util.find_spec("torch"):
    import torch
    tensors = [torch.from_dlpack(pool.empty((4, 4))) for _ in range(3)]
    sys.tensor = torch.from_dlpack(pool.empty((4, 4)))
{close}
print("end")
"""


@pytest.mark.parametrize("close", ["", "pool.close()", "del pool"])
def test_held_past_exit(close):
    """NumPy arrays and, where present, PyTorch tensors: no crash, no hang, nothing on standard error."""
    code = PAST_EXIT.format(close=close)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_two_first_exports_at_once_have_one_owner(pool, monkeypatch):
    """A second thread, or a destructor, exports while the first export is being made."""
    buffers, inner = [pool.empty(1000, "uint8")], []

    class Interrupted(buffer_module.Owner):
        __slots__ = ()

        def __init__(self, *arguments):
            super().__init__(*arguments)
            monkeypatch.undo()
            inner.append(np.from_dlpack(buffers[0]))

    monkeypatch.setattr(buffer_module, "Owner", Interrupted)
    outer = np.from_dlpack(buffers[0])
    buffers.clear()
    inner.clear()
    gc.collect()
    assert live(pool) == 1000
    outer[:] = 1
    del outer
    gc.collect()
    assert live(pool) == 0


# ------------------------------------------------------------------ what it says of itself


def test_a_buffer_tells_what_others_of_the_field_tell(pool):
    stream = pool.managers[0].driver.create_stream()
    buffer = pool.empty((2, 3), "float16", stream=stream)
    assert (buffer.shape, buffer.ndim, buffer.size, buffer.itemsize, buffer.nbytes) == ((2, 3), 2, 6, 2, 12)
    assert (len(buffer), buffer.ptr, buffer.stream) == (2, buffer.pointer, stream)
    assert (np.dtype(buffer.dtype), np.result_type(buffer)) == (np.float16, np.float16)
    assert np.zeros(3, buffer.dtype).dtype == np.float16
    del buffer
    pool.managers[0].driver.destroy_stream(stream)


def test_a_size_is_kept_as_a_plain_integer(pool):
    buffers = [pool.allocate(np.uint8(200)) for _ in range(2)] + [
        pool.allocate(200),
        pool.allocate(np.uint8(200)),
    ]
    assert [type(buffer.nbytes) for buffer in buffers] == [int] * 4
    assert buffers[0].nbytes + buffers[1].nbytes == 400


# ------------------------------------------------------------------ buffers without elements


@pytest.mark.parametrize("shape", [0, (0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_consumer_takes_a_buffer_without_elements(pool, shape, frozen):
    buffer = pool.empty(shape, "float32")
    if frozen:
        buffer.freeze()
    shape = buffer.shape
    consumers = {
        "shared": np.from_dlpack,
        "copied": lambda buffer: np.from_dlpack(buffer, copy=True),
        "on the host": lambda buffer: np.from_dlpack(buffer, device="cpu"),
        "asarray": np.asarray,
        "a copy by asarray": lambda buffer: np.array(buffer, copy=True),
        "of another type": lambda buffer: np.asarray(buffer, dtype="int8"),
    }
    for name, consumer in consumers.items():
        array = consumer(buffer)
        assert (array.shape, array.size) == (shape, 0), name
    assert buffer.memoryview().shape == shape
    assert buffer.size == 0
    for asked in ({}, {"copy": True}, {"dl_device": (1, 0)}):
        versioned = buffer.__dlpack__(max_version=(1, 0), **asked)
        assert not ManagedTensorVersioned.from_address(_pointer_of(versioned, VERSIONED_NAME)).data
        if not frozen or "copy" in asked:
            legacy = buffer.__dlpack__(**asked)
            assert not ManagedTensor.from_address(_pointer_of(legacy, LEGACY_NAME)).data


def test_pytorch_takes_a_buffer_without_elements(pool):
    torch = pytest.importorskip("torch")
    tensor = torch.from_dlpack(pool.empty((0, 3), "float32"))
    assert (tuple(tensor.shape), tensor.dtype) == ((0, 3), torch.float32)
    assert torch.from_dlpack(pool.empty((0, 3), "bfloat16"), device="cpu", copy=True).numel() == 0


def test_device_memory_without_elements_reaches_the_host_and_the_array_interface(pool, monkeypatch):
    monkeypatch.setattr(pool.managers[0].driver, "dl_device", (2, 0))
    for shape in (0, (0, 3)):
        buffer = pool.empty(shape, "float32")
        assert np.from_dlpack(buffer, device="cpu").shape == buffer.shape
        assert buffer.__dlpack__(max_version=(1, 0), copy=True)
        assert buffer.__cuda_array_interface__["data"] == (0, False)
