"""The C structures of DLPack 1, laid flat.

``DLDevice``, ``DLDataType`` and ``DLTensor`` are members of the managed tensors by value; their
fields stand here in the outer structure, because every level of nesting costs `ctypes` a proxy
object on each access. The layout is the ABI of every DLPack of major version 1 and of the legacy
versions before it, so the sizes are asserted.
"""

from __future__ import annotations

import ctypes
from enum import IntFlag
from typing import Any, ClassVar, Final

__all__ = ["LEGACY_NAME", "VERSIONED_NAME", "Flags", "ManagedTensor", "ManagedTensorVersioned"]

LEGACY_NAME: Final = b"dltensor"
VERSIONED_NAME: Final = b"dltensor_versioned"


class Flags(IntFlag):
    """Bits of ``DLManagedTensorVersioned.flags``."""

    READ_ONLY = 1
    IS_COPIED = 2


_TENSOR: Final[list[tuple[str, Any]]] = [
    ("data", ctypes.c_void_p),
    ("device_type", ctypes.c_int32),
    ("device_id", ctypes.c_int32),
    ("ndim", ctypes.c_int32),
    ("type_code", ctypes.c_uint8),
    ("type_bits", ctypes.c_uint8),
    ("type_lanes", ctypes.c_uint16),
    ("shape", ctypes.c_void_p),
    ("strides", ctypes.c_void_p),
    ("byte_offset", ctypes.c_uint64),
]


class ManagedTensor(ctypes.Structure):
    """``DLManagedTensor``, the legacy form: it knows no version and no flags."""

    _fields_: ClassVar = [*_TENSOR, ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class ManagedTensorVersioned(ctypes.Structure):
    """``DLManagedTensorVersioned``, since DLPack 1.0."""

    _fields_: ClassVar = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        *_TENSOR,
    ]


assert ctypes.sizeof(ManagedTensor) == (64 if ctypes.sizeof(ctypes.c_void_p) == 8 else 48)
assert ctypes.sizeof(ManagedTensorVersioned) == (80 if ctypes.sizeof(ctypes.c_void_p) == 8 else 64)
