"""SmartPool: a GPU memory pool in pure Python on the raw CUDA driver.

>>> import smartpool
>>> pool = smartpool.SmartPool("cpu")
>>> buffer = pool.empty((2, 3), "float32")      # any framework: from_dlpack(buffer)
>>> pool.close()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpool import errors
from smartpool._version import __version__
from smartpool.errors import *  # noqa: F403 - every error is public; errors.__all__ says which
from smartpool.lazy import lazy_names
from smartpool.units import GiB, KiB, MiB, TiB, format_size, parse_size

if TYPE_CHECKING:
    from smartpool.buffer import Buffer
    from smartpool.config import SmartPoolConfig
    from smartpool.debug_options import DebugOptions
    from smartpool.graphs.memory import GraphMemory
    from smartpool.manager import AdvancedMemoryPoolManager
    from smartpool.optimizer import GPUMemoryOptimizer, integrate_smartpool_with_gpu_optimizer
    from smartpool.planner import IntervalSet, Plan, WeightedIntervalGraphColoring, plan
    from smartpool.prices import Cost, Prices
    from smartpool.request import AllocationRequest
    from smartpool.sharing.shared import SharedBuffer, open_shared
    from smartpool.smart_pool import AllocationResult, SmartPool

__all__ = [
    "AdvancedMemoryPoolManager",
    "AllocationRequest",
    "AllocationResult",
    "Buffer",
    "Cost",
    "DebugOptions",
    "GPUMemoryOptimizer",
    "GiB",
    "GraphMemory",
    "IntervalSet",
    "KiB",
    "MiB",
    "Plan",
    "Prices",
    "SharedBuffer",
    "SmartPool",
    "SmartPoolConfig",
    "TiB",
    "WeightedIntervalGraphColoring",
    "__version__",
    "format_size",
    "integrate_smartpool_with_gpu_optimizer",
    "open_shared",
    "parse_size",
    "plan",
]
__all__ += errors.__all__


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AdvancedMemoryPoolManager": "smartpool.manager",
        "AllocationRequest": "smartpool.request",
        "AllocationResult": "smartpool.smart_pool",
        "Buffer": "smartpool.buffer",
        "Cost": "smartpool.prices",
        "DebugOptions": "smartpool.debug_options",
        "GPUMemoryOptimizer": "smartpool.optimizer",
        "GraphMemory": "smartpool.graphs.memory",
        "IntervalSet": "smartpool.planner",
        "Plan": "smartpool.planner",
        "Prices": "smartpool.prices",
        "SharedBuffer": "smartpool.sharing.shared",
        "SmartPool": "smartpool.smart_pool",
        "SmartPoolConfig": "smartpool.config",
        "WeightedIntervalGraphColoring": "smartpool.planner",
        "integrate_smartpool_with_gpu_optimizer": "smartpool.optimizer",
        "open_shared": "smartpool.sharing.shared",
        "plan": "smartpool.planner",
    },
    modules=(
        "dlpack", "driver", "errors", "interop", "live", "metrics", "planner", "recommendations", "report",
        "streams", "testing", "trace", "units",
    ),
)  # fmt: skip
