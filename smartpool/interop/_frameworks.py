"""What every module of this package needs: its framework, and the pool's managers by device number."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import TYPE_CHECKING, Any

from smartpool.dlpack.device import DeviceType
from smartpool.errors import DeviceNotFoundError, InvalidRequestError, MissingPackageError
from smartpool.smart_pool import SmartPool

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["cuda_managers", "framework", "keep_for_good", "manager_for", "one_manager"]


def framework(name: str, *, install: str) -> Any:
    """Import and return the module `name` of a framework.

    Imports go through here, and not through statements, so that a module of this package can be
    imported, read and documented where its framework is absent.

    Raises
    ------
    MissingPackageError
        When it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"expected the package {name} to be installed, got: {error}; {install}"
        ) from error


def keep_for_good(thing: object) -> None:
    """Never let go of an object: C code has its address, until the process ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def cuda_managers(pool: SmartPool) -> dict[int, AdvancedMemoryPoolManager]:
    """Return the managers of `pool` by CUDA device number, the first device first.

    Raises
    ------
    InvalidRequestError
        When `pool` is not a `SmartPool`.
    DeviceNotFoundError
        When one of its devices is not a CUDA device.
    """
    if not isinstance(pool, SmartPool):
        raise InvalidRequestError(f"expected a SmartPool, got {pool!r}")
    managers = {}
    for manager in pool.managers:
        kind, ordinal = manager.driver.dl_device
        if kind != DeviceType.CUDA:
            raise DeviceNotFoundError(
                f"expected a pool on CUDA devices, got one on {manager.driver.name}; "
                "make it with SmartPool('cuda:0')"
            )
        managers[ordinal] = manager
    return managers


def one_manager(pool: SmartPool, device_id: int | None) -> tuple[int, AdvancedMemoryPoolManager]:
    """Return a CUDA device number of `pool` with its manager: `device_id`, or the first for None."""
    managers = cuda_managers(pool)
    ordinal = next(iter(managers)) if device_id is None else device_id
    return ordinal, manager_for(managers, ordinal)


def manager_for(managers: dict[int, AdvancedMemoryPoolManager], ordinal: int) -> AdvancedMemoryPoolManager:
    """Return the manager of the device `ordinal`; `DeviceNotFoundError` when the pool has none."""
    try:
        return managers[ordinal]
    except KeyError:
        there = ", ".join(f"cuda:{number}" for number in managers)
        raise DeviceNotFoundError(
            f"expected a request on a device of the pool ({there}), got one on cuda:{ordinal}; "
            "name every device that is used when the pool is made: SmartPool(['cuda:0', 'cuda:1'])"
        ) from None
