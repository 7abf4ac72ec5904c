"""DLPack: handing memory to other frameworks without a copy.

`export` makes the capsule that ``__dlpack__`` returns; `DType` names the element types;
`consumer_stream` reads the ``stream`` argument; `cuda_array_interface` describes device memory to
those who speak the older protocol; `host_array` is NumPy's view of memory on the host. None of
them owns memory: they keep an `owner` alive for as long as somebody uses what was handed out.
`checked_shape` and `byte_count` read shapes.
"""

from __future__ import annotations

from smartpool.dlpack.array_interface import cuda_array_interface
from smartpool.dlpack.capsule import CopiedMemory, export, host_array, outstanding
from smartpool.dlpack.device import DeviceType, consumer_stream
from smartpool.dlpack.dtype import DType, DTypeLike
from smartpool.dlpack.shape import byte_count, checked_shape

__all__ = [
    "CopiedMemory",
    "DType",
    "DTypeLike",
    "DeviceType",
    "byte_count",
    "checked_shape",
    "consumer_stream",
    "cuda_array_interface",
    "export",
    "host_array",
    "outstanding",
]
