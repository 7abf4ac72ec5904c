"""`GPUMemoryOptimizer`: devices under one configuration, the pool over them, and their streams."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Final, Self

from smartpool.config import SmartPoolConfig, unknown_setting
from smartpool.copying import not_copied
from smartpool.driver.protocol import Driver
from smartpool.errors import ConfigurationError, DeviceNotFoundError, PoolClosedError
from smartpool.forks import ModuleLock
from smartpool.pool_set import checked_devices
from smartpool.smart_pool import SmartPool
from smartpool.streams import DEFAULT_STREAMS, StreamSet
from smartpool.values import as_integer

__all__ = ["GPUMemoryOptimizer", "integrate_smartpool_with_gpu_optimizer"]

_POOL_FIELDS: Final = frozenset(field.name for field in fields(SmartPoolConfig))
_making: Final = ModuleLock()
_OWN_FIELDS: Final = frozenset({"enable_smart_pool", "device_ids", "devices", "streams_per_device"})


class GPUMemoryOptimizer:
    """Devices under one configuration.

    Parameters
    ----------
    config
        A mapping. ``enable_smart_pool`` (default True): whether `pool` makes the pool by itself; the devices,
        as ``device_ids`` (CUDA numbers; default ``[0]``) or as ``devices`` (names such as ``["cpu"]``, or
        drivers); ``streams_per_device`` (default 8); and any field of `SmartPoolConfig` for the pool.

    Attributes
    ----------
    devices
        The devices: names, and drivers of your own.
    pool_config
        The `SmartPoolConfig` for the pool.
    smart_pool
        The pool once it was made; None before.

    Raises
    ------
    ConfigurationError
        When a key is unknown or a value is wrong; it names the key.

    Examples
    --------
    >>> optimizer = GPUMemoryOptimizer({"devices": ["model:1GiB"], "fragmentation_threshold": 0.2})
    >>> optimizer.device_names, optimizer.pool_config.fragmentation_threshold
    (('model:1GiB',), 0.2)
    >>> with optimizer.streams().borrow() as stream:
    ...     buffer = optimizer.pool.allocate(1000, stream)
    >>> optimizer.close()
    """

    def __init__(self, config: Mapping[str, object] | None = None) -> None:
        if config is not None and not isinstance(config, Mapping):
            raise ConfigurationError("config", f"expected a mapping of settings, or None, got {config!r}")
        settings = dict(config or {})
        enabled = settings.pop("enable_smart_pool", True)
        if not isinstance(enabled, bool):
            raise ConfigurationError("enable_smart_pool", f"expected True or False, got {enabled!r}")
        self.enable_smart_pool = enabled
        self.devices = _devices(settings)
        self.streams_per_device = StreamSet.checked_size(settings.pop("streams_per_device", DEFAULT_STREAMS))
        unknown = settings.keys() - _POOL_FIELDS
        if unknown:
            raise unknown_setting(min(unknown, key=str), _POOL_FIELDS | _OWN_FIELDS)
        self.pool_config = SmartPoolConfig.from_mapping(settings)
        self.smart_pool: SmartPool | None = None
        self._streams: dict[int, StreamSet] = {}
        self._closed = False

    __reduce_ex__ = not_copied

    def __repr__(self) -> str:
        pool = "no pool yet" if self.smart_pool is None else repr(self.smart_pool)
        return f"<GPUMemoryOptimizer on {', '.join(self.device_names)}: {pool}>"

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def device_names(self) -> tuple[str, ...]:
        """The names of the devices."""
        return tuple(device if isinstance(device, str) else device.name for device in self.devices)

    @property
    def pool(self) -> SmartPool:
        """The pool over the devices, made when it is first asked for.

        Raises
        ------
        ConfigurationError
            When ``enable_smart_pool`` is False and nobody called `integrate_smartpool_with_gpu_optimizer`.
        """
        if self.smart_pool is None and not self.enable_smart_pool:
            raise ConfigurationError(
                "enable_smart_pool",
                "expected True for a pool that comes by itself, got False; call "
                "integrate_smartpool_with_gpu_optimizer(optimizer) to make it",
            )
        return integrate_smartpool_with_gpu_optimizer(self)

    def close(self) -> None:
        """Destroy the streams, and close the pool. Idempotent; live memory stays valid."""
        with _making.lock:
            self._closed = True
        with ExitStack() as all_of_it:
            if self.smart_pool is not None:
                all_of_it.callback(self.smart_pool.close)
            for streams in list(self._streams.values()):
                all_of_it.callback(streams.close)

    def streams(self, device_id: int = 0) -> StreamSet:
        """Return the streams of a device, by its number among the optimizer's devices.

        At most ``streams_per_device``, each made when it is first needed: ``next()`` hands them out in
        turn, ``borrow()`` lends one for a ``with`` block.

        Raises
        ------
        DeviceNotFoundError
            When there is no device of that number.
        PoolClosedError
            When the optimizer was closed.
        """
        number = self.pool._pools.number_of(device_id)  # noqa: SLF001 - it says what is wrong with a number
        with _making.lock:
            self._require_open()
            streams = StreamSet(self.pool.managers[number].driver, self.streams_per_device)
            return self._streams.setdefault(number, streams)

    def _require_open(self) -> None:
        if self._closed:
            raise PoolClosedError(f"expected an open optimizer, {self!r} was closed; make another")


def integrate_smartpool_with_gpu_optimizer(optimizer: GPUMemoryOptimizer) -> SmartPool:
    """Return the pool over the optimizer's devices; made on the first call, the same afterwards.

    Also when ``enable_smart_pool`` is False: then nothing else makes it. Thread-safe.

    Raises
    ------
    DeviceNotFoundError, DriverNotInstalledError
        When a device is not there. Nothing else is used in its place.
    PoolClosedError
        When the optimizer was closed before it had a pool.
    """
    if not isinstance(optimizer, GPUMemoryOptimizer):
        raise ConfigurationError("optimizer", f"expected a GPUMemoryOptimizer, got {optimizer!r}")
    with _making.lock:
        if optimizer.smart_pool is None:
            optimizer._require_open()  # noqa: SLF001 - of this module
            optimizer.smart_pool = SmartPool(optimizer)
        return optimizer.smart_pool


def _devices(settings: dict[str, object]) -> tuple[str | Driver, ...]:
    """Take the devices out of `settings`."""
    devices, numbers = settings.pop("devices", None), settings.pop("device_ids", None)
    if devices is None:
        ordinals = [as_integer(one) for one in (numbers if isinstance(numbers, list | tuple) else ())]
        if numbers is not None and (not ordinals or any(one is None or one < 0 for one in ordinals)):
            raise ConfigurationError(
                "device_ids", f"expected CUDA device numbers such as [0, 1], got {numbers!r}"
            )
        return tuple(f"cuda:{ordinal}" for ordinal in ordinals or [0])
    if numbers is not None:
        raise ConfigurationError("devices", "expected either devices or device_ids, got both")
    try:
        return checked_devices(devices if isinstance(devices, list | tuple) else ())
    except DeviceNotFoundError:
        raise ConfigurationError(
            "devices", f"expected names such as ['cpu'] or ['cuda:0'], or drivers, got {devices!r}"
        ) from None
