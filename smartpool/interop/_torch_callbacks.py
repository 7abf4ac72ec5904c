"""The functions that PyTorch calls for memory, as C addresses that outlive the interpreter.

Problem: PyTorch keeps bare function addresses. It calls them on any thread (autograd's included),
within a KeyboardInterrupt's reach, and after the globals of every module are gone: models and
optimisers in the main module's globals die then, hundreds of blocks of them.
Method: what the functions touch is bound in their closures, never looked up in a module; the
`ctypes` objects behind the addresses get a reference that is never given back; and once the
interpreter is finalising a free does nothing, because the process's end gives all memory back.
What can raise is handed to `Rescue`, since PyTorch takes no exceptions from here.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from smartpool.interop._frameworks import manager_for

if TYPE_CHECKING:
    from smartpool.interop._torch_graphs import Graphs
    from smartpool.interop._torch_rescue import Rescue
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = [
    "AllocateFunction",
    "FreeFunction",
    "address_of",
    "allocate_and_free",
    "segment_functions",
]

AllocateFunction: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
FreeFunction: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)

Allocate = Callable[[int, int, int | None], int | None]
Free = Callable[[int, int, int, int | None], None]


def address_of(prototype: Any, function: Callable[..., Any]) -> int:
    """Return the address of `function` as C code of the type `prototype`, valid until the process ends."""
    callback = prototype(function)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(callback))
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    return address


def allocate_and_free(
    managers: dict[int, AdvancedMemoryPoolManager], rescue: Rescue, graphs: Graphs
) -> tuple[Allocate, Free]:
    """Return PyTorch's two functions over `managers`, for the whole process.

    On a pool of one device a request costs two Python calls more than the pool itself.
    """
    finalizing = sys.is_finalizing
    captures, private = graphs.captures, graphs.private
    keep, put_back = graphs.allocate, graphs.free
    failed, unknown = rescue.allocation_failed, rescue.free_failed
    first, *others = managers.items()
    ordinal, manager = first
    take, give = manager.malloc, manager.free

    def allocate(size: int, device: int, stream: int | None) -> int | None:
        if not size:
            return None
        try:
            if captures and device in captures:
                return keep(size, device, stream)
            if device == ordinal:
                return take(size, stream)
            return manager_for(managers, device).malloc(size, stream)
        except BaseException as error:  # noqa: BLE001 - PyTorch must get an answer
            return None if finalizing() else failed(error, size, device, stream)

    def free(pointer: int, size: int, device: int, stream: int | None) -> None:  # noqa: ARG001 - PyTorch's
        if finalizing():
            return
        try:
            if (private or captures) and put_back(pointer, device):
                return
            if others and device != ordinal:
                managers[device].free(pointer)
            else:
                give(pointer)
        except BaseException as error:  # noqa: BLE001 - see `free_failed`
            unknown(error, pointer)

    return allocate, free


def segment_functions(
    managers: dict[int, AdvancedMemoryPoolManager],
) -> tuple[Allocate, Free]:
    """Return the two functions for the segments of a `torch.cuda.MemPool`.

    There PyTorch's own allocator stands between: it takes a null pointer for out of memory, frees
    what it can, asks again and raises its own error. So nothing is rescued, and nothing is said.
    """
    finalizing = sys.is_finalizing
    memory_error = MemoryError

    def allocate(size: int, device: int, stream: int | None) -> int | None:
        try:
            return managers[device].malloc(size, stream)
        except memory_error:
            return None

    def free(pointer: int, size: int, device: int, stream: int | None) -> None:  # noqa: ARG001
        if not finalizing():
            managers[device].free(pointer)

    return allocate, free
