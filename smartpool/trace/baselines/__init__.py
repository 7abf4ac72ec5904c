"""Models of the allocators that people use today, each checked against peaks that the real one showed.

They answer one question on any machine: how much memory would that allocator have reserved for this
trace? Their own speed says nothing about the peers, which are compiled; their driver calls do.
`docs/replay.md` names the sources, the versions and how far each model is from what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.errors import ConfigurationError
from smartpool.trace.baselines.base import Baseline
from smartpool.trace.baselines.cupy import CuPyPool
from smartpool.trace.baselines.driver_pool import DriverPool
from smartpool.trace.baselines.pytorch import PyTorchAllocator
from smartpool.trace.baselines.pytorch_expandable import PyTorchExpandableAllocator
from smartpool.trace.baselines.rmm import RmmPool
from smartpool.units import MiB

__all__ = ["BASELINES", "PEERS", "Baseline", "make_baseline"]

BASELINES: Final[Mapping[str, Callable[[Driver], Baseline]]] = MappingProxyType(
    {
        "pytorch": PyTorchAllocator,
        "pytorch-expandable": PyTorchExpandableAllocator,
        "pytorch-max-split-128": partial(PyTorchAllocator, max_split_bytes=128 * MiB),
        "pytorch-roundup-8": partial(PyTorchAllocator, roundup_power2_divisions=8),
        "cupy": CuPyPool,
        "rmm": RmmPool,
        "driver-pool": DriverPool,
    }
)
"""The baselines by the names that ``smartpool replay --against`` takes."""

PEERS: Final = ("pytorch", "pytorch-expandable", "cupy", "rmm")
"""Those that SmartPool is compared with unless others are asked for."""


def make_baseline(name: str, driver: Driver) -> Baseline:
    """Return a fresh baseline on `driver`.

    Parameters
    ----------
    name
        One of `BASELINES`.
    driver
        The memory. It should serve nobody else, because its count of calls is the baseline's.

    Raises
    ------
    ConfigurationError
        When there is no baseline of that name.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> cupy = make_baseline("cupy", open_driver("model:1GiB"))
    >>> pointer = cupy.malloc(1000, stream=0)
    >>> cupy.peak_reserved_bytes, dict(cupy.driver_calls)
    (1024, {'allocate': 1})
    """
    make = BASELINES.get(name)
    if make is None:
        raise ConfigurationError("baseline", f"expected one of {', '.join(BASELINES)}, got {name!r}")
    baseline = make(driver)
    baseline.name = name
    return baseline
