"""Every error that SmartPool raises: one root, one class a cause.

A message says what was expected, what came, and what to do next. A call that raises leaves the
pool as it was, unless the class says otherwise. Where Python has a class for the kind of mistake
(`ValueError`, `MemoryError`, ...), ours derives from it too, so that code which does not know
SmartPool still catches the right thing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from smartpool.values import in_units

__all__ = [
    "AllocatorError",
    "ArrayInterfaceError",
    "AsleepError",
    "BackgroundError",
    "BufferReleasedError",
    "CaptureError",
    "ConfigurationError",
    "DLPackError",
    "DeviceNotFoundError",
    "DoubleFreeError",
    "DriverError",
    "DriverNotInstalledError",
    "DriverOutOfMemoryError",
    "DriverTooOldError",
    "InvalidRequestError",
    "InvalidSizeError",
    "InvariantError",
    "MemoryCorruptionError",
    "MissingPackageError",
    "OutOfMemoryError",
    "OverrunError",
    "PlanningError",
    "PoolClosedError",
    "ReentrantCallError",
    "RequestTooLargeError",
    "ScopeError",
    "SharingError",
    "SmartPoolError",
    "StepError",
    "StreamError",
    "TraceError",
    "TraceFormatError",
    "TraceInconsistentError",
    "UnknownPointerError",
    "UnsafePickleError",
    "UnsupportedError",
    "UseAfterFreeError",
]


REQUEST_TOO_LARGE: Final = "REQUEST_TOO_LARGE"
"""The code of a request that could never succeed, where a driver's code says why memory is out."""


class SmartPoolError(Exception):
    """The root of all errors that SmartPool raises on purpose."""


# ------------------------------------------------------------------ what the caller asked for


class InvalidRequestError(SmartPoolError, ValueError):
    """A request has a field of the wrong type or value: shape, dtype, alignment, priority, hint."""


class InvalidSizeError(InvalidRequestError):
    """A size is negative, not an integer, or not readable. Not raised for sizes that are too large."""


class ConfigurationError(SmartPoolError, ValueError):
    """A configuration value is wrong. The message begins with the name of the field.

    Attributes
    ----------
    field
        The name of the field that is wrong.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class StreamError(SmartPoolError, ValueError):
    """An object is not a stream of this device, or a stream was already destroyed."""


class CaptureError(SmartPoolError, RuntimeError):
    """The pool cannot do this while a stream is captured into a graph, or at the edges of a capture."""


class AsleepError(SmartPoolError, RuntimeError):
    """Memory that sleeps was to be used, or could not be put to sleep or woken; the message says which."""


class SharingError(SmartPoolError, RuntimeError):
    """A buffer cannot be shared between processes, or was not shared any more when it was opened."""


class ScopeError(SmartPoolError, RuntimeError):
    """A scope (`tag`, `profile`, `step`, ...) is entered twice at once, or decorates what is no function."""


class StepError(SmartPoolError, RuntimeError):
    """Steps are nested, or ended on another thread than they began on."""


class UnsupportedError(SmartPoolError, NotImplementedError):
    """The device or platform cannot do what was asked. Nothing was done in its place."""


class MissingPackageError(SmartPoolError, ImportError):
    """An optional package is not installed. The message says what needs it and how to install it."""


# ------------------------------------------------------------------ memory


class OutOfMemoryError(SmartPoolError, MemoryError):
    """The device or the pool's limit cannot hold the request beside what is live.

    Raised only after idle memory was reused, given back and asked for again. The pool is as it
    was; live blocks are intact. See `RequestTooLargeError` for requests that can never succeed.

    Attributes
    ----------
    report
        An `OutOfMemoryReport`: what was asked, what is live and idle, who holds it, what would help.
    dump_path
        The file that tells it all, where one was asked for: `docs/out-of-memory.md`.
    """

    report: Any = None
    dump_path: str | None = None

    @property
    def story(self) -> Any:
        """Former name of `report`; it goes in the next release."""
        warnings.warn("OutOfMemoryError.story is now called report", DeprecationWarning, stacklevel=2)
        return self.report


class RequestTooLargeError(OutOfMemoryError):
    """One request is larger than the whole device, or than the pool's limit: waiting cannot help."""


class DoubleFreeError(SmartPoolError, ValueError):
    """A pointer or allocation that was freed already is freed again. Nothing was changed."""


class UnknownPointerError(SmartPoolError, ValueError):
    """A pointer or allocation id never came from this pool, or points into the middle of a block."""


class MemoryCorruptionError(SmartPoolError, RuntimeError):
    """Somebody wrote where they must not: found by a pool in debug mode, after the fact.

    The pool itself is whole. Not raised for faults that the device reports itself.

    Attributes
    ----------
    pointer, nbytes
        The block beside or in which it was.
    offset
        Of the first byte that was overwritten, from the start of the block; negative before it.
    allocated_at, freed_at
        The stacks of its request and of its free, a line a frame; empty where there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        pointer: int = 0,
        nbytes: int = 0,
        offset: int = 0,
        allocated_at: str = "",
        freed_at: str = "",
    ) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.nbytes = nbytes
        self.offset = offset
        self.allocated_at = allocated_at
        self.freed_at = freed_at


class OverrunError(MemoryCorruptionError):
    """The bytes right before or behind a block were written."""


class UseAfterFreeError(MemoryCorruptionError):
    """A block was written after it was freed. Reading one cannot be seen."""


class PoolClosedError(SmartPoolError, RuntimeError):
    """The pool was closed. Frees of memory that is still live are accepted all the same."""


class ReentrantCallError(SmartPoolError, RuntimeError):
    """A destructor or signal handler asks for memory in the middle of the same thread's own request.

    The pool's books are half written there, so it refuses. Frees are always accepted, and so are
    requests of other threads, and those that a bin can serve.
    """


class BufferReleasedError(SmartPoolError, ValueError):
    """A buffer is used, or freed again, after `Buffer.free`."""


class BackgroundError(SmartPoolError, RuntimeError):
    """The background optimizer failed; its own error is the cause. It runs on at the next interval."""


class InvariantError(SmartPoolError, AssertionError):
    """A `check()` found an invariant broken: a bug in SmartPool. The message dumps the state."""


# ------------------------------------------------------------------ devices and drivers


class DeviceNotFoundError(SmartPoolError, LookupError):
    """No such device: the name is not understood, or its number is out of range."""


class DriverNotInstalledError(SmartPoolError, RuntimeError):
    """The device's driver or the Python package that talks to it is not installed on this machine."""


class DriverTooOldError(DriverNotInstalledError):
    """The installed driver is older than the Python package that talks to it allows."""


class DriverError(SmartPoolError, RuntimeError):
    """A driver call failed.

    Attributes
    ----------
    call
        The name of the call, by the driver protocol (``"map_chunk"``).
    code
        The driver's own name for the failure (``"CUDA_ERROR_INVALID_VALUE"``, ``"ENOMEM"``).
    arguments
        The arguments of the call by name.
    """

    def __init__(
        self, call: str, code: str, arguments: Mapping[str, object] | None = None, *, advice: str = ""
    ) -> None:
        self.call = call
        self.code = code
        self.arguments = dict(arguments or {})
        shown = ", ".join(f"{name}={_show(value)}" for name, value in self.arguments.items())
        super().__init__(f"{call}({shown}) failed: {code}" + (f"; {advice}" if advice else ""))


class DriverOutOfMemoryError(DriverError, MemoryError):
    """The device has no physical memory left for a driver call.

    The pool catches it, frees what it can, tries again, and raises `OutOfMemoryError` in the end.
    Only users of the bare driver see this class.
    """

    def __init__(
        self, call: str, code: str, arguments: Mapping[str, object] | None = None, *, advice: str = ""
    ) -> None:
        super().__init__(call, code, arguments, advice=advice)
        size = self.arguments.get("size")
        tried = f"Tried to allocate {in_units(size)}" if isinstance(size, int) else "Tried to allocate"
        self.args = (f"out of memory. {tried}: {self}",)


# ------------------------------------------------------------------ exchange, traces, plans


class AllocatorError(SmartPoolError, RuntimeError):
    """A framework cannot be given this allocator any more, or was never given one. Nothing was changed."""


class DLPackError(SmartPoolError, BufferError):
    """A buffer cannot be exported as the consumer asked (device, copy, version or stream)."""


class ArrayInterfaceError(SmartPoolError, AttributeError):
    """The CUDA array interface cannot describe this buffer. Does not apply to DLPack, which can."""


class TraceError(SmartPoolError, ValueError):
    """A trace or log cannot be used. The message names the file, and the row where there is one."""


class TraceFormatError(TraceError):
    """A file is truncated, damaged, or not of the format that was expected."""


class TraceInconsistentError(TraceError):
    """A readable trace contradicts itself: it frees what is not live, or reuses a live id."""


class UnsafePickleError(TraceFormatError):
    """A pickle holds more than plain containers, strings and numbers. Nothing of it was run."""


class PlanningError(SmartPoolError, ValueError):
    """Intervals cannot be planned: one is malformed, or fixed offsets collide. Names the interval."""


def _show(value: object) -> str:
    """Addresses and sizes read better in hexadecimal once they are large."""
    return hex(value) if isinstance(value, int) and value >= 1 << 20 else repr(value)
