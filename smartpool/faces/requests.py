"""The face of the original design: requests as values, allocations by number."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from smartpool.buffer import Buffer
from smartpool.config import SmartPoolConfig
from smartpool.driver.protocol import Stream
from smartpool.errors import (
    BufferReleasedError,
    ConfigurationError,
    DoubleFreeError,
    InvalidRequestError,
    UnknownPointerError,
)
from smartpool.faces.devices import DevicePool
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.upkeep.pressure import PressureCallback
from smartpool.request import AllocationRequest
from smartpool.values import as_integer, shown

__all__ = ["AllocationResult", "RequestFace"]


class AllocationResult(NamedTuple):
    """What `SmartPool.allocate_memory` gives: the buffer, and the id that frees it."""

    buffer: Buffer
    allocation_id: int


class RequestFace(DevicePool):
    """`allocate_memory` and `deallocate_memory`, and who is asked before a request fails."""

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...], config: SmartPoolConfig) -> None:
        super().__init__(managers, config)
        self._ids = itertools.count(1)
        self._last_id = 0

    def allocate_memory(self, request: AllocationRequest) -> AllocationResult:
        """Serve a request; the buffer is the pool's until `deallocate_memory` is told its id.

        A request without a device goes to the one with most free memory.

        Raises
        ------
        DeviceNotFoundError
            When `device_id` is not one of this pool's devices.
        OutOfMemoryError
            When the device cannot hold it.
        """
        if not isinstance(request, AllocationRequest):
            raise InvalidRequestError(f"expected an AllocationRequest, got {request!r}")
        manager = self._roomiest() if request.device_id is None else self._manager_of(request.device_id)
        if request.alignment is None:
            pointer = manager.malloc(request.size, request.stream)
        else:
            pointer = manager.malloc_aligned(request.size, request.alignment, request.stream)
        buffer = Buffer(manager, pointer, request.size)
        allocation_id = self._last_id = next(self._ids)
        self._allocations[allocation_id] = buffer
        return AllocationResult(buffer, allocation_id)

    def deallocate_memory(self, allocation_id: int, stream: Stream = None) -> None:
        """Free an allocation; consumers that still hold it through DLPack keep it until they are done.

        Raises
        ------
        DoubleFreeError
            When it was freed already.
        UnknownPointerError
            When the id is not one of this pool's.
        """
        number = as_integer(allocation_id) or 0
        buffer = self._allocations.get(number)
        if buffer is None:
            raise self._bad_id(allocation_id)
        try:
            buffer.free(stream)
        except BufferReleasedError:  # by another thread, or by `Buffer.free`
            raise self._bad_id(number) from None
        finally:
            if buffer.released:
                self._allocations.pop(number, None)

    def add_out_of_memory_callback(self, callback: Callable[[int], bool]) -> None:
        """Ask `callback(nbytes)` before a request of `nbytes` fails for lack of memory.

        It returns True when it freed something, and the request is tried again; False to let it
        fail. It may free and trim, and must not allocate from this pool. A True after which no less
        is live than before counts as False the second time. Before the request fails garbage is collected,
        and callbacks are asked once more.

        It is called under the pool's lock, on the thread whose request is short of memory: it must not
        wait for a lock that another thread may hold while that one allocates from this pool.

        What it raises, the request raises, in place of the `OutOfMemoryError`, which is then its cause
        (`__cause__`), with the story, unless it has a cause of its own or is a `DriverError`.
        """
        if not callable(callback):
            raise InvalidRequestError(f"callback: expected a function of the bytes wanted, got {callback!r}")
        for manager in self.managers:
            manager.out_of_memory_callbacks.append(callback)

    def remove_out_of_memory_callback(self, callback: Callable[[int], bool]) -> None:
        """Ask `callback` no more; `InvalidRequestError`, which is a `ValueError`, when it was not added."""
        try:
            for manager in self.managers:
                manager.out_of_memory_callbacks.remove(callback)
        except ValueError:
            raise _not_added("add_out_of_memory_callback", callback) from None

    def add_pressure_callback(self, callback: PressureCallback) -> None:
        """Tell `callback(pressure)` when `memory_pressure_threshold` is exceeded, before memory runs out.

        It is called on the optimiser's thread, soon after the request that exceeded the threshold, once
        until the pressure has fallen below it. It may do anything with the pool, and returns True when it
        freed something; what became idle is given back then.

        Raises
        ------
        ConfigurationError
            Without the background optimiser nobody would call it.
        """
        if not callable(callback):
            raise InvalidRequestError(f"callback: expected a function of a Pressure, got {callback!r}")
        if not self.config.enable_auto_defragmentation:
            raise ConfigurationError(
                "enable_auto_defragmentation",
                "expected True for pressure callbacks, which the background optimiser calls",
            )
        self._pressure_callbacks.add(callback)

    def remove_pressure_callback(self, callback: PressureCallback) -> None:
        """Tell `callback` no more; `InvalidRequestError`, which is a `ValueError`, when it was not added."""
        try:
            self._pressure_callbacks.remove(callback)
        except ValueError:
            raise _not_added("add_pressure_callback", callback) from None

    def _roomiest(self) -> AdvancedMemoryPoolManager:
        if len(self.managers) == 1:
            return self._manager
        return max(self.managers, key=lambda manager: manager.available_bytes)

    def _bad_id(self, allocation_id: object) -> DoubleFreeError | UnknownPointerError:
        if 0 < (as_integer(allocation_id) or 0) <= self._last_id:
            return DoubleFreeError(
                f"allocation {allocation_id} was freed already; free every allocation once"
            )
        return UnknownPointerError(
            f"expected the id of an allocation of this pool, got {shown(allocation_id)}; "
            "use the allocation_id that allocate_memory returned"
        )


def _not_added(method: str, callback: object) -> InvalidRequestError:
    return InvalidRequestError(f"callback: expected one that {method} was given, got {callback!r}")
