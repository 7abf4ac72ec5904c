"""What happens when PyTorch asks for memory and there is none: its own error, and a live process.

Problem: PyTorch's pluggable allocator takes any answer for memory. A null pointer, or addresses without
memory behind them, become a tensor; the next kernel writes there, and the CUDA context is lost for good.
PyTorch's own allocator throws `c10::OutOfMemoryError`, and all of PyTorch is written for that: autograd
carries it to the thread that waits, a convolution tries an algorithm that needs less. But C++ exceptions
must not unwind through frames of Python's.
Method: Python makes the exception while it has the word, with the constructor that libc10 exports, and
answers with the address of the exception plus one: no block has an odd address. The compiled code that
asked (`_torch_front`) sees that and calls ``__cxa_throw``: the frames that are unwound
are its own, for which there are tables, and PyTorch's. No memory is touched, and no kernel is launched.
What is not the request's own failure, Ctrl-C above all, is no reason to fail it: the memory is served, and
the exception is raised where Python goes on, as an asynchronous exception of the thread. When it strikes
in a function of ours before anything could catch it, `ctypes` would drop it, and answer with whatever
lies on its stack. The compiled code makes that a null pointer and asks a second time, and the second
answer raises what was lost.
Bound: 2 us for an error. PyTorch's class replaces ours; the message has both stories.
Rejected: addresses behind which one chunk is mapped over and over, and a Python error raised later (31 us
for each 2 MiB of the request, impossible for terabytes, and kernels run on garbage); a null pointer.
"""

from __future__ import annotations

import _thread
import ctypes
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import SmartPoolError, UnsupportedError
from smartpool.interop._frameworks import keep_for_good
from smartpool.units import GiB, KiB, MiB

if TYPE_CHECKING:
    from smartpool.errors import UnknownPointerError
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["ROOM", "CppErrors", "Rescue", "raise_later"]

_LOGGER = logging.getLogger("smartpool")

_EXABYTE: Final = 1 << 60
ROOM: Final = 1024  # bytes of an exception; PyTorch's need some 150, and the last two words are ours

_TEXT: Final = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"  # std::string, as C++ mangles it
_METHOD: Final = f"_Z{_TEXT[:-1]}"  # how the name of a method of it begins
_ERROR: Final = "N3c105ErrorE"  # c10::Error
_OUT_OF_MEMORY: Final = b"N3c1016OutOfMemoryErrorE"
_DERIVED: Final = "_ZTVN10__cxxabiv120__si_class_type_infoE"  # the class of types with one class below
_HEAD: Final = 2 * ctypes.sizeof(ctypes.c_void_p)  # of a table of virtual functions, before the first one

_set_async_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)
_set_async_exception.restype = ctypes.c_int


class _Place(ctypes.Structure):
    """`c10::SourceLocation`."""

    _fields_ = (("function", ctypes.c_char_p), ("file", ctypes.c_char_p), ("line", ctypes.c_uint32))


class _Type(ctypes.Structure):
    """`std::type_info` of a class with one class below it. C++ compares the names."""

    _fields_ = (("table", ctypes.c_void_p), ("name", ctypes.c_char_p), ("below", ctypes.c_void_p))


class CppErrors:
    """Makes exceptions of PyTorch's C++ side.

    `c10::OutOfMemoryError` adds nothing to `c10::Error` but its name, and releases differ in which of
    their libraries say that it exists, and whether they do. So it is made as a `c10::Error`, and thrown by
    a type of ours of that name, which the clauses that catch it take for their own.

    Parameters
    ----------
    library
        libc10, loaded; through it the C++ runtime is found that it throws with.

    Attributes
    ----------
    throw
        The address of ``__cxa_throw``, which takes an exception, its type and its destructor. The latter
        two lie in the last two words of the exception's `ROOM`.

    Raises
    ------
    UnsupportedError
        When the library does not export what is needed.
    """

    def __init__(self, library: Any) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        try:
            self.throw = _address(library["__cxa_throw"])
            self._allocate = _typed(library["__cxa_allocate_exception"], pointer, size)
            self._begin = _typed(library[f"{_METHOD}C1Ev"], None, pointer)
            self._append = _typed(library[f"{_METHOD}6appendEPKcm"], None, pointer, ctypes.c_char_p, size)
            self._end = _typed(library[f"{_METHOD}D1Ev"], None, pointer)
            made = library[f"_Z{_ERROR[:-1]}C1ENS_14SourceLocationE{_TEXT}"]
            self._construct = _typed(made, None, pointer, _Place, pointer)
            below = _address(library[f"_ZTI{_ERROR}"])
            kind = _Type(_address(library[_DERIVED]) + _HEAD, _OUT_OF_MEMORY, below)
        except AttributeError as error:
            raise UnsupportedError(
                "expected a PyTorch that exports the constructor of its own errors (2.7 or later, for "
                f"Linux): {error}; use smartpool.interop.torch.mem_pool instead"
            ) from error
        keep_for_good(kind)  # exceptions may outlive the interpreter
        self._kinds = {True: ctypes.addressof(kind), False: below}
        self._place = _Place(b"malloc", b"smartpool", 0)

    def make(self, message: str, *, empty: bool) -> int:
        """Return the address of a new `c10::OutOfMemoryError`, or, unless `empty`, of a `c10::Error`."""
        text = message.encode("utf-8", "backslashreplace")
        string = ctypes.create_string_buffer(64)
        self._begin(string)
        self._append(string, text, len(text))
        error: int = self._allocate(ROOM)
        self._construct(error, self._place, string)
        self._end(string)
        functions = ctypes.c_uint64.from_address(error).value
        destructor = ctypes.c_uint64.from_address(functions).value
        ctypes.c_uint64.from_address(error + ROOM - 16).value = self._kinds[empty]
        ctypes.c_uint64.from_address(error + ROOM - 8).value = destructor
        return error


class Rescue:
    """Answers requests that failed.

    Parameters
    ----------
    managers
        The pool's managers by device number.
    errors
        Makes what PyTorch throws.

    Attributes
    ----------
    failures
        How many requests found no memory.
    lost
        By the thread of a request: in which thread to raise what struck in a function of ours.
    armed
        A list of one: how many exceptions were sent on their way.
    raise_in
        Raises a class in a thread: `PyThreadState_SetAsyncExc`.
    """

    def __init__(self, managers: dict[int, AdvancedMemoryPoolManager], errors: CppErrors) -> None:
        self._managers = managers
        self._errors = errors
        self.lost: dict[int, tuple[int, type[BaseException]]] = {}
        self.armed = [0]
        self.raise_in = _set_async_exception
        self.failures = 0

    def allocation_failed(self, error: BaseException, size: int, device: int, stream: int | None) -> int:
        """Return what to answer a request that raised `error`: memory, or an exception to be thrown."""
        if isinstance(error, (SmartPoolError, MemoryError)):
            return self._thrown(error, size, device)
        try:  # not the request's fault: Ctrl-C, a signal's handler, a callback of the program's
            pointer = self._managers[device].malloc(size, stream)
        except BaseException as again:  # noqa: BLE001 - PyTorch must get an answer
            pointer = self._thrown(again, size, device)
            if isinstance(error, Exception):
                return pointer
        self.armed[0] += 1
        arguments = (_thread.get_ident(),), (_class_that_raises(error),)
        [*map(_set_async_exception, *arguments)]  # see `raise_later`; and there is no step more
        return pointer

    def watch(self, functions: tuple[Callable[..., Any], ...]) -> None:
        """Keep what strikes in `functions`, which `ctypes` calls, and would be dropped there."""
        lost, before, here = self.lost, sys.unraisablehook, _thread.get_ident
        codes = {function.__code__ for function in functions}

        def hook(unraisable: Any) -> None:
            trace = unraisable.exc_traceback  # from 3.13 on the function itself is named in a text only
            if trace is not None and trace.tb_frame.f_code in codes:
                lost[here()] = here(), unraisable.exc_type
            else:
                before(unraisable)

        sys.unraisablehook = hook

    def free_failed(self, error: UnknownPointerError) -> None:
        """Log that PyTorch freed what the pool does not know.

        It comes up late, and in the middle of someone else's request, who must not pay for it.
        """
        _LOGGER.error("PyTorch freed what is not the pool's: %s", error)

    def _told(self, error: BaseException, size: int, device: int) -> str:
        """Return what PyTorch would say, word by word, and then what the pool does."""
        size_told = _in_words(size) if size < _EXABYTE else "more than 1EB memory"
        capacity = ""
        with suppress(SmartPoolError, KeyError):
            info = self._managers[device].driver.memory_info()
            capacity = (
                f" GPU {device} has a total capacity of {_in_words(info.total)} of which "
                f"{_in_words(info.free)} is free."
            )
        story = str(error).removeprefix("CUDA out of memory. ")
        return f"CUDA out of memory. Tried to allocate {size_told}.{capacity} {story}"

    def _thrown(self, error: BaseException, size: int, device: int) -> int:
        empty = isinstance(error, MemoryError)
        if empty:
            self.failures += 1
            message = self._told(error, size, device)
        else:
            message = f"{type(error).__name__}: {error}"
        return self._errors.make(message, empty=empty) + 1


def raise_later(error: BaseException) -> None:
    """Raise `error` in this thread, at the first instruction of Python behind the C code that called.

    The caller must return at once, without a call or a loop.
    """
    arguments = (_thread.get_ident(),), (_class_that_raises(error),)
    # The list is extended in C. A plain call would let the interpreter look for asynchronous exceptions
    # right after it, and it would find this one here instead of in the caller.
    [*map(_set_async_exception, *arguments)]


def _typed(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function


def _address(symbol: Any) -> int:
    address = ctypes.cast(symbol, ctypes.c_void_p).value
    assert address is not None
    return address


def _in_words(size: int) -> str:
    """Return a size as PyTorch's messages have it.

    >>> _in_words(2 << 30), _in_words(2500), _in_words(17)
    ('2.00 GiB', '2.44 KiB', '17 bytes')
    """
    for name, unit in (("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"


def _class_that_raises(error: BaseException) -> type[BaseException]:
    """Return a class that, raised without arguments, is `error`: asynchronous exceptions are classes."""
    kind = type(error)
    arguments, state = error.args, dict(vars(error))

    def initialise(self: Any) -> None:
        BaseException.__init__(self, *arguments)
        vars(self).update(state)

    members: dict[str, Callable[..., None] | str] = {
        "__init__": initialise,
        "__module__": kind.__module__,
        "__doc__": kind.__doc__ or "",
    }
    return type(kind.__name__, (kind,), members)
