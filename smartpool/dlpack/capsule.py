"""Capsules: what ``__dlpack__`` returns, and what keeps the memory alive behind it.

Problem
    A consumer gets a C structure with a `deleter`, and calls it once, at any time, on any thread,
    with or without the interpreter's lock, perhaps while an exception is on its way, perhaps
    after the interpreter has ended. Then the memory must be released, once; or, after the end,
    nothing may happen at all.

Method
    NumPy is asked to export an array that lies over the memory. The array is one of a private
    subclass with one more slot, `owner`; its base is a window over the whole address space, so
    that making it checks and copies nothing. What NumPy does not know is then written into the
    structure of the new capsule, before anyone has seen it: the device, element types that NumPy
    lacks (an unsigned integer of the same width carries them), the copied flag, a null pointer
    where there are no elements, strides where NumPy leaves them out (before 2.4). The shape, the
    deleter and its context stay NumPy's. The life of an export is so one chain of references:

        consumer -> managed tensor -> array -> owner

    NumPy's deleter is compiled code. It takes the lock, drops the array and frees the structure;
    if the interpreter has ended it does nothing, so the memory stays valid for as long as the
    process lives. NumPy's capsule destructor covers capsules that nobody consumed. There is no
    table of exports, no hook at exit, no lock.

Cost
    O(number of dimensions). `np.from_dlpack` of an export and the drop of its result take 1.1 us,
    against 0.2 for an array of NumPy's own; where the structure must be written to (devices other
    than the host, types that NumPy lacks), about 1 us more (`bench/dlpack.py`).

Rejected
    A deleter and a destructor in Python, through `ctypes` callbacks. Both may run while an
    exception is being raised (the consumer refuses the dtype and drops the capsule; an argument
    already converted is dropped because the next one failed). A callback then starts a Python
    call with the error indicator set: CPython loses the exception, prints a SystemError, and
    crashes (seen with 3.11, 3.12 and 3.13). A callback cannot put the exception aside for its
    caller. It also crashes when it is called after the interpreter has ended, and took three
    times as long (3.4 us).
    ``Py_DecRef`` as the deleter: it needs the lock, which the caller may not hold.
    Overwriting the pointer to the shape: it belongs to the deleter, and early NumPy freed it apart.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from smartpool.dlpack.device import DeviceType, asked_copy, asked_device, asked_major, not_exportable
from smartpool.dlpack.dtype import DType, TypeCode
from smartpool.dlpack.structs import LEGACY_NAME, VERSIONED_NAME, Flags, ManagedTensor, ManagedTensorVersioned
from smartpool.errors import DLPackError, InvalidRequestError

__all__ = ["CopiedMemory", "export", "host_array", "outstanding"]

VERSION: Final = (1, 0)
"""What NumPy is asked for: the version that fixed the layout. Consumers accept later minors too."""

_CPU: Final = int(DeviceType.CPU)
_EXPORTABLE: Final = frozenset(
    {DeviceType.CPU, DeviceType.CUDA, DeviceType.CUDA_HOST, DeviceType.CUDA_MANAGED}
)
_Managed = TypeVar("_Managed", ManagedTensor, ManagedTensorVersioned)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedMemory:
    """Where a copy was put, row-major without gaps: what `make_copy` returns to `export`.

    Attributes
    ----------
    owner
        The object that keeps the copy alive.
    pointer
        Address of its first element.
    """

    owner: object
    pointer: int


class _Export(np.ndarray[Any, Any]):
    """An array over exported memory that keeps its owner alive. One for each export."""

    __slots__ = ("owner", "strides_memory")

    owner: object
    strides_memory: object


def export(
    owner: object,
    *,
    pointer: int,
    shape: tuple[int, ...],
    dtype: DType,
    device: tuple[int, int],
    strides: tuple[int, ...] | None = None,
    read_only: bool = False,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None,
    copy: bool | None = None,
    make_copy: Callable[[tuple[int, int]], CopiedMemory] | None = None,
) -> Any:
    """Return a capsule that hands the memory at `pointer` to a DLPack consumer.

    The caller has ordered the consumer's stream after its own work (`consumer_stream`).

    Parameters
    ----------
    owner
        Any object. It is referenced until the consumer calls the deleter, or the capsule dies
        without a consumer, and from no later moment on; then it is dropped on that thread. After
        the interpreter has ended it is never dropped. An owner must not refer to a consumer of
        its memory: such a cycle passes through C and is not collected.
    pointer
        Address of the first element.
    shape, strides
        In elements. Strides None: row-major without gaps. The caller vouches for the bounds.
    dtype
        The element type.
    device
        Where the memory is: ``(device type, number)``, as DLPack counts.
    read_only
        Sets the read-only flag; the legacy form has none and is refused.
    max_version, dl_device, copy
        As the consumer passed them to ``__dlpack__``. Without a `max_version` of at least (1, 0)
        the legacy form is exported.
    make_copy
        Called with the target device where the consumer asks for a copy, or for another device
        and does not forbid a copy. Without it such consumers are refused.

    Returns
    -------
    PyCapsule
        Named ``"dltensor"`` or ``"dltensor_versioned"``.

    Raises
    ------
    DLPackError
        When the memory cannot be handed over as asked: no copy can be made or a copy is needed
        and forbidden, read-only memory in the legacy form, a device whose memory nobody can read.
    InvalidRequestError
        When pointer, shape or strides do not describe memory, and when what the consumer passed is none of
        what the protocol has: the message names the argument.
    """
    major = 0 if max_version is None else asked_major(max_version)  # 0: it speaks the legacy form
    target = device if dl_device is None else asked_device(dl_device)
    if copy is not None:
        copy = asked_copy(copy)
    if copy or target != device:
        return _export_copy(
            shape=shape,
            dtype=dtype,
            device=device,
            max_version=max_version,
            target=target,
            copy=copy,
            make_copy=make_copy,
        )
    array = _over(owner, pointer, shape, dtype, strides)
    if read_only:
        array.setflags(write=False)
    as_numpy_says = dtype.native and device[0] == _CPU and 0 not in shape and not _STRIDES_MISSING
    if major >= 1:
        capsule = array.__dlpack__(max_version=VERSION)
        if not as_numpy_says:
            versioned = ManagedTensorVersioned.from_address(_pointer_of(capsule, VERSIONED_NAME))
            if dtype.code > TypeCode.BOOL:
                versioned.minor = max(versioned.minor, 1)
            _correct(versioned, array, dtype, device)
        return capsule
    if read_only:
        raise DLPackError(
            "expected a consumer that knows read-only memory, got one that speaks only the legacy DLPack; "
            "pass max_version=(1, 0) or later, or a writable buffer"
        )
    capsule = array.__dlpack__()
    if not as_numpy_says:
        _correct(ManagedTensor.from_address(_pointer_of(capsule, LEGACY_NAME)), array, dtype, device)
    return capsule


def host_array(
    owner: object,
    *,
    pointer: int,
    shape: tuple[int, ...],
    dtype: DType,
    strides: tuple[int, ...] | None = None,
    read_only: bool = False,
) -> np.ndarray[Any, Any]:
    """Return a NumPy array over host memory at `pointer`, which keeps `owner` alive.

    ``memoryview`` of it is the buffer protocol. Arguments are those of `export`; types that NumPy
    lacks are refused.

    Raises
    ------
    InvalidRequestError
        For types that NumPy lacks, and when pointer, shape or strides do not describe memory.
    """
    if not dtype.native:
        raise InvalidRequestError(
            f"expected a dtype that NumPy has, got {dtype.name}; use {dtype.carrier.name} to see the bits"
        )
    array = _over(owner, pointer, shape, dtype, strides).view(np.ndarray)
    if read_only:
        array.setflags(write=False)
    return array


def outstanding() -> int:
    """Return how many exports and host arrays are alive in the process.

    For tests and diagnosis: it looks at every object that the garbage collector knows, so that
    an export need not be counted when it is made.
    """
    return sum(type(candidate) is _Export for candidate in gc.get_objects())


# ------------------------------------------------------------------ making capsules


def _over(
    owner: object, pointer: int, shape: tuple[int, ...], dtype: DType, strides: tuple[int, ...] | None, /
) -> _Export:
    """Return an array over any address, of `dtype` or its carrier."""
    carrier = dtype.carrier
    byte_strides = None if strides is None else [stride * carrier.itemsize for stride in strides]
    try:
        if pointer < _WINDOW_START or (shape and min(shape) < 1):
            offset = _offset_without_elements(shape)
        else:
            offset = pointer - _WINDOW_START
        array = _Export(shape, carrier, _WINDOW, offset, byte_strides)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequestError(
            f"expected memory of some shape and strides, got pointer={pointer!r}, shape={shape!r}, "
            f"strides={strides!r}: {error}; use non-negative extents, as many strides, and a real address"
        ) from error
    array.owner = owner
    return array


def _offset_without_elements(shape: tuple[int, ...]) -> int:
    """Return where to put an array without elements; refuse what NumPy takes unseen with a buffer."""
    if min(shape, default=1) < 0:
        raise ValueError("an extent is negative")
    if 0 not in shape:
        raise ValueError("nothing is mapped in the first page")
    return 0  # the address may be anything, and is written as null


def _correct(managed: _Managed, array: _Export, dtype: DType, device: tuple[int, int]) -> None:
    """Write what NumPy does not know into a structure that nobody has seen yet."""
    if device[0] not in _EXPORTABLE:
        raise not_exportable(device[0])
    managed.device_type, managed.device_id = device
    if not dtype.native:
        managed.type_code = dtype.code
        managed.type_bits = dtype.bits
        managed.type_lanes = dtype.lanes
    if not array.size:
        managed.data = None
    if not managed.strides and array.ndim:
        itemsize = array.itemsize
        memory = (ctypes.c_int64 * array.ndim)(*(stride // itemsize for stride in array.strides))
        array.strides_memory = memory
        managed.strides = ctypes.addressof(memory)


def _export_copy(
    *,
    shape: tuple[int, ...],
    dtype: DType,
    device: tuple[int, int],
    max_version: tuple[int, int] | None,
    target: tuple[int, int],
    copy: bool | None,
    make_copy: Callable[[tuple[int, int]], CopiedMemory] | None,
) -> Any:
    """Export a copy on the device that the consumer asked for, or say why there is none."""
    if copy is False:
        raise DLPackError(
            f"expected dl_device={device}, where the memory is, got {target} with copy=False; "
            "leave copy out to get a copy on that device"
        )
    if device[0] not in _EXPORTABLE:
        raise not_exportable(device[0])
    if make_copy is None:
        raise DLPackError(
            f"expected dl_device={device} and no copy, got dl_device={target}, copy={copy}; "
            "this memory cannot copy itself: copy the consumer's view"
        )
    copied = make_copy(target)
    capsule = export(
        copied.owner, pointer=copied.pointer, shape=shape, dtype=dtype, device=target, max_version=max_version
    )
    if max_version is not None and max_version[0] >= 1:
        ManagedTensorVersioned.from_address(_pointer_of(capsule, VERSIONED_NAME)).flags |= Flags.IS_COPIED
    return capsule


# ------------------------------------------------------------------ what NumPy gives us

# A prototype of our own: setting argtypes on ctypes.pythonapi's would change it for everybody.
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# All addresses that a program can hold, as one buffer to cut arrays from; nothing is ever read
# through it. It starts at the second page, because NumPy takes a buffer at address 0 for none.
_WINDOW_START: Final = 4096
_WINDOW: Final = (ctypes.c_char * (2 ** (8 * ctypes.sizeof(ctypes.c_void_p) - 2))).from_address(_WINDOW_START)


def _strides_missing() -> bool:
    """Return whether this NumPy leaves the strides of row-major arrays out, as DLPack allowed before 1.2."""
    try:
        capsule = np.zeros((2, 2)).__dlpack__(max_version=VERSION)
    except TypeError as error:
        raise ImportError(
            f"expected NumPy 2.2 or later, which exports DLPack 1.0, got {np.__version__}; upgrade numpy"
        ) from error
    return not ManagedTensorVersioned.from_address(_pointer_of(capsule, VERSIONED_NAME)).strides


_STRIDES_MISSING: Final = _strides_missing()
