"""`SmartPool`: the pool that users hold, on one device or on several.

The everyday face (`empty`, `allocate`) and the runtime author's face (`malloc`, `free`) are here.
The face of the original design, what a pool tells of itself, and its life are `smartpool.faces`.
All stand on the same managers, one a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, Protocol, Unpack, cast, runtime_checkable

from smartpool.buffer import Buffer
from smartpool.config import Settings, SmartPoolConfig
from smartpool.dlpack import DType, DTypeLike, byte_count, checked_shape
from smartpool.driver import Driver, open_driver
from smartpool.driver.protocol import Stream, check_driver, looks_like_driver
from smartpool.errors import ConfigurationError, DeviceNotFoundError, DoubleFreeError
from smartpool.faces.graphs import GraphFace
from smartpool.faces.requests import AllocationResult, RequestFace
from smartpool.faces.sharing import SharingFace
from smartpool.faces.watching import WatchingFace
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.request import Shape, checked_size
from smartpool.values import as_integer

__all__ = ["AllocationResult", "SmartPool"]

_new = object.__new__

_NEAR_BITS: Final = 21  # a device often has all addresses that share the rest: it is asked first
_MOST_NEAR: Final = 1 << 16


@runtime_checkable
class HasDevices(Protocol):
    """What says on which devices a pool is to be, and how it is to behave: a `GPUMemoryOptimizer`."""

    devices: tuple[str | Driver, ...]
    pool_config: SmartPoolConfig


class SmartPool(RequestFace, WatchingFace, SharingFace, GraphFace):
    """A memory pool on one or several devices. Thread-safe.

    Parameters
    ----------
    device
        A device name (``"cuda:0"``, ``"cpu"``, ``"model:80GiB"``), a `smartpool.driver.Driver` of your own,
        a sequence of these, or a `GPUMemoryOptimizer`, which says on which devices. Requests that name no
        device go to the first. A driver is the pool's from then on, and closed with it.
    config
        How the pool behaves, as a `SmartPoolConfig` or a mapping of its fields; None for the optimizer's own
        configuration, or the defaults.
    **settings
        Fields of `SmartPoolConfig`, in place of those in `config`.

    Attributes
    ----------
    config
        The `SmartPoolConfig`.
    managers
        The pools of the devices, one each, in order: `AdvancedMemoryPoolManager`.
    hooks
        What may be called when something happens to the memory: `docs/statistics.md`.

    Raises
    ------
    DeviceNotFoundError, DriverNotInstalledError
        When a device is not there. Nothing else is used in its place.
    ConfigurationError
        When a configuration value is wrong, or a driver lacks a member of the protocol.

    Examples
    --------
    >>> import smartpool
    >>> with smartpool.SmartPool("model:1GiB", max_bytes="512MiB") as pool:
    ...     pointer = pool.malloc(1000)
    ...     pool.free(pointer)
    ...     pool
    <SmartPool on model:1GiB: 0 B live, 2 MiB reserved>
    """

    def __init__(
        self,
        device: str | Driver | Sequence[str | Driver] | HasDevices = "cuda:0",
        config: SmartPoolConfig | Mapping[str, object] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        if config is None and isinstance(device, HasDevices):
            config = device.pool_config
        settled = SmartPoolConfig.of(config).changed(settings)
        super().__init__(_open_managers(_devices(device), settled), settled)
        self._malloc: Callable[..., int] = self._manager.malloc
        self._bins, self._live = self._manager.quick_path
        self._near: dict[int, AdvancedMemoryPoolManager] = {}
        # The same methods, one call nearer: a third of the time of a cached request.
        self.malloc = _named("SmartPool.malloc", self._malloc)  # type: ignore[method-assign]
        if len(self.managers) == 1:
            self.free = _named("SmartPool.free", self._manager.free)  # type: ignore[method-assign]
        if settled.record:
            self.start_recording()
        if settled.enable_auto_defragmentation:
            self._start_background()

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    # ------------------------------------------------------------------ buffers

    def allocate(self, nbytes: int, stream: Stream = None) -> Buffer:
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
                try:
                    self._live[pointer] = bin_
                except BaseException:  # as `enter`
                    dict.pop(self._live, pointer, None)
                    bin_.append(pointer)
                    bin_.quiet = False
                    bin_.touched.add(bin_)
                    raise
                buffer = _new(Buffer)
                buffer._pointer = pointer  # noqa: SLF001
                buffer.nbytes = nbytes
                buffer._manager = self._manager  # noqa: SLF001
                return buffer
        nbytes = checked_size(nbytes)  # what is kept is no object of the caller's
        return Buffer(self._manager, self._malloc(nbytes, stream), nbytes)

    def empty(
        self,
        shape: Shape,
        dtype: DTypeLike = "float32",
        *,
        stream: Stream = None,
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
            pointer = manager.malloc_aligned(nbytes, alignment, stream)
        buffer = Buffer(manager, pointer, nbytes)
        buffer._shape = shape  # noqa: SLF001 - unset unless needed, so that `allocate` does not pay for them
        buffer._dtype = parsed  # noqa: SLF001
        return buffer

    # ------------------------------------------------------------------ bare memory

    def malloc(self, nbytes: int, stream: Stream = None) -> int:
        """Return the address of `nbytes` bytes on the first device: `AdvancedMemoryPoolManager.malloc`."""
        return self._malloc(nbytes, stream)

    def free(self, pointer: int, stream: Stream = None) -> None:
        """Free what `malloc` returned, on whichever device it is: `AdvancedMemoryPoolManager.free`. O(1)."""
        if pointer.__class__ is int:
            if pointer in self._live:
                self._manager.free(pointer, stream)
                return
            manager = self._near.get(pointer >> _NEAR_BITS)
            if manager is not None and manager.owns(pointer):
                manager.free(pointer, stream)
                return
        self._owner_of(pointer).free(pointer, stream)

    def _owner_of(self, pointer: int) -> AdvancedMemoryPoolManager:
        """Return the manager that has the block at `pointer`, and remember it for the addresses around it."""
        number = as_integer(pointer)
        if number is None:
            return self._manager  # which says what is wrong
        for manager in self.managers:
            if manager.owns(number):
                if len(self._near) >= _MOST_NEAR:
                    self._near.clear()
                self._near[number >> _NEAR_BITS] = manager
                return manager
        freed = (one for one in self.managers if isinstance(one._bad_pointer(number), DoubleFreeError))  # noqa: SLF001
        return next(freed, self._manager)


def _named(name: str, method: Any) -> Any:
    """Return a bound method under another name, which errors about its arguments then tell."""
    own = method.__func__
    made = FunctionType(own.__code__, own.__globals__, name, own.__defaults__, own.__closure__)
    made.__qualname__, made.__doc__, made.__annotations__ = name, own.__doc__, own.__annotations__
    return MethodType(made, method.__self__)


def _devices(device: object) -> tuple[str | Driver, ...]:
    """Return the names and drivers that `device` stands for."""
    listed = device.devices if isinstance(device, HasDevices) else device
    devices = tuple(listed) if isinstance(listed, list | tuple) else (listed,)
    drivers = [one for one in devices if not isinstance(one, str)]
    if not devices or not all(map(looks_like_driver, drivers)):
        raise DeviceNotFoundError(
            "expected a device name, a smartpool.driver.Driver, a sequence of these or a GPUMemoryOptimizer, "
            f"got {device!r}; use 'cuda:0', 'cpu' or 'model:80GiB'"
        )
    for number, driver in enumerate(drivers):
        check_driver(driver)
        if any(driver is other for other in drivers[:number]):
            raise ConfigurationError(
                "driver", f"expected a driver of its own for each device, got {driver!r} again"
            )
    return cast("tuple[str | Driver, ...]", devices)


def _open_managers(
    devices: tuple[str | Driver, ...], config: SmartPoolConfig
) -> tuple[AdvancedMemoryPoolManager, ...]:
    """Open every device, or none."""
    managers: list[AdvancedMemoryPoolManager] = []
    try:
        options = config.debug_options()
        opened = open_driver if options is None else partial(open_driver, checked=True)
        for device in devices:
            driver = opened(device) if isinstance(device, str) else device
            managers.append(AdvancedMemoryPoolManager(driver, config))
        if options is not None:
            from smartpool.pool.debug.debugging import DebuggingManager  # noqa: PLC0415 - only for those who debug

            # In front of each pool, with the same methods: see there.
            return tuple(cast("Any", DebuggingManager(manager, options)) for manager in managers)
    except BaseException:
        for manager in managers:
            manager.close()
        raise
    return tuple(managers)
