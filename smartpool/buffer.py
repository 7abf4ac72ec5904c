"""What the user holds: a piece of device memory with a shape and a type, freed when it dies.

A `Buffer` owns its block alone until it is exported. The first export hands the block to an
`Owner` that the buffer and every consumer share, so that the block is freed when the last of them
is gone, whichever that is and on whichever thread; a buffer that is never exported pays nothing
for that.

Who frees. As long as the block is the buffer's alone, `_pointer` is set, and `del self._pointer` is the
step that decides: it succeeds once, whatever other threads, signal handlers and destructors do. Before it
the buffer is live; behind it the buffer is released, or the block is the owner's. What belongs to the step
stands on its line: CPython looks for signals and other threads when a function begins, behind calls and
where loops go back, so nothing comes in between. An interrupt may lose a block, and never lets one be
freed twice.

Destructors never raise. When a free fails there (the device is lost, say), the block stays taken
and the failure is reported through `sys.unraisablehook`.
"""

from __future__ import annotations

import sys
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from smartpool.dlpack import (
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
    DriverError,
    InvalidRequestError,
    UnsupportedError,
)
from smartpool.owner import Owner, copied

if TYPE_CHECKING:
    from collections.abc import Callable

    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["Buffer"]

_BYTES = DType.parse("uint8")


class Buffer:
    """Memory of a pool. Made by `SmartPool.allocate` and `SmartPool.empty`; freed when it dies.

    Attributes
    ----------
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

    __slots__ = ("__weakref__", "_dtype", "_manager", "_owner", "_pointer", "_read_only", "_shape", "nbytes")

    nbytes: int
    _pointer: int  # set while the block is the buffer's alone
    _manager: AdvancedMemoryPoolManager | None  # whom to give it back to then
    _owner: Owner  # the following are unset until they are needed
    _shape: tuple[int, ...]
    _dtype: DType
    _read_only: bool

    def __init__(self, manager: AdvancedMemoryPoolManager, pointer: int, nbytes: int) -> None:
        self._pointer = pointer
        self.nbytes = nbytes
        self._manager = manager

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        try:
            manager = self._manager
        except AttributeError:  # it was never made in full
            return
        if manager is not None and not finalizing():  # then modules are empty
            self._manager = None  # other destructors of its cycle may still use the buffer
            manager.drop(self._pointer)

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
    def pointer(self) -> int:
        """Address of the first byte; `BufferReleasedError` once the buffer is released."""
        try:
            return self._pointer
        except AttributeError:
            return self._held_owner().pointer

    ptr = pointer
    """The same, as CuPy and RMM call it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements in each dimension; the layout is row-major without gaps."""
        shape = getattr(self, "_shape", None)
        return (self.nbytes,) if shape is None else shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element; `InvalidRequestError` for types below one byte."""
        return self.dtype.itemsize

    @property
    def dtype(self) -> DType:
        """The element type; ``uint8`` unless `SmartPool.empty` was told another."""
        return getattr(self, "_dtype", _BYTES)

    @property
    def __numpy_dtype__(self) -> object:
        """NumPy's protocol, since 2.4: what ``numpy.result_type(buffer)`` asks for."""
        return self.dtype.dtype

    @property
    def device(self) -> str:
        """The name of the device, such as ``"cuda:0"``."""
        return self._pool().driver.name

    @property
    def stream(self) -> int:
        """The driver's handle of the stream that it was requested for."""
        return self._pool().stream_of(self.pointer)

    @property
    def read_only(self) -> bool:
        """Whether consumers are told not to write."""
        return getattr(self, "_read_only", False)

    @property
    def released(self) -> bool:
        """Whether `free` was called."""
        return self._manager is None and self._common_owner() is None

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
        manager = self._manager
        if manager is None:
            self._leave(stream)
            return
        handle = None if stream is None else manager.driver.stream(stream)  # says what is wrong with it
        try:
            pointer = self._pointer
            # Who comes past this line frees the block, and nobody else does.
            del self._pointer; self._manager = None  # fmt: skip # noqa: E702
        except AttributeError:  # freed or exported meanwhile
            self.free(handle)
            return
        try:
            manager.free(pointer, handle)
        except DriverError:  # refused: nothing was done
            self._pointer = pointer
            self._manager = manager
            raise

    def _leave(self, stream: object) -> None:
        """Let go of a block that consumers hold, too."""
        owner = self._held_owner()
        if stream is not None:
            owner.manager.record_stream(owner.pointer, stream)
        try:
            del self._owner
        except AttributeError:  # freed meanwhile
            raise _released() from None

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
        owner = self._shared()
        manager, pointer = owner.manager, owner.pointer
        device = manager.driver.dl_device
        consumer = consumer_stream(device[0], stream)
        if consumer is not None:
            manager.order_after(pointer, consumer)
        return export(
            owner,
            pointer=pointer,
            shape=self.shape,
            dtype=self.dtype,
            device=device,
            read_only=self.read_only,
            max_version=max_version,
            dl_device=dl_device,
            copy=copy,
            make_copy=partial(copied, owner, self.nbytes, consumer),
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
                raise InvalidRequestError(  # a ValueError, which is what NumPy's protocol asks for
                    f"copy: expected True or None for a dtype other than {self.dtype}, got False for {dtype}"
                )
            return array.astype(dtype)
        return array.copy() if copy else array

    def __buffer__(self, flags: int) -> memoryview:
        """Python's buffer protocol, on `cpu`, from Python 3.12 on; before that see `memoryview`."""
        return memoryview(self._host_array())

    def memoryview(self) -> memoryview:
        """Return a `memoryview` of the memory, on `cpu`. It keeps the memory alive."""
        return memoryview(self._host_array())

    def _host_array(self) -> Any:
        owner = self._shared()
        driver = owner.manager.driver
        if driver.dl_device[0] != DeviceType.CPU:
            raise DLPackError(
                f"expected memory on the host, got memory of {driver.name}; "
                "read it through a framework of that device: from_dlpack(buffer)"
            )
        return host_array(
            owner, pointer=owner.pointer, shape=self.shape, dtype=self.dtype, read_only=self.read_only
        )

    # ------------------------------------------------------------------ whose block it is

    def _shared(self) -> Owner:
        """Return the owner that consumers keep; the first call hands the block over to it."""
        owner = self._common_owner()
        if owner is not None:
            owner.manager.require_awake(owner.pointer)
            return owner
        manager, pointer = self._pool(), self.pointer
        manager.require_awake(pointer)
        made = Owner(manager, pointer)
        try:
            del self._pointer; self._manager = None; self._owner = made; made.holds = True  # fmt: skip # noqa: E702
        except AttributeError:  # freed or exported meanwhile
            return self._held_owner()
        return made

    def _common_owner(self) -> Owner | None:
        """Return the owner of a block that was exported; None before, and once the buffer is released."""
        owner = getattr(self, "_owner", None)
        return owner if owner is not None and owner.holds else None

    def _held_owner(self) -> Owner:
        owner = self._common_owner()
        if owner is None:
            raise _released()
        return owner

    def _pool(self) -> AdvancedMemoryPoolManager:
        """Return the manager of the memory; `BufferReleasedError` when it was given back."""
        manager = self._manager
        return self._held_owner().manager if manager is None else manager


def _released() -> BufferReleasedError:
    return BufferReleasedError(
        "expected a buffer that is held, this one was freed; use it before, and free it once"
    )
