"""`GPUMemoryOptimizer`: devices under one configuration, the pool over them, and their streams."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Final, Self

from smartpool.config import SmartPoolConfig, unknown_setting
from smartpool.driver.protocol import Driver
from smartpool.errors import ConfigurationError, DeviceNotFoundError
from smartpool.smart_pool import SmartPool
from smartpool.streams import DEFAULT_STREAMS, StreamSet

__all__ = ["GPUMemoryOptimizer", "integrate_smartpool_with_gpu_optimizer"]

_POOL_FIELDS: Final = frozenset(field.name for field in fields(SmartPoolConfig))
_OWN_FIELDS: Final = frozenset({"enable_smart_pool", "device_ids", "devices", "streams_per_device"})


class GPUMemoryOptimizer:
    """Devices under one configuration.

    Parameters
    ----------
    config
        A mapping. ``enable_smart_pool`` (default True); the devices, as ``device_ids`` (CUDA
        numbers; default ``[0]``) or as ``devices`` (names such as ``["cpu"]``); ``streams_per_device``
        (default 8); and any field of `SmartPoolConfig` for the pools.

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
        self.device_names = _device_names(settings)
        self.streams_per_device = StreamSet.checked_size(settings.pop("streams_per_device", DEFAULT_STREAMS))
        unknown = settings.keys() - _POOL_FIELDS
        if unknown:
            raise unknown_setting(min(unknown, key=str), _POOL_FIELDS | _OWN_FIELDS)
        self.pool_config = SmartPoolConfig.from_mapping(settings)
        self.smart_pool: SmartPool | None = None
        self._streams: dict[int, StreamSet] = {}

    def __repr__(self) -> str:
        return f"<GPUMemoryOptimizer on {', '.join(self.device_names)}: pool {self.smart_pool!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pool(self) -> SmartPool:
        """The pool over the devices: `integrate_smartpool_with_gpu_optimizer`."""
        return integrate_smartpool_with_gpu_optimizer(self)

    def close(self) -> None:
        """Destroy the streams, and close the pool. Idempotent; live memory stays valid."""
        with ExitStack() as all_of_it:
            if self.smart_pool is not None:
                all_of_it.callback(self.smart_pool.close)
            for streams in list(self._streams.values()):
                all_of_it.callback(streams.close)

    # ------------------------------------------------------------------ streams

    def streams(self, device_id: int = 0) -> StreamSet:
        """Return the streams of a device, by its number among the optimizer's devices.

        At most ``streams_per_device``, each made when it is first needed: ``next()`` hands them out in
        turn, ``borrow()`` lends one for a ``with`` block.

        Raises
        ------
        DeviceNotFoundError
            When there is no device of that number.
        """
        driver = self._driver(device_id)
        return self._streams.setdefault(device_id, StreamSet(driver, self.streams_per_device))

    def _driver(self, device_id: int) -> Driver:
        managers = self.pool.managers
        if type(device_id) is not int or not 0 <= device_id < len(managers):
            raise DeviceNotFoundError(
                f"expected a device_id from 0 to {len(managers) - 1}, the optimizer's devices, "
                f"got {device_id!r}"
            )
        return managers[device_id].driver


def integrate_smartpool_with_gpu_optimizer(optimizer: GPUMemoryOptimizer) -> SmartPool:
    """Return the pool over the optimizer's devices; made on the first call, the same afterwards.

    Raises
    ------
    ConfigurationError
        When the optimizer was configured with ``enable_smart_pool=False``.
    DeviceNotFoundError, DriverNotInstalledError
        When a device is not there. Nothing else is used in its place.
    """
    if not isinstance(optimizer, GPUMemoryOptimizer):
        raise ConfigurationError("optimizer", f"expected a GPUMemoryOptimizer, got {optimizer!r}")
    if not optimizer.enable_smart_pool:
        raise ConfigurationError("enable_smart_pool", "expected True, got False; enable it to have a pool")
    if optimizer.smart_pool is None:
        optimizer.smart_pool = SmartPool(optimizer)
    return optimizer.smart_pool


def _device_names(settings: dict[str, object]) -> tuple[str, ...]:
    """Take the devices out of `settings`."""
    names, numbers = settings.pop("devices", None), settings.pop("device_ids", None)
    if names is not None and numbers is not None:
        raise ConfigurationError("devices", "expected either devices or device_ids, got both")
    if names is not None:
        if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
            raise ConfigurationError(
                "devices", f"expected names such as ['cpu'] or ['cuda:0'], got {names!r}"
            )
        return tuple(names)
    if numbers is None:
        return ("cuda:0",)
    good = isinstance(numbers, list | tuple) and all(
        type(number) is int and number >= 0 for number in numbers
    )
    if not good or not numbers:
        raise ConfigurationError(
            "device_ids", f"expected CUDA device numbers such as [0, 1], got {numbers!r}"
        )
    return tuple(f"cuda:{number}" for number in numbers)  # type: ignore[attr-defined]
