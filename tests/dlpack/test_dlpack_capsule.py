"""What a capsule says: values, layout, flags, versions, copies, and refusals.

A small owner of host memory stands in for the pool's `Buffer`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.dlpack import CopiedMemory, DType, export, host_array
from smartpool.dlpack import capsule as capsule_module
from smartpool.dlpack.capsule import _pointer_of
from smartpool.dlpack.dtype import _BY_NAME
from smartpool.dlpack.structs import LEGACY_NAME, VERSIONED_NAME, Flags, ManagedTensor, ManagedTensorVersioned
from smartpool.errors import DLPackError, InvalidRequestError

pytestmark = pytest.mark.usefixtures("nothing_outstanding")

CPU = (1, 0)
CUDA = (2, 3)
NATIVE = [dtype for dtype in _BY_NAME.values() if dtype.native]


class Memory:
    """Host bytes with an address, exported as one array."""

    def __init__(self, shape: tuple[int, ...], dtype: str | DType, **how: Any) -> None:
        self.shape, self.dtype, self.how = shape, DType.parse(dtype), how
        self.bytes = ctypes.create_string_buffer(self.dtype.nbytes(int(np.prod(shape))) or 1)
        self.device = how.pop("device", CPU)

    @property
    def pointer(self) -> int:
        return ctypes.addressof(self.bytes)

    def __dlpack__(self, *, stream: Any = None, **asked: Any) -> Any:
        return export(
            self,
            pointer=self.pointer,
            shape=self.shape,
            dtype=self.dtype,
            device=self.device,
            **self.how,
            **asked,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def opened(capsule: Any) -> ManagedTensorVersioned | ManagedTensor:
    """Return the structure in a capsule; valid while the capsule lives."""
    if VERSIONED_NAME.decode() in repr(capsule):
        return ManagedTensorVersioned.from_address(_pointer_of(capsule, VERSIONED_NAME))
    return ManagedTensor.from_address(_pointer_of(capsule, LEGACY_NAME))


def integers_at(address: int | None, count: int) -> tuple[int, ...]:
    return tuple((ctypes.c_int64 * count).from_address(address)) if count else ()


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


@st.composite
def views(draw: st.DrawFn) -> np.ndarray:
    """Return an array of any exported type, sliced, stepped, reversed and transposed."""
    dtype = draw(st.sampled_from(NATIVE))
    shape = draw(st.lists(st.integers(0, 5), max_size=4).map(tuple))
    data = draw(st.binary(min_size=16, max_size=16))
    whole = np.frombuffer(data * (dtype.nbytes(int(np.prod(shape))) // 16 + 1), np.uint8)
    whole = whole[: dtype.nbytes(int(np.prod(shape)))].copy()
    if dtype.name == "bool":
        whole &= 1
    array = whole.view(dtype.carrier).reshape(shape)
    cuts = [slice(draw(st.integers(0, 2)), None, draw(st.sampled_from([1, 2, -1, -2]))) for _ in shape]
    return array[(*cuts, ...)].transpose(draw(st.permutations(range(len(shape)))))


@given(view=views(), version=st.sampled_from([None, (0, 8), (1, 0), (1, 3), (2, 1)]), read_only=st.booleans())
def test_numpy_reads_what_was_written(
    *, view: np.ndarray, version: tuple[int, int] | None, read_only: bool
) -> None:
    versioned = version is not None and version >= (1, 0)
    read_only = read_only and versioned

    class Exporter:
        def __dlpack__(self, **_: Any) -> Any:
            return export(
                view,
                pointer=view.ctypes.data,
                shape=view.shape,
                dtype=DType.parse(view.dtype),
                device=CPU,
                strides=tuple(stride // view.itemsize for stride in view.strides),
                read_only=read_only,
                max_version=version,
            )

        def __dlpack_device__(self) -> tuple[int, int]:
            return CPU

    read = np.from_dlpack(Exporter())
    assert read.dtype == view.dtype
    assert read.tobytes() == view.tobytes()
    if view.size:
        # The other way round is not promised: NumPy 2.1 takes every tensor as read-only.
        assert not (read_only and read.flags.writeable)
        assert read.ctypes.data == view.ctypes.data
        assert [s for s, n in zip(read.strides, read.shape, strict=True) if n > 1] == [
            s for s, n in zip(view.strides, view.shape, strict=True) if n > 1
        ]


@given(
    dtype=st.sampled_from(sorted(_BY_NAME)),
    shape=st.lists(st.integers(0, 4), max_size=5).map(tuple),
    device=st.sampled_from([CPU, CUDA, (3, 0), (13, 0)]),
    version=st.sampled_from([None, (1, 0)]),
)
def test_every_field_says_what_it_should(
    *, dtype: str, shape: tuple[int, ...], device: tuple[int, int], version: tuple[int, int] | None
) -> None:
    memory = Memory(shape, dtype, device=device)
    capsule = memory.__dlpack__(max_version=version)
    managed = opened(capsule)
    assert (managed.type_code, managed.type_bits, managed.type_lanes) == (
        memory.dtype.code,
        memory.dtype.bits,
        memory.dtype.lanes,
    )
    assert (managed.device_type, managed.device_id) == device
    assert managed.ndim == len(shape)
    assert integers_at(managed.shape, managed.ndim) == shape
    strides = integers_at(managed.strides, managed.ndim)  # never left out
    if 0 not in shape:
        assert strides == contiguous(shape)
    assert managed.data == (None if 0 in shape else memory.pointer)
    assert managed.byte_offset == 0
    assert managed.deleter
    if version is not None:
        assert isinstance(managed, ManagedTensorVersioned)
        assert managed.flags == 0
        assert (managed.major, managed.minor) >= ((1, 1) if memory.dtype.code > 6 else (1, 0))
        assert managed.major == 1


@given(strides=st.tuples(st.integers(-8, 8), st.integers(-8, 8)))
def test_strides_count_elements_of_any_type(strides: tuple[int, int]) -> None:
    block = Memory((64,), "float4_e2m1fn")
    for dtype in _BY_NAME.values():
        capsule = export(
            block,
            pointer=block.pointer,
            shape=(2, 2),
            dtype=dtype,
            device=CPU,
            strides=strides,
            max_version=(1, 0),
        )
        assert integers_at(opened(capsule).strides, 2) == strides


def test_legacy_and_versioned_have_their_names() -> None:
    memory = Memory((2,), "int8")
    for legacy in (None, (0, 6), (0, 99)):
        assert '"dltensor"' in repr(memory.__dlpack__(max_version=legacy))
    for versioned in ((1, 0), (1, 9), (7, 0)):
        assert '"dltensor_versioned"' in repr(memory.__dlpack__(max_version=versioned))


@pytest.mark.parametrize("junk", [1, 1.0, "1.0", (1,), (1, 0, 0), ("1", 0), [1, 0]], ids=repr)
def test_a_version_is_a_pair(junk: Any) -> None:
    with pytest.raises(InvalidRequestError, match="max_version"):
        Memory((2,), "int8").__dlpack__(max_version=junk)


def test_read_only_is_a_flag_and_legacy_has_none() -> None:
    memory = Memory((2,), "bfloat16", read_only=True)
    assert opened(memory.__dlpack__(max_version=(1, 0))).flags == Flags.READ_ONLY
    with pytest.raises(DLPackError, match="max_version"):
        memory.__dlpack__()
    frozen = Memory((2,), "int8", read_only=True)
    with pytest.raises(ValueError, match="read-only"):
        np.from_dlpack(frozen)[0] = 1


@pytest.mark.parametrize("name", [name for name, dtype in _BY_NAME.items() if not dtype.native])
def test_numpy_refuses_in_its_own_words_what_it_cannot_read(name: str) -> None:
    memory = Memory((4,), name)
    with pytest.raises((BufferError, RuntimeError), match=r"Unsupported .* in DLTensor"):
        np.from_dlpack(memory)


# ------------------------------------------------------------------ copies and devices


def copying(memory: Memory, targets: list[tuple[int, int]]) -> Memory:
    """Let `memory` copy itself, and note where to."""

    def make_copy(target: tuple[int, int]) -> CopiedMemory:
        targets.append(target)
        twin = ctypes.create_string_buffer(memory.bytes.raw)
        return CopiedMemory(owner=twin, pointer=ctypes.addressof(twin))

    memory.how["make_copy"] = make_copy
    return memory


def test_a_copy_is_made_when_asked_for() -> None:
    targets: list[tuple[int, int]] = []
    memory = copying(Memory((3,), "uint8"), targets)
    memory.bytes.raw = b"abc"
    shared, apart = np.from_dlpack(memory), np.from_dlpack(memory, copy=True)
    memory.bytes.raw = b"xyz"
    assert shared.tobytes() == b"xyz"
    assert apart.tobytes() == b"abc"
    assert targets == [CPU]
    assert opened(memory.__dlpack__(copy=True, max_version=(1, 0))).flags == Flags.IS_COPIED


def test_another_device_means_a_copy_there() -> None:
    targets: list[tuple[int, int]] = []
    memory = copying(Memory((3,), "uint8", device=CUDA), targets)
    memory.bytes.raw = b"abc"
    assert np.from_dlpack(memory, device="cpu").tobytes() == b"abc"
    assert targets == [CPU]
    capsule = memory.__dlpack__(dl_device=(2, 1), max_version=(1, 0))
    assert (opened(capsule).device_type, opened(capsule).device_id) == (2, 1)
    assert opened(capsule).flags == Flags.IS_COPIED


def test_the_same_device_and_no_copy_share() -> None:
    memory = copying(Memory((3,), "uint8"), [])
    for asked in ({"copy": False}, {"copy": None, "dl_device": CPU}, {"copy": False, "dl_device": CPU}):
        assert opened(memory.__dlpack__(max_version=(1, 0), **asked)).data == memory.pointer


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"dl_device": CUDA, "copy": False}, "copy=False"),
        ({"dl_device": CUDA}, "copy the consumer's view"),
        ({"copy": True}, "copy the consumer's view"),
    ],
)
def test_what_cannot_be_copied_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(DLPackError, match=words):
        Memory((3,), "uint8").__dlpack__(max_version=(1, 0), **asked)


@pytest.mark.parametrize("asked", [{}, {"max_version": (1, 0)}, {"dl_device": CPU}, {"copy": True}])
def test_a_model_device_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(DLPackError, match="model"):
        copying(Memory((3,), "uint8", device=(12, 0)), []).__dlpack__(**asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (-1,)},
        {"shape": (2, -1)},
        {"shape": (0, -1)},
        {"shape": (2.5,)},
        {"shape": (1,) * 65},
        {"shape": (1 << 62, 4)},
        {"shape": (1 << 70,)},
        {"strides": (1, 1)},
        {"strides": ()},
        {"pointer": 0},
        {"pointer": -8},
        {"pointer": 1 << 63},
        {"pointer": "0x1000"},
    ],
    ids=repr,
)
def test_what_describes_no_memory_is_refused(wrong: dict[str, Any]) -> None:
    right = {"pointer": 1 << 20, "shape": (2,), "dtype": DType.parse("int32"), "device": CPU}
    with pytest.raises(InvalidRequestError, match="expected memory"):
        export(object(), **{**right, **wrong})


@pytest.mark.parametrize("shape", [(-1,), (2, -1), (0, -1), (-1, 0)])
def test_a_negative_extent_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="an extent is negative"):
        export(object(), pointer=1 << 20, shape=shape, dtype=DType.parse("int8"), device=CPU)


def test_strides_that_numpy_leaves_out_are_written() -> None:
    """NumPy before 2.4 writes none for row-major arrays; later ones are made to look so."""
    dtype = DType.parse("int32")
    array = capsule_module._over(object(), 1 << 20, (2, 3, 4), dtype, None)
    capsule = array.__dlpack__(max_version=(1, 0))
    managed = opened(capsule)
    managed.strides = None
    capsule_module._correct(managed, array, dtype, CPU)
    del array
    assert integers_at(managed.strides, 3) == (12, 4, 1)


# ------------------------------------------------------------------ host arrays


def test_a_host_array_is_the_memory() -> None:
    memory = Memory((2, 3), "int16")
    array = host_array(memory, pointer=memory.pointer, shape=(2, 3), dtype=memory.dtype)
    array[:] = np.arange(6).reshape(2, 3)
    assert type(array) is np.ndarray
    assert memoryview(array).format == "h"
    assert np.from_dlpack(memory).tolist() == [[0, 1, 2], [3, 4, 5]]
    frozen = host_array(memory, pointer=memory.pointer, shape=(6,), dtype=memory.dtype, read_only=True)
    assert memoryview(frozen).readonly
    flipped = host_array(
        memory, pointer=memory.pointer + 10, shape=(3, 2), dtype=memory.dtype, strides=(-1, -3)
    )
    assert flipped.tolist() == [[5, 2], [4, 1], [3, 0]]


def test_a_host_array_needs_a_type_that_numpy_has() -> None:
    memory = Memory((2,), "bfloat16")
    with pytest.raises(InvalidRequestError, match="uint16"):
        host_array(memory, pointer=memory.pointer, shape=(2,), dtype=memory.dtype)
