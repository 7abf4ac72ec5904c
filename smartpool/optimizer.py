"""`GPUMemoryOptimizer`: which devices take part, their streams, and the pool over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from smartpool.config import SmartPoolConfig
from smartpool.errors import ConfigurationError
from smartpool.smart_pool import SmartPool

__all__ = ["GPUMemoryOptimizer", "integrate_smartpool_with_gpu_optimizer"]

_POOL_FIELDS: Final = frozenset(field.name for field in fields(SmartPoolConfig))


class GPUMemoryOptimizer:
    """Devices under one configuration.

    Parameters
    ----------
    config
        A mapping. ``enable_smart_pool`` (default True); the devices, as ``device_ids`` (CUDA
        numbers; default ``[0]``) or as ``devices`` (names such as ``["cpu"]``); and any field of
        `SmartPoolConfig` for the pools.

    Raises
    ------
    ConfigurationError
        When a key is unknown or a value is wrong; it names the key.

    Examples
    --------
    >>> optimizer = GPUMemoryOptimizer({"devices": ["model:1GiB"], "fragmentation_threshold": 0.2})
    >>> optimizer.device_names, optimizer.pool_config.fragmentation_threshold
    (('model:1GiB',), 0.2)
    """

    def __init__(self, config: Mapping[str, object] | None = None) -> None:
        settings = dict(config or {})
        enabled = settings.pop("enable_smart_pool", True)
        if not isinstance(enabled, bool):
            raise ConfigurationError("enable_smart_pool", f"expected True or False, got {enabled!r}")
        self.enable_smart_pool = enabled
        self.device_names = _device_names(settings)
        unknown = settings.keys() - _POOL_FIELDS
        if unknown:
            name = min(unknown)
            known = sorted(_POOL_FIELDS | {"enable_smart_pool", "device_ids", "devices"})
            raise ConfigurationError(name, f"there is no such setting; expected one of {', '.join(known)}")
        self.pool_config = SmartPoolConfig.from_mapping(settings)
        self.smart_pool: SmartPool | None = None

    def __repr__(self) -> str:
        return f"<GPUMemoryOptimizer on {', '.join(self.device_names)}: pool {self.smart_pool!r}>"


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
