"""`SmartPool`: the pool that users hold, on one device or on several.

The everyday face (`empty`, `allocate`) and the runtime author's face (`malloc`, `free`) are here.
The face of the original design, what a pool tells of itself, and its life are `smartpool.faces`.
All stand on the same managers, one a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from smartpool.buffer import Buffer, byte_count, checked_shape
from smartpool.config import SmartPoolConfig
from smartpool.dlpack import DType
from smartpool.driver import open_driver
from smartpool.errors import ConfigurationError, DeviceNotFoundError
from smartpool.faces.graphs import GraphFace
from smartpool.faces.requests import AllocationResult, RequestFace
from smartpool.faces.sharing import SharingFace
from smartpool.faces.watching import WatchingFace
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.request import AllocationRequest

if TYPE_CHECKING:
    from smartpool.optimizer import GPUMemoryOptimizer

__all__ = ["AllocationResult", "SmartPool"]


_new = object.__new__


class SmartPool(RequestFace, WatchingFace, SharingFace, GraphFace):
    """A memory pool on one or several devices. Thread-safe.

    Parameters
    ----------
    device
        A device name (``"cuda:0"``, ``"cpu"``, ``"model:80GiB"``), a sequence of names, or a
        `GPUMemoryOptimizer`, which says on which devices. The first is where requests go that name none of
        the faces' device arguments.
    config
        How the pool behaves; None for the optimizer's own configuration, or the defaults.

    Raises
    ------
    DeviceNotFoundError, DriverNotInstalledError
        When a device is not there. Nothing else is used in its place.
    ConfigurationError
        When a configuration value is wrong.

    Examples
    --------
    >>> import smartpool
    >>> with smartpool.SmartPool("model:1GiB") as pool:
    ...     pointer = pool.malloc(1000)
    ...     pool.free(pointer)
    ...     pool
    <SmartPool on model:1GiB: 0 B live, 2 MiB reserved>
    """

    def __init__(
        self,
        device: str | list[str] | tuple[str, ...] | GPUMemoryOptimizer = "cuda:0",
        config: SmartPoolConfig | None = None,
    ) -> None:
        if config is not None and not isinstance(config, SmartPoolConfig):
            raise ConfigurationError("config", f"expected a SmartPoolConfig, got {config!r}")
        names = _device_names(device)
        config = config or getattr(device, "pool_config", None) or SmartPoolConfig()
        super().__init__(_open_managers(names, config), config)
        self._malloc: Callable[..., int] = self._manager.malloc
        self._bins, self._live = self._manager.quick_path
        if len(self.managers) == 1:
            # The same methods, one call nearer: a third of the time of a cached request.
            self.malloc = self._manager.malloc  # type: ignore[method-assign]
            self.free = self._manager.free  # type: ignore[method-assign]
        if config.record:
            self.start_recording()
        if config.enable_auto_defragmentation:
            self._start_background()

    # ------------------------------------------------------------------ buffers

    def allocate(self, nbytes: int, stream: object = None) -> Buffer:
        """Return a buffer of `nbytes` bytes on the first device, freed when it dies.

        Parameters
        ----------
        nbytes
            Size in bytes.
        stream
            The stream on which it is first used; None for the default stream.

        Raises
        ------
        InvalidSizeError, StreamError, OutOfMemoryError, PoolClosedError
            As `AdvancedMemoryPoolManager.malloc`.
        """
        # `malloc` and `Buffer.__init__` written out: two calls fewer, a third of the time.
        if stream is None and nbytes.__class__ is int:
            try:
                bin_ = self._bins[nbytes]
                pointer = bin_.pop()
            except (KeyError, IndexError):
                pass  # searched outside of the handler: an error there is not about this
            else:
                self._live[pointer] = bin_
                buffer = _new(Buffer)
                buffer.pointer = pointer
                buffer.nbytes = nbytes
                buffer._manager = self._manager  # noqa: SLF001
                return buffer
        return Buffer(self._manager, self._malloc(nbytes, stream), nbytes)

    def empty(
        self,
        shape: object,
        dtype: object = "float32",
        *,
        stream: object = None,
        device_id: int | None = None,
        alignment: int | None = None,
    ) -> Buffer:
        """Return a buffer for an array of `shape` and `dtype`, row-major, with arbitrary contents.

        Parameters
        ----------
        shape
            An integer or a sequence of integers.
        dtype
            Anything that `smartpool.dlpack.DType.parse` knows: ``"float16"``, ``"bfloat16"``,
            ``numpy.float32``, ``torch.float8_e4m3fn``, ``complex``.
        stream
            The stream on which it is first used; None for the default stream.
        device_id
            Number of the device in this pool; None for the first.
        alignment
            A power of two in bytes, beyond the 512 that every buffer has.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("cpu") as pool:
        ...     buffer = pool.empty((4, 2), "bfloat16")
        ...     buffer.shape, buffer.nbytes
        ((4, 2), 16)
        """
        shape = checked_shape(shape)
        parsed = DType.parse(dtype)
        nbytes = byte_count(shape, parsed)
        manager = self._manager if device_id is None else self._manager_of(device_id)
        if alignment is None:
            pointer = manager.malloc(nbytes, stream)
        else:
            request = AllocationRequest(size=nbytes, alignment=alignment)
            pointer = manager.malloc_aligned(nbytes, request.alignment or 1, stream)
        buffer = Buffer(manager, pointer, nbytes)
        buffer._shape = shape  # noqa: SLF001 - unset unless needed, so that `allocate` does not pay for them
        buffer._dtype = parsed  # noqa: SLF001
        return buffer

    # ------------------------------------------------------------------ bare memory

    def malloc(self, nbytes: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes on the first device: `AdvancedMemoryPoolManager.malloc`."""
        return self._manager.malloc(nbytes, stream)

    def free(self, pointer: int, stream: object = None) -> None:
        """Free what `malloc` returned, on whichever device it is: `AdvancedMemoryPoolManager.free`."""
        for manager in self.managers[1:]:
            if manager.owns(pointer):
                manager.free(pointer, stream)
                return
        self._manager.free(pointer, stream)


def _device_names(device: object) -> tuple[str, ...]:
    """Return the names of the devices that `device` stands for."""
    if isinstance(device, str):
        return (device,)
    names = getattr(device, "device_names", device)
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise DeviceNotFoundError(
        f"expected a device name, a sequence of names or a GPUMemoryOptimizer, got {device!r}; "
        "use 'cuda:0', 'cpu' or 'model:80GiB'"
    )


def _open_managers(names: tuple[str, ...], config: SmartPoolConfig) -> tuple[AdvancedMemoryPoolManager, ...]:
    """Open every device, or none."""
    managers: list[AdvancedMemoryPoolManager] = []
    try:
        managers.extend(AdvancedMemoryPoolManager(open_driver(name), config) for name in names)
        options = config.debug_options()
        if options is not None:
            from smartpool.pool.debug.debugging import DebuggingManager  # noqa: PLC0415 - only for those who debug

            # In front of each pool, with the same methods: see there.
            return tuple(cast("Any", DebuggingManager(manager, options)) for manager in managers)
    except BaseException:
        for manager in managers:
            manager.close()
        raise
    return tuple(managers)
