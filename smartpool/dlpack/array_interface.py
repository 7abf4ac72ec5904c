"""The CUDA array interface, version 3: a dictionary that describes device memory.

It is older than DLPack, and Numba, CuPy and many kernels still read it. It keeps nothing alive:
the consumer holds the object that gave the dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence

from smartpool.dlpack.dtype import DType
from smartpool.errors import ArrayInterfaceError

__all__ = ["cuda_array_interface"]


def cuda_array_interface(
    *,
    pointer: int,
    shape: Sequence[int],
    dtype: DType,
    strides: Sequence[int] | None = None,
    read_only: bool = False,
    stream: int | None = None,
) -> dict[str, object]:
    """Return ``__cuda_array_interface__`` of the memory at `pointer`.

    Parameters
    ----------
    pointer
        Address of the first element.
    shape, strides
        In elements; strides None for row-major without gaps.
    dtype
        A type that NumPy has.
    read_only
        Whether consumers may not write.
    stream
        The driver's handle of the stream on which the memory was last used, with which consumers
        synchronize; None when they need not. 0, the legacy default stream of the driver protocol,
        is written as 1, because the interface forbids 0.

    Raises
    ------
    ArrayInterfaceError
        For types that NumPy's type strings cannot say. It is an `AttributeError`, so that
        ``hasattr(buffer, "__cuda_array_interface__")`` is false for them.

    Examples
    --------
    >>> cuda_array_interface(pointer=0x7F0000000000, shape=(2, 3), dtype=DType.parse("float32"), stream=0)
    ... # doctest: +NORMALIZE_WHITESPACE
    {'shape': (2, 3), 'typestr': '<f4', 'data': (139637976727552, False), 'version': 3,
     'strides': None, 'stream': 1}
    """
    if not dtype.native:
        raise ArrayInterfaceError(
            f"expected a dtype that NumPy has, got {dtype.name}: the CUDA array interface cannot name it; "
            "exchange this buffer by DLPack (from_dlpack)"
        )
    return {
        "shape": tuple(shape),
        "typestr": dtype.carrier.str,
        "data": (0 if 0 in shape else pointer, read_only),
        "version": 3,
        "strides": None if strides is None else tuple(stride * dtype.itemsize for stride in strides),
        "stream": 1 if stream == 0 else stream,
    }
