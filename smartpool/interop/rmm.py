"""RMM on a SmartPool, and a SmartPool on RMM.

`memory_resource` gives RMM's users (cuDF, cuML, RAPIDS) memory of a pool, through a
`CallbackMemoryResource`. `smartpool.interop.upstream` goes the other way.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from smartpool.errors import AllocatorError
from smartpool.interop._frameworks import cuda_managers, framework, one_manager
from smartpool.smart_pool import SmartPool

__all__ = ["install", "memory_resource", "uninstall"]

_INSTALL: Final = "pip install rmm-cu13 (or rmm-cu12)"

_before: dict[int, Any] = {}  # device number -> the resource that install() replaced


def memory_resource(pool: SmartPool, device_id: int | None = None) -> Any:
    """Return an `rmm.mr.CallbackMemoryResource` over one device of `pool`: `device_id`, or the first.

    RMM says on which stream memory is requested and freed, and the pool keeps to it. RMM raises a
    `MemoryError` with the pool's message when there is none, and keeps the pool alive with the resource.

    Raises
    ------
    MissingPackageError
        When RMM is not installed.
    DeviceNotFoundError
        When `device_id` is no CUDA device of the pool.
    """
    _, manager = one_manager(pool, device_id)
    mr = framework("rmm.mr", install=_INSTALL)
    malloc, free, finalizing = manager.malloc, manager.drop, sys.is_finalizing
    handle_of = manager.driver.stream  # an integer takes the pool's quick path, an object does not

    def allocate(nbytes: int, stream: Any) -> int:
        return malloc(nbytes, handle_of(stream) or None)

    def deallocate(pointer: int, nbytes: int, stream: Any) -> None:  # noqa: ARG001 - RMM's signature
        if not finalizing():
            free(pointer, handle_of(stream))

    return mr.CallbackMemoryResource(allocate, deallocate)


def install(pool: SmartPool) -> None:
    """Make `pool` the current resource of RMM on each of its devices, until `uninstall`.

    Raises
    ------
    AllocatorError
        When a pool is installed already.
    MissingPackageError, DeviceNotFoundError
        As `memory_resource`.
    """
    if _before:
        raise AllocatorError(
            "expected no SmartPool under RMM, one is installed already; call "
            "smartpool.interop.rmm.uninstall() first"
        )
    resources = {ordinal: memory_resource(pool, ordinal) for ordinal in cuda_managers(pool)}
    mr = framework("rmm.mr", install=_INSTALL)
    for ordinal, resource in resources.items():
        _before[ordinal] = mr.get_per_device_resource(ordinal)
        mr.set_per_device_resource(ordinal, resource)


def uninstall() -> None:
    """Give RMM's devices the resources back that they had before `install`.

    RMM's buffers keep the resource that they came from, so those of the pool stay valid.
    """
    mr = framework("rmm.mr", install=_INSTALL)
    while _before:
        ordinal, resource = _before.popitem()
        mr.set_per_device_resource(ordinal, resource)
