"""The `cuda` devices, through `cuda.bindings.driver`. Imported only when one is asked for."""

from smartpool.driver.cuda.bindings import Bindings, load
from smartpool.driver.cuda.driver import CudaDriver

__all__ = ["Bindings", "CudaDriver", "load"]
