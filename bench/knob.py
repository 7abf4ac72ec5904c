"""The axis of policies, and what prices are worth on devices whose calls cost other than an H200's.

First table: every eighth of the axis from `tight` (0) to `fast` (1), the nine traces on the model device:
mean and worst fragmentation, and the geometric mean of the driver's milliseconds.

Second table: `balanced` where mapping and access, or every call, cost a quarter, the same, four and
sixteen times as much: with the device's own prices, and with the H200's, as if they were not known.

Prints tables, writes `bench/results/knob.json`.

Run: python bench/knob.py
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from common import write_results
from elastic import events

from smartpool.config import SmartPoolConfig
from smartpool.driver.costs import H200, Cost, CostTable
from smartpool.driver.model import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
MAPPING = ("map_chunk", "enable_access_call", "enable_access")
ALL = (*MAPPING, "create_chunk", "release_chunk", "unmap")


def dearer(calls: tuple[str, ...], factor: float) -> CostTable:
    """Return the H200's table with some calls `factor` times as dear."""
    changed = {call: getattr(H200, call) for call in calls}
    return replace(
        H200, **{call: Cost(cost.base * factor, cost.per_mib * factor) for call, cost in changed.items()}
    )


def measure(
    programs: dict[str, tuple[Trace, list]], costs: CostTable = H200, **fields: object
) -> dict[str, float]:
    """Return the figures of one configuration over all traces."""
    wastes, times = [], []
    for trace, program in programs.values():
        config = SmartPoolConfig(enable_predictive_allocation=False, **fields)
        pool = AdvancedMemoryPoolManager(ModelDriver(141 * GiB, costs), config)
        pointers = [0] * trace.allocations
        malloc, free = pool.malloc, pool.free
        for operation, number, nbytes, _ in program:
            if operation:
                free(pointers[number])
            else:
                pointers[number] = malloc(nbytes)
        wastes.append(1 - trace.peak_live_bytes / pool.peak_reserved_bytes)
        times.append(pool.driver.seconds * 1e3)
    return {
        "mean": round(statistics.mean(wastes), 5),
        "worst": round(max(wastes), 5),
        "driver_ms": round(statistics.geometric_mean(times), 2),
    }


def main() -> None:
    traces = [Trace.load(path) for path in sorted(TRACES.glob("*.npz"))]
    programs = {trace.name: (trace, events(trace)) for trace in traces}
    axis: dict[str, dict[str, float]] = {}
    for eighth in range(9):
        axis[f"{eighth / 8:g}"] = measure(programs, policy=eighth / 8)
        print(
            f"policy {eighth / 8:5.3f}", *(f"{key} {value}" for key, value in axis[f"{eighth / 8:g}"].items())
        )
    devices: dict[str, dict[str, dict[str, float]]] = {}
    for name, calls in (("mapping", MAPPING), ("all", ALL)):
        for factor in (0.25, 1.0, 4.0, 16.0):
            costs = dearer(calls, factor)
            row = devices[f"{name} x {factor:g}"] = {
                "own prices": measure(programs, costs),
                "an H200's prices": measure(programs, costs, prices=H200.prices),
            }
            for way, values in row.items():
                print(f"{name} x {factor:g}: {way:17}", *(f"{key} {value}" for key, value in values.items()))
    print(write_results("knob", {"axis": axis, "devices": devices}))


if __name__ == "__main__":
    main()
