"""The thing that owns memory: the protocol, and the cpu, model and cuda devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpool.driver.protocol import Driver, MemoryInfo
from smartpool.driver.registry import open_driver
from smartpool.lazy import lazy_names

if TYPE_CHECKING:
    from smartpool.driver.costs import H200, Cost, CostTable
    from smartpool.driver.cpu import CpuDriver
    from smartpool.driver.model import ModelDriver

__all__ = ["H200", "Cost", "CostTable", "CpuDriver", "Driver", "MemoryInfo", "ModelDriver", "open_driver"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Cost": "smartpool.driver.costs",
        "CostTable": "smartpool.driver.costs",
        "CpuDriver": "smartpool.driver.cpu",
        "H200": "smartpool.driver.costs",
        "ModelDriver": "smartpool.driver.model",
    },
)
