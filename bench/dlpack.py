"""What an export costs: made, consumed and dropped, beside NumPy's and PyTorch's own.

    python bench/dlpack.py [--write]

Every row is the median of seven runs in one process; the rows of one run are comparable, those of
different machines are not. PyTorch's rows appear where PyTorch is installed. With ``--write`` the
figures go to `bench/results/dlpack.json`.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
from common import floor_us, write_results

from smartpool.dlpack import DType, export

RUNS, NUMBER = 7, 20_000
SHAPE = (4, 8)


class Producer:
    """The least that an exporter can be, so that the export itself is measured."""

    def __init__(self, dtype: str) -> None:
        self.dtype = DType.parse(dtype)
        self.memory = ctypes.create_string_buffer(256)
        self.pointer = ctypes.addressof(self.memory)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ):
        return export(
            self.memory,
            pointer=self.pointer,
            shape=SHAPE,
            dtype=self.dtype,
            device=(1, 0),
            max_version=max_version,
            dl_device=dl_device,
            copy=copy,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def cases() -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    array, ours, strange = np.zeros(SHAPE, np.float32), Producer("float32"), Producer("bfloat16")
    rows: dict[str, Callable[[], object]] = {
        "capsule alone: numpy": lambda: array.__dlpack__(max_version=(1, 0)),
        "capsule alone: smartpool float32": lambda: ours.__dlpack__(max_version=(1, 0)),
        "capsule alone: smartpool bfloat16": lambda: strange.__dlpack__(max_version=(1, 0)),
        "into numpy: numpy": lambda: np.from_dlpack(array),
        "into numpy: smartpool float32": lambda: np.from_dlpack(ours),
    }
    try:
        import torch  # noqa: PLC0415 - optional
    except ImportError:
        return rows
    tensor = torch.zeros(SHAPE)
    return rows | {
        "into torch: numpy": lambda: torch.from_dlpack(array),
        "into torch: torch": lambda: torch.from_dlpack(tensor),
        "into torch: smartpool float32": lambda: torch.from_dlpack(ours),
        "into torch: smartpool bfloat16": lambda: torch.from_dlpack(strange),
        "into numpy: torch": lambda: np.from_dlpack(tensor),
    }


def main() -> None:
    floor = floor_us()
    results = []
    for name, call in cases().items():
        call()
        times = [seconds / NUMBER * 1e6 for seconds in timeit.repeat(call, repeat=RUNS, number=NUMBER)]
        median = statistics.median(times)
        results.append({"case": name, "median_us": round(median, 3), "best_us": round(min(times), 3)})
        print(f"{name:36} {median:7.2f} us  best {min(times):6.2f}  {median / floor:5.1f} floors")
    if "--write" in sys.argv:
        print(write_results("dlpack", results))


if __name__ == "__main__":
    main()
