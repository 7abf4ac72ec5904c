"""The functions that PyTorch calls for memory, as C addresses that outlive the interpreter.

Problem: PyTorch keeps bare function addresses. It calls them on any thread (autograd's included),
within a KeyboardInterrupt's reach, and after the globals of every module are gone: models and
optimisers in the main module's globals die then, hundreds of blocks of them.
Method: what the functions touch is bound in their closures, never looked up in a module, and the
`ctypes` objects behind the addresses get a reference that is never given back. What a request raises
is handed to `Rescue`, since no exception passes from here. A free is not Python at all, and neither is
a request that finds a block of its size: see `Front`.
"""

from __future__ import annotations

import _thread
import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import UnknownPointerError
from smartpool.heap.policy import policy_of
from smartpool.interop._frameworks import keep_for_good, manager_for
from smartpool.interop._torch_front import Front
from smartpool.interop._torch_rescue import ROOM
from smartpool.manager import AdvancedMemoryPoolManager

if TYPE_CHECKING:
    from smartpool.interop._torch_rescue import Rescue

__all__ = [
    "AllocateFunction",
    "FreeFunction",
    "address_of",
    "front_of",
]

AllocateFunction: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
FreeFunction: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)


def address_of(prototype: Any, function: Callable[..., Any]) -> int:
    """Return the address of `function` as C code of the type `prototype`, valid until the process ends."""
    callback = prototype(function)
    keep_for_good(callback)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    return address


class _ListAlone:
    """What a pool whose blocks the front does not stack knows of it."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def drain(self, *, everything: bool = False) -> None:  # noqa: ARG002 - as `RequestFront`
        """Give back what waits."""
        self._front.drain()

    def switch(self, *, on: bool) -> None:
        """Nothing: every request reaches the pool."""


def front_of(
    managers: dict[int, AdvancedMemoryPoolManager],
    rescue: Rescue,
    throw: int,
    lasting_streams: Callable[[int], Iterable[int]],
) -> Front:
    """Return the front before `managers`, whose functions PyTorch may call until the process ends.

    Its stacks are of the first device. A request that they do not serve calls Python; a second one, when
    that answered with a null pointer: an exception that was on its way (Ctrl-C) struck there; see `Rescue`.
    """
    finalizing = sys.is_finalizing
    seen: set[int] = set()

    def admit(stream: int, device: int) -> None:
        seen.add(stream)
        driver = manager_for(managers, device).driver
        lasting = list(lasting_streams(device))
        seen.update(driver.keep_stream(one) for one in lasting)  # type: ignore[attr-defined]  # a CUDA driver
        if device == ordinal:
            front.admit(lasting)

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

    def allocate(size: int, device: int, stream: int | None) -> int | None:
        if not size:
            return None
        try:
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

    front = Front(
        ordinal,
        policy_of(manager.config.policy).slab_limit,
        give_back,
        first=address_of(AllocateFunction, allocate),
        second=address_of(AllocateFunction, allocate_again),
        throw=throw,
        room=ROOM,
    )
    front.admit([0])
    rescue.watch((allocate, allocate_again))
    for _, other in others:
        other.front = _ListAlone(front)
    # A pool that debugs has its own idea of each block.
    manager.front = front if type(manager) is AdvancedMemoryPoolManager else _ListAlone(front)
    return front
