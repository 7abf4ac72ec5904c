"""The functions that PyTorch calls for memory, as C addresses that outlive the interpreter.

Problem: PyTorch keeps bare function addresses. It calls them on any thread (autograd's included),
within a KeyboardInterrupt's reach, and after the globals of every module are gone: models and
optimisers in the main module's globals die then, hundreds of blocks of them.
Method: what the functions touch is bound in their closures, never looked up in a module, and the
`ctypes` objects behind the addresses get a reference that is never given back. What a request raises
is handed to `Rescue`, since no exception passes from here. A free is not Python at all: see
`FreeRing`.
"""

from __future__ import annotations

import _thread
import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import UnknownPointerError
from smartpool.interop._frameworks import manager_for
from smartpool.interop._torch_ring import FreeRing

if TYPE_CHECKING:
    from smartpool.interop._torch_rescue import Rescue
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = [
    "AllocateFunction",
    "FreeFunction",
    "address_of",
    "allocate_and_free",
]

AllocateFunction: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
FreeFunction: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)

Allocate = Callable[[int, int, int | None], int | None]


def address_of(prototype: Any, function: Callable[..., Any]) -> int:
    """Return the address of `function` as C code of the type `prototype`, valid until the process ends."""
    callback = prototype(function)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(callback))
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    return address


def allocate_and_free(
    managers: dict[int, AdvancedMemoryPoolManager],
    rescue: Rescue,
    lasting_streams: Callable[[int], Iterable[int]],
) -> tuple[Allocate, Allocate, FreeRing]:
    """Return PyTorch's request function over `managers`, for the whole process, and the ring of its frees.

    The second function is to be called when the first answered with a null pointer: an exception that
    was on its way (Ctrl-C) struck there; see `Rescue`.

    What waits in the ring is given back before a request is served, and before a manager searches its
    arenas for anybody or looks at itself.
    """
    finalizing = sys.is_finalizing
    seen: set[int] = set()

    def admit(stream: int, device: int) -> None:
        seen.add(stream)
        driver = manager_for(managers, device).driver
        for lasting in lasting_streams(device):
            seen.add(driver.keep_stream(lasting))  # type: ignore[attr-defined]  # a CUDA driver

    failed, unknown = rescue.allocation_failed, rescue.free_failed
    first, *others = managers.items()
    ordinal, manager = first
    take, give = manager.malloc, manager.drop

    def give_back(pointer: int) -> None:
        try:
            for _, other in others:
                if other.owns(pointer):
                    other.drop(pointer)
                    return
            give(pointer)
        except UnknownPointerError as error:
            unknown(error)

    ring = FreeRing(give_back)
    slots, cursor, drain = ring.slots, ring.cursor, ring.drain

    def allocate(size: int, device: int, stream: int | None) -> int | None:
        if not size:
            return None
        try:
            if slots[cursor[0]]:
                drain()
            if stream is not None and stream not in seen:
                admit(stream, device)
            if device == ordinal:
                return take(size, stream)
            return manager_for(managers, device).malloc(size, stream)
        except BaseException as error:  # noqa: BLE001 - PyTorch must get an answer
            return None if finalizing() else failed(error, size, device, stream)

    lost, armed, here, raise_in = rescue.lost, rescue.armed, _thread.get_ident, rescue.raise_in

    def allocate_again(size: int, device: int, stream: int | None) -> int | None:
        thread, before = here(), armed[0]
        found = lost.pop(thread, None)
        pointer = allocate(size, device, stream)
        # When that failed, too, an error is on its way again, and would strike at the next call from here.
        if armed[0] == before:
            found = lost.pop(thread, None) or found
            if found is not None:
                [*map(raise_in, found[:1], found[1:])]  # as in `Rescue.allocation_failed`
        return pointer

    for each in managers.values():
        each.late_frees = drain
    rescue.watch((allocate, allocate_again))
    return allocate, allocate_again, ring
