"""What an export costs: made, consumed and dropped, beside NumPy's and PyTorch's own.

    python bench/dlpack.py [--write]

The rows are measured in turn, eighty short rounds, and each round measures the floor of the machine
too (`common.floor_us`: a pop and an append behind two function calls), so that a row says how many
floors an export costs whatever else the machine does. PyTorch's rows appear where PyTorch is
installed. With ``--write`` the figures go to `bench/results/dlpack.json`.
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

import smartpool
from smartpool.dlpack import DType, export

ROUNDS, NUMBER = 80, 1_000
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
    pool = smartpool.SmartPool("cpu")
    buffer = pool.empty(SHAPE, "float32")
    rows: dict[str, Callable[[], object]] = {
        "capsule alone: numpy": lambda: array.__dlpack__(max_version=(1, 0)),
        "capsule alone: smartpool float32": lambda: ours.__dlpack__(max_version=(1, 0)),
        "capsule alone: smartpool bfloat16": lambda: strange.__dlpack__(max_version=(1, 0)),
        "into numpy: numpy": lambda: np.from_dlpack(array),
        "into numpy: smartpool float32": lambda: np.from_dlpack(ours),
        "into numpy: a Buffer": lambda: np.from_dlpack(buffer),
        "into numpy: pool.empty, anew": lambda: np.from_dlpack(pool.empty(SHAPE, "float32")),
    }
    try:
        import torch
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
    rows = cases()
    times: dict[str, list[float]] = {name: [] for name in rows}
    floors: list[float] = []
    for _ in range(ROUNDS):
        floors.append(floor_us(repeat=3, number=2_000))
        for name, call in rows.items():
            times[name].append(timeit.timeit(call, number=NUMBER) / NUMBER * 1e6)
    results = []
    for name, taken in times.items():
        in_floors = statistics.median(time / floor for time, floor in zip(taken, floors, strict=True))
        row = {
            "case": name,
            "best_us": min(taken),
            "median_us": statistics.median(taken),
            "floors": in_floors,
        }
        results.append({key: value if key == "case" else round(value, 3) for key, value in row.items()})
        print(f"{name:36} best {min(taken):6.2f} us  median {row['median_us']:6.2f}  {in_floors:5.1f} floors")
    if "--write" in sys.argv:
        print(write_results("dlpack", results))


if __name__ == "__main__":
    main()
