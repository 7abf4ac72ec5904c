"""What the user holds: a piece of device memory with a shape and a type, freed when it dies.

A `Buffer` owns its block alone until it is exported. The first export moves the block into an
`_Owner` that the buffer and every consumer share, so that the block is freed when the last of them
is gone, whichever that is and on whichever thread; a buffer that is never exported pays nothing
for that.

Destructors never raise. When a free fails there (the device is lost, say), the block stays taken
and the failure is reported through `sys.unraisablehook`.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from smartpool.dlpack import (
    CopiedMemory,
    DeviceType,
    DType,
    consumer_stream,
    cuda_array_interface,
    export,
    host_array,
)
from smartpool.errors import (
    BufferReleasedError,
    DLPackError,
    InvalidRequestError,
    InvalidSizeError,
    MemoryCorruptionError,
    UnsupportedError,
)
from smartpool.request import checked_size

if TYPE_CHECKING:
    from smartpool.pool.manager import AdvancedMemoryPoolManager

__all__ = ["Buffer", "byte_count", "checked_shape"]

_BYTES = DType.parse("uint8")
_HOST = (int(DeviceType.CPU), 0)
_hand_over = threading.RLock()


def _after_fork_in_child() -> None:
    """Replace the lock: the thread that held it does not exist here."""
    global _hand_over  # noqa: PLW0603
    _hand_over = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Buffer:
    """Memory of a pool. Made by `SmartPool.allocate` and `SmartPool.empty`; freed when it dies.

    Attributes
    ----------
    pointer
        Address of the first byte.
    nbytes
        Bytes, as requested.

    Examples
    --------
    >>> import numpy, smartpool
    >>> with smartpool.SmartPool("cpu") as pool:
    ...     buffer = pool.empty((2, 3), "float32")
    ...     array = numpy.from_dlpack(buffer)
    ...     array[:] = 7
    ...     del buffer                      # the array keeps the memory
    ...     float(array.sum())
    42.0
    """

    __slots__ = ("__weakref__", "_dtype", "_manager", "_owner", "_read_only", "_shape", "nbytes", "pointer")

    pointer: int
    nbytes: int
    _manager: AdvancedMemoryPoolManager | None  # whom to give the block back to; None: not ours (any more)
    _owner: _Owner | None  # the following are unset until they are needed
    _shape: tuple[int, ...]
    _dtype: DType
    _read_only: bool

    def __init__(self, manager: AdvancedMemoryPoolManager, pointer: int, nbytes: int) -> None:
        self.pointer = pointer
        self.nbytes = nbytes
        self._manager = manager

    def __del__(self) -> None:
        try:
            manager = self._manager
        except AttributeError:  # it was never made in full
            return
        if manager is not None:
            manager.drop(self.pointer)

    def __reduce_ex__(self, protocol: object) -> Any:
        # Also what `copy.copy` asks: a second buffer would free the block a second time.
        raise UnsupportedError(
            "a Buffer owns its memory and cannot be copied or pickled; copy what is in it: "
            "numpy.from_dlpack(buffer, copy=True), or through another consumer"
        )

    def __repr__(self) -> str:
        if self.released:
            return "<Buffer: released>"
        shown = f"{self.nbytes} bytes" if self.dtype is _BYTES else f"{self.shape} {self.dtype}"
        return f"<Buffer: {shown} on {self._pool().driver.name} at {self.pointer:#x}>"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a buffer of no dimensions has no length")
        return self.shape[0]

    # ------------------------------------------------------------------ what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements in each dimension; the layout is row-major without gaps."""
        shape = getattr(self, "_shape", None)
        return (self.nbytes,) if shape is None else shape

    @property
    def dtype(self) -> DType:
        """The element type; ``uint8`` unless `SmartPool.empty` was told another."""
        return getattr(self, "_dtype", _BYTES)

    @property
    def device(self) -> str:
        """The name of the device, such as ``"cuda:0"``."""
        return self._pool().driver.name

    @property
    def read_only(self) -> bool:
        """Whether consumers are told not to write."""
        return getattr(self, "_read_only", False)

    @property
    def released(self) -> bool:
        """Whether `free` was called."""
        return self._manager is None and getattr(self, "_owner", None) is None

    # ------------------------------------------------------------------ life

    def free(self, stream: object = None) -> None:
        """Give the block back now; consumers that still hold it keep it until they are done.

        Parameters
        ----------
        stream
            The stream that used the memory last; None for the one it was requested for.

        Raises
        ------
        BufferReleasedError
            When it was freed already.
        """
        manager, owner = self._manager, getattr(self, "_owner", None)
        if manager is not None:
            try:
                manager.free(self.pointer, stream)
            except MemoryCorruptionError:  # found by debug mode on the way; the block is free
                self._manager = None
                raise
            self._manager = None
        elif owner is not None:
            if stream is not None:
                owner.manager.record_stream(self.pointer, stream)
            self._owner = None
        else:
            raise BufferReleasedError("expected a buffer that is held, this one was freed; free it once")

    def record_stream(self, stream: object) -> None:
        """Say that `stream` uses the memory too: once freed, it is reused only behind that work."""
        self._pool().record_stream(self.pointer, stream)

    def freeze(self) -> Buffer:
        """Make exports from now on read-only, and return the buffer itself."""
        self._read_only = True
        return self

    # ------------------------------------------------------------------ exchange

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._pool().driver.dl_device

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export by the array API standard; see `smartpool.dlpack.export`.

        The consumer's stream is ordered behind the work queued so far on the buffer's own, and the
        memory is later reused only behind the consumer's.
        """
        manager = self._pool()
        device = manager.driver.dl_device
        consumer = consumer_stream(device[0], stream)
        if consumer is not None:
            manager.order_after(self.pointer, consumer)
        return export(
            self._shared(),
            pointer=self.pointer,
            shape=self.shape,
            dtype=self.dtype,
            device=device,
            read_only=self.read_only,
            max_version=max_version,
            dl_device=dl_device,
            copy=copy,
            make_copy=partial(self._copy_for, consumer),
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        manager = self._pool()
        if manager.driver.dl_device[0] != DeviceType.CUDA:
            raise AttributeError(f"__cuda_array_interface__: {manager.driver.name} is not a CUDA device")
        stream = manager.driver.native_stream(manager.stream_of(self.pointer))
        if stream is None:  # it may be gone by now, or has no name for others: the default stream stands in
            manager.order_after(self.pointer, manager.driver.default_stream)
            stream = manager.driver.default_stream
        return cuda_array_interface(
            pointer=self.pointer,
            shape=self.shape,
            dtype=self.dtype,
            read_only=self.read_only,
            stream=stream,
        )

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Any:  # noqa: FBT001 - NumPy's
        """NumPy's protocol, on `cpu`: ``numpy.asarray(buffer)`` shares the memory on every Python."""
        array = self._host_array()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise DLPackError(f"expected dtype {self.dtype} with copy=False, got {dtype}; allow a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __buffer__(self, flags: int) -> memoryview:
        """Python's buffer protocol, on `cpu`, from Python 3.12 on; before that see `memoryview`."""
        return memoryview(self._host_array())

    def memoryview(self) -> memoryview:
        """Return a `memoryview` of the memory, on `cpu`. It keeps the memory alive."""
        return memoryview(self._host_array())

    def _host_array(self) -> Any:
        manager = self._pool()
        if manager.driver.dl_device[0] != DeviceType.CPU:
            raise DLPackError(
                f"expected memory on the host, got memory of {manager.driver.name}; "
                "read it through a framework of that device: from_dlpack(buffer)"
            )
        return host_array(
            self._shared(),
            pointer=self.pointer,
            shape=self.shape,
            dtype=self.dtype,
            read_only=self.read_only,
        )

    def _copy_for(self, consumer: int | None, target: tuple[int, int]) -> CopiedMemory:
        """Copy the contents to `target` for a consumer that works on the stream `consumer`."""
        manager = self._pool()
        driver = manager.driver
        if target == driver.dl_device:
            stream = manager.stream_of(self.pointer)
            copied = Buffer(manager, manager.malloc(self.nbytes, stream), self.nbytes)
            if self.nbytes:
                driver.copy(copied.pointer, self.pointer, self.nbytes, stream)
            if consumer is not None:
                manager.order_after(copied.pointer, consumer)
            return CopiedMemory(owner=copied._shared(), pointer=copied.pointer)
        if target == _HOST:
            data = np.frombuffer(bytearray(driver.read(self.pointer, self.nbytes)), dtype=np.uint8)
            return CopiedMemory(owner=data, pointer=data.ctypes.data)
        raise DLPackError(
            f"expected dl_device={driver.dl_device}, where the memory is, or the host {_HOST}, got {target}; "
            "export here and let the consumer copy"
        )

    # ------------------------------------------------------------------ whose block it is

    def _shared(self) -> _Owner:
        """Return the owner that consumers keep; the first call hands the block over to it."""
        owner = getattr(self, "_owner", None)
        if owner is None:
            made = _Owner(self._pool(), self.pointer)
            # Two threads, or a destructor on this one, may export at once: the block has one owner. No
            # object is made under the lock, so that no destructor runs under it.
            with _hand_over:
                owner = getattr(self, "_owner", None)
                if owner is None and self._manager is not None:
                    self._owner = owner = made
                    self._manager = None
                    made.holds = True
        return self._shared() if owner is None else owner  # None: freed meanwhile, which raises

    def _pool(self) -> AdvancedMemoryPoolManager:
        """Return the manager of the memory; `BufferReleasedError` when it was given back."""
        manager = self._manager
        if manager is None:
            owner = getattr(self, "_owner", None)
            if owner is None:
                raise BufferReleasedError("expected a buffer that is held, this one was freed")
            manager = owner.manager
        return manager


class _Owner:
    """A block that was exported: freed when the last of its holders is gone."""

    __slots__ = ("holds", "manager", "pointer")

    def __init__(self, manager: AdvancedMemoryPoolManager, pointer: int) -> None:
        self.manager = manager
        self.pointer = pointer
        self.holds = False  # until the buffer hands the block over

    def __del__(self) -> None:
        # Consumers may outlive the interpreter: then the process gives all back.
        if self.holds and not sys.is_finalizing():
            self.manager.drop(self.pointer)


def checked_shape(shape: object) -> tuple[int, ...]:
    """Return `shape`, an integer or a sequence of integers of at least 0, as a tuple.

    >>> checked_shape(3), checked_shape([2, 0])
    ((3,), (2, 0))
    """
    try:
        if isinstance(shape, tuple | list):
            return tuple(checked_size(length) for length in shape)
        if hasattr(shape, "__index__"):
            return (checked_size(shape),)
    except InvalidSizeError:  # it speaks of bytes
        raise InvalidSizeError(f"shape: expected lengths of at least 0 as integers, got {shape!r}") from None
    raise InvalidRequestError(f"shape: expected an integer or a sequence of integers, got {shape!r}")


def byte_count(shape: tuple[int, ...], dtype: DType) -> int:
    """Return the bytes that `shape` elements of `dtype` take, packed row-major."""
    return dtype.nbytes(prod(shape))
