"""PyTorch as the consumer, on the host. Skipped where PyTorch is absent."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from smartpool.dlpack import CopiedMemory, DType, export
from smartpool.dlpack.dtype import _BY_NAME

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("nothing_outstanding")

TAKEN = [name for name in _BY_NAME if isinstance(getattr(torch, name, None), torch.dtype)]
REFUSED = [name for name in _BY_NAME if name not in TAKEN]


class Memory:
    """A few host bytes, exported as PyTorch asks."""

    def __init__(self, dtype: str, shape: tuple[int, ...], **how: Any) -> None:
        self.dtype, self.shape, self.how = DType.parse(dtype), shape, how
        self.bytes = ctypes.create_string_buffer(bytes(range(1, 65)), 64)
        self.asked: list[dict[str, Any]] = []

    @property
    def pointer(self) -> int:
        return ctypes.addressof(self.bytes)

    def __dlpack__(self, *, stream: Any = None, **asked: Any) -> Any:
        self.asked.append(asked)
        what = {"pointer": self.pointer, "shape": self.shape, "dtype": self.dtype, "device": (1, 0)}
        return export(self, **what, **self.how, **asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0, 3), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_every_type_and_shape_that_pytorch_has(name: str, shape: tuple[int, ...]) -> None:
    memory = Memory(name, shape)
    tensor = torch.from_dlpack(memory)
    assert tensor.dtype is getattr(torch, name)
    assert tensor.shape == shape
    assert tensor.is_contiguous()
    if tensor.numel():
        assert tensor.data_ptr() == memory.pointer
        held = tensor.reshape(-1).view(torch.uint8) if shape else tensor[None].view(torch.uint8)
        assert bytes(held.numpy()) == memory.bytes.raw[: memory.dtype.nbytes(tensor.numel())]


@pytest.mark.parametrize("name", REFUSED)
def test_types_that_pytorch_lacks_get_its_own_error(name: str) -> None:
    with pytest.raises(BufferError, match="Unsupported"):
        torch.from_dlpack(Memory(name, (2,)))


def test_strides_are_taken_over() -> None:
    tensor = torch.from_dlpack(Memory("bfloat16", (2, 3), strides=(1, 4)))
    assert tensor.stride() == (1, 4)
    assert tensor.untyped_storage().nbytes() >= 2 * (1 + 1 + 2 * 4)


def test_it_writes_to_the_same_memory() -> None:
    memory = Memory("float32", (2, 2))
    torch.from_dlpack(memory).fill_(1.5)
    assert np.from_dlpack(memory).tolist() == [[1.5, 1.5], [1.5, 1.5]]


def test_legacy_capsules_are_taken_too() -> None:
    memory = Memory("float8_e4m3fn", (4,))
    tensor = torch.utils.dlpack.from_dlpack(memory.__dlpack__())
    assert tensor.data_ptr() == memory.pointer


def test_a_copy_on_demand() -> None:
    def make_copy(target: tuple[int, int]) -> CopiedMemory:
        assert target == (1, 0)
        twin = ctypes.create_string_buffer(memory.bytes.raw)
        return CopiedMemory(owner=twin, pointer=ctypes.addressof(twin))

    memory = Memory("uint8", (4,), make_copy=make_copy)
    copied = torch.from_dlpack(memory, device="cpu", copy=True)
    memory.bytes.raw = bytes(64)
    assert copied.tolist() == [1, 2, 3, 4]


def test_a_tensor_handed_on_keeps_the_memory() -> None:
    """NumPy holds PyTorch, which holds the export; the chain falls from its end."""
    memory = Memory("int16", (4,))
    array = np.from_dlpack(torch.from_dlpack(memory)[1:])
    assert array.ctypes.data == memory.pointer + 2
    del memory
    assert array[0] == int.from_bytes(b"\3\4", "little")
