"""The primary context of one device, and how its driver functions are called.

Another library may make another context current on the calling thread at any time
(`torch.cuda.set_device`), so a flag per thread would lie: a call that depends on the current
context asks for it (0.2 us), and a foreign one is put back afterwards. Calls that name their
device or context by a handle (events, user streams, virtual memory) skip this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from smartpool.driver.cuda.bindings import Bindings, failure
from smartpool.errors import DriverError

__all__ = ["Context"]


class Context:
    """A retained primary context.

    Parameters
    ----------
    bindings
        The driver's functions.
    ordinal
        The device number.

    Attributes
    ----------
    handle
        The context's handle as an integer.
    calls, seconds
        Calls made, by protocol name, and the time in them. Threads that call at the same instant
        may lose a count.
    """

    def __init__(self, bindings: Bindings, ordinal: int) -> None:
        self.bindings = bindings
        self.api = bindings.api
        self.ordinal = ordinal
        self.device = bindings.device(ordinal)
        self.raw = bindings.expect("cuDevicePrimaryCtxRetain", self.api.cuDevicePrimaryCtxRetain(self.device))
        self.handle = int(self.raw)
        self.calls: Counter[str] = Counter()
        self.seconds = 0.0
        self._success = bindings.success
        self._get_current = self.api.cuCtxGetCurrent

    def call(
        self, call: str, function: Callable[..., Any], values: tuple[Any, ...], **arguments: object
    ) -> Any:
        """Call the driver, keep the time, and raise what a failure means."""
        self.calls[call] += 1
        begin = perf_counter()
        try:
            result = function(*values)
        except OverflowError as error:  # a number that does not fit the binding's types
            codes = self.api.CUresult
            too_much = call in ("allocate", "create_chunk", "allocate_host")
            code = codes.CUDA_ERROR_OUT_OF_MEMORY if too_much else codes.CUDA_ERROR_INVALID_VALUE
            raise failure(call, code, arguments) from error
        except RuntimeError as error:  # the installed driver lacks a function that the package knows
            raise DriverError(
                call, "FUNCTION_NOT_FOUND", arguments, advice=f"update the driver: {error}"
            ) from error
        self.seconds += perf_counter() - begin
        if result[0] is not self._success:
            raise failure(call, result[0], arguments)
        return result

    def call_here(
        self, call: str, function: Callable[..., Any], values: tuple[Any, ...], **arguments: object
    ) -> Any:
        """Call the driver with this context current, and leave the thread's own as it was."""
        code, current = self._get_current()
        if code is not self._success:  # after a fork, for one
            raise failure(call, code, arguments)
        if int(current) == self.handle:
            return self.call(call, function, values, **arguments)
        with self.current():
            return self.call(call, function, values, **arguments)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this context current. On a thread that had none it stays: the thread is then set up."""
        before = int(self.bindings.expect("cuCtxGetCurrent", self._get_current()))
        if before in (0, self.handle):
            self.bindings.expect("cuCtxSetCurrent", self.api.cuCtxSetCurrent(self.raw))
            yield
            return
        self.bindings.expect("cuCtxPushCurrent", self.api.cuCtxPushCurrent(self.raw))
        try:
            yield
        finally:
            self.bindings.expect("cuCtxPopCurrent", self.api.cuCtxPopCurrent())

    def attribute(self, name: str) -> int:
        """Return a device attribute by the end of its name."""
        attribute = getattr(self.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        result = self.api.cuDeviceGetAttribute(attribute, self.device)
        return int(self.bindings.expect("cuDeviceGetAttribute", result, name=name))

    def describe(self) -> dict[str, object]:
        """Return what a reader wants to know of the device and its driver."""
        name = self.bindings.expect("cuDeviceGetName", self.api.cuDeviceGetName(128, self.device))
        major, minor = (self.attribute(f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        return {
            "name": name.split(b"\0")[0].decode(),
            "compute_capability": f"{major}.{minor}",
            "multiprocessors": self.attribute("MULTIPROCESSOR_COUNT"),
            "driver": ".".join(map(str, self.bindings.driver_version)),
            "bindings": self.bindings.version,
            "stream_ordered_pools": bool(self.attribute("MEMORY_POOLS_SUPPORTED")),
            "shareable_handles": bool(self.attribute("HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED")),
        }

    def release(self) -> None:
        """Release the context; it must not be used again."""
        self.bindings.expect("close", self.api.cuDevicePrimaryCtxRelease(self.device))
