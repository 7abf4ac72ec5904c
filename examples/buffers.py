"""Buffers that NumPy reads without a copy, and who keeps them alive.

Prints::

    4 MiB live
    sum 1048576
    0 B live
"""

import numpy as np

import smartpool

with smartpool.SmartPool("cpu") as pool:  # or "cuda:0"

    def live() -> str:
        """Return how much is live."""
        return smartpool.format_size(pool.statistics.devices[0].live_bytes)

    buffer = pool.empty((1024, 1024), "float32")
    array = np.from_dlpack(buffer)  # on a GPU: torch.from_dlpack, cupy.from_dlpack
    array[:] = 1
    del buffer  # the array keeps the memory
    print(live(), "live")
    print("sum", int(array.sum()))
    del array
    print(live(), "live")
