"""JAX as the consumer, on the host. Skipped where JAX is absent."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest

from smartpool.dlpack import DType, export
from smartpool.dlpack.dtype import _BY_NAME, TypeCode

jnp = pytest.importorskip("jax.numpy")

# JAX asks for 64-bit types by a switch of its own, and has no complex32.
TAKEN = [
    name
    for name, dtype in _BY_NAME.items()
    if dtype.bits in {8, 16, 32} and dtype.lanes == 1 and (dtype.code != TypeCode.COMPLEX)
]


class Memory:
    """Host bytes, aligned as JAX wants them in order not to copy."""

    def __init__(self, dtype: str) -> None:
        self.dtype = DType.parse(dtype)
        self.bytes = ctypes.create_string_buffer(256)
        self.pointer = (ctypes.addressof(self.bytes) + 63) & -64
        ctypes.memset(self.pointer, 1, 64)

    def __dlpack__(self, *, stream: Any = None, **asked: Any) -> Any:
        return export(self, pointer=self.pointer, shape=(2, 3), dtype=self.dtype, device=(1, 0), **asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.usefixtures("nothing_outstanding")
@pytest.mark.parametrize("name", TAKEN)
def test_every_type_that_jax_has(name: str) -> None:
    memory = Memory(name)
    array = jnp.from_dlpack(memory)
    assert DType.parse(array.dtype).name == name
    assert array.shape == (2, 3)
    assert array.unsafe_buffer_pointer() == memory.pointer
    assert array.tobytes() == b"\1" * memory.dtype.nbytes(6)
    del array
    gc.collect()


def test_scalar_classes_of_jax_are_dtypes() -> None:
    assert DType.parse(jnp.float32).name == "float32"
    assert DType.parse(jnp.bfloat16).name == "bfloat16"
