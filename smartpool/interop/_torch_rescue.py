"""What happens when PyTorch asks for memory and there is none: a Python error, and a live process.

Problem: PyTorch's pluggable allocator takes any answer for memory. A null pointer becomes a tensor,
the next kernel writes to it, and the CUDA context is lost for good. An exception cannot pass: the
callback is C to PyTorch, and C++ exceptions must not unwind through Python's frames.
Method: the request is answered with a *stand-in*, addresses of the right length behind which one
spare chunk is mapped over and over. Kernels that were to use the memory run on garbage and harm
nobody, and when PyTorch returns to the interpreter the error is raised there, as an asynchronous
exception of the thread (`PyThreadState_SetAsyncExc`), before anything can read the result. It is
both our `OutOfMemoryError` and `torch.OutOfMemoryError`. A request of autograd's own threads,
which have no Python code to raise in, is raised in the thread that waits for the backward pass.
What PyTorch does next may ask for memory again, in the same call, and then the first Python instruction
is one of our own function: the error strikes there, and `ctypes` drops it and answers with whatever lies
on its stack. C code makes that a null pointer and asks a second time (`_torch_ring.ask_twice`), and the
second answer raises the lost error anew. The same saves a request at which Ctrl-C strikes.
Bound: the error is raised at the first Python instruction after the call into PyTorch. One chunk a
device (2 MiB), and 31 us of driver calls for each chunk's length of the request (0.16 s for 10 GiB).
Rejected: a null pointer (above); memory of the host or of another tensor (corrupts it); waiting (the
caller's own references keep the memory).
"""

from __future__ import annotations

import _thread
import ctypes
import logging
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import DriverError, SmartPoolError, UnknownPointerError
from smartpool.units import GiB, align_up

if TYPE_CHECKING:
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["Rescue"]

_LOGGER = logging.getLogger("smartpool")
_LONGEST: Final = 256 * GiB  # longer than any device: such a request is a mistake, and gets one chunk

_set_async_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exception.restype = ctypes.c_int


class Rescue:
    """Answers requests that failed.

    Parameters
    ----------
    managers
        The pool's managers by device number.
    out_of_memory
        `torch.OutOfMemoryError`, or whatever else a raised `MemoryError` is to be as well.

    Attributes
    ----------
    failures
        How many requests failed.
    lost
        By the thread of a request: in which thread to raise what struck in a function of ours.
    armed
        A list of one: how many errors were sent on their way.
    raise_in
        Raises a class in a thread: `PyThreadState_SetAsyncExc`.
    """

    def __init__(
        self, managers: dict[int, AdvancedMemoryPoolManager], out_of_memory: type[Exception]
    ) -> None:
        self._managers = managers
        self._out_of_memory = out_of_memory
        self._spares = {ordinal: _Spare(manager) for ordinal, manager in managers.items()}
        self.lost: dict[int, tuple[int, type[BaseException]]] = {}
        self.armed = [0]
        self.raise_in = _set_async_exception
        self.failures = 0

    def allocation_failed(
        self, error: BaseException, size: int, device: int, stream: int | None
    ) -> int | None:
        """Return what to answer a request that raised `error`; the error is raised later."""
        if isinstance(error, Exception):
            pointer = self._stand_in(size, device)
        else:  # Ctrl-C: not the request's fault
            try:
                pointer = self._managers[device].malloc(size, stream)
            except SmartPoolError:
                pointer = self._stand_in(size, device)
        thread, kind = _waiting_thread(), _class_that_raises(error, self._out_of_memory)
        if pointer is None:  # C code asks again: the error waits for that, or it would strike there
            self.lost[_thread.get_ident()] = thread, kind
            return None
        self.armed[0] += 1
        arguments = (thread,), (kind,)
        # The list is extended in C. A plain call would let the interpreter look for asynchronous
        # exceptions right after it, and it would find this one here instead of in the caller.
        [*map(_set_async_exception, *arguments)]
        return pointer

    def watch(self, functions: tuple[Callable[..., Any], ...]) -> None:
        """Keep what strikes in `functions`, which `ctypes` calls, and would be dropped there."""
        lost, before, here = self.lost, sys.unraisablehook, _thread.get_ident

        def hook(unraisable: Any) -> None:
            if unraisable.object in functions and unraisable.exc_type is not None:
                lost[here()] = here(), unraisable.exc_type
            else:
                before(unraisable)

        sys.unraisablehook = hook

    def free_failed(self, error: UnknownPointerError, pointer: int) -> None:
        """Give a stand-in back; anything else that the pool does not know is logged as an error.

        It comes up late, and in the middle of someone else's request, who must not pay for it.
        """
        if not any(spare.release(pointer) for spare in self._spares.values()):
            _LOGGER.error("PyTorch freed what is not the pool's: %s", error)

    def _stand_in(self, size: int, device: int) -> int | None:
        self.failures += 1
        spare = self._spares.get(device)
        # A null pointer is for what cannot be helped: it is asked for again.
        return None if spare is None else spare.stand_in(size)

    def close(self) -> None:
        """Give the spare chunks back, where no stand-in is alive."""
        for spare in self._spares.values():
            spare.close()


class _Spare:
    """One chunk of a device, mapped at as many addresses as a request is long."""

    def __init__(self, manager: AdvancedMemoryPoolManager) -> None:
        self._driver = manager.driver
        self._unit = self._driver.granularity
        self._chunk = self._driver.create_chunk(self._unit) if self._unit else None
        self._lengths: dict[int, int] = {}  # address -> bytes reserved there
        self._lock = threading.Lock()

    def stand_in(self, size: int) -> int | None:
        """Return the address of `size` bytes that may be touched and mean nothing, or None."""
        if self._chunk is None:
            return None
        size = size if size <= _LONGEST else self._unit  # no kernel runs on what no device holds
        driver, unit, length = self._driver, self._unit, align_up(size, self._unit)
        with self._lock:
            try:
                base = driver.reserve(length)
            except DriverError:
                return None
            mapped = 0
            try:
                while mapped < length:
                    driver.map_chunk(base + mapped, self._chunk)
                    mapped += unit
                driver.enable_access(base, length)
            except DriverError:
                if mapped:
                    driver.unmap(base, mapped)
                driver.unreserve(base, length)
                return None
            self._lengths[base] = length
            return base

    def release(self, pointer: int) -> bool:
        """Give a stand-in back, once the device is done with it; False when it is none of ours."""
        with self._lock:
            length = self._lengths.pop(pointer, None)
            if length is None:
                return False
            self._driver.synchronize()
            self._driver.unmap(pointer, length)
            self._driver.unreserve(pointer, length)
            return True

    def close(self) -> None:
        with self._lock:
            if self._chunk is not None and not self._lengths:
                self._driver.release_chunk(self._chunk)
                self._chunk = None


def _waiting_thread() -> int:
    """Return the thread in which an error of the calling thread can be raised."""
    here = _thread.get_ident()
    frame = sys._getframe()  # noqa: SLF001 - the documented way to one's own frames
    depth = 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    if depth > _OWN_FRAMES + (frame.f_code.co_name == "allocate_again"):  # which calls the other function
        return here
    frames = sys._current_frames()  # noqa: SLF001
    for thread, top in frames.items():
        if thread != here and top.f_code.co_name == "_engine_run_backward":
            return thread
    return threading.main_thread().ident or here


_OWN_FRAMES: Final = 2  # this function's callers: `allocation_failed`, the callback


def _class_that_raises(error: BaseException, out_of_memory: type[Exception]) -> type[BaseException]:
    """Return a class that, raised without arguments, is `error`: asynchronous exceptions are classes."""
    kind = type(error)
    bases: tuple[type, ...] = (kind,)
    if isinstance(error, MemoryError) and isinstance(error, SmartPoolError):
        bases = (kind, out_of_memory)
    arguments, state = error.args, dict(vars(error))

    def initialise(self: Any) -> None:
        BaseException.__init__(self, *arguments)
        vars(self).update(state)

    members: dict[str, Callable[..., None] | str] = {
        "__init__": initialise,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__ or "",
    }
    return type(kind.__name__, bases, members)
