"""The thing that owns memory: the protocol, and the cpu, model and cuda devices."""

from smartpool.driver.costs import H200, Cost, CostTable
from smartpool.driver.cpu import CpuDriver
from smartpool.driver.model import ModelDriver
from smartpool.driver.protocol import Driver, MemoryInfo
from smartpool.driver.registry import open_driver

__all__ = ["H200", "Cost", "CostTable", "CpuDriver", "Driver", "MemoryInfo", "ModelDriver", "open_driver"]
