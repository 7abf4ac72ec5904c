"""The elastic pool on the recorded traces: fragmentation and time by policy, smallest capacity, own streams.

Everything runs on the `model` device, with driver time by the costs measured on an H200; wall time is
this machine's. Prints tables, writes `bench/results/elastic.json`.

Run: python bench/elastic.py [--policies balanced,fast,tight] [--skip-capacity]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from common import write_results

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import OutOfMemoryError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
PEAK_STEPS = (1.0, 1.0025, 1.005, 1.0075, 1.01, 1.0125, 1.015, 1.0175, 1.02, 1.025, 1.03, 1.04, 1.05, 1.1)


def events(trace: Trace) -> list[tuple[int, int, int, int]]:
    """Return (operation, allocation, bytes, stream), in plain integers."""
    columns = (trace.op, trace.allocation_numbers(), trace.size, trace.stream)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def play(
    trace: Trace,
    program: list[tuple[int, int, int, int]],
    config: SmartPoolConfig,
    *,
    own_streams: bool = False,
) -> tuple[AdvancedMemoryPoolManager, float]:
    """Return the pool after the trace, and the seconds of this process that it took."""
    driver = ModelDriver(141 * GiB)
    pool = AdvancedMemoryPoolManager(driver, config)
    pointers = [0] * trace.allocations
    malloc, free = pool.malloc, pool.free
    streams: list[int | None] = [None]
    if own_streams:
        streams = [0, *(driver.create_stream() for _ in range(trace.streams - 1))]
    begin = time.process_time()
    for operation, number, nbytes, stream in program:
        if operation:
            free(pointers[number])
        elif own_streams:
            pointers[number] = malloc(nbytes, streams[stream])
        else:
            pointers[number] = malloc(nbytes)
    return pool, time.process_time() - begin


def row(trace: Trace, pool: AdvancedMemoryPoolManager, seconds: float) -> dict[str, object]:
    """Return the figures of one run."""
    calls = pool.driver.calls
    now = pool.snapshot()
    return {
        "trace": trace.name,
        "fragmentation": round(1 - trace.peak_live_bytes / pool.peak_reserved_bytes, 5),
        "peak_reserved_bytes": pool.peak_reserved_bytes,
        "pool_us_per_operation": round(seconds / trace.events * 1e6, 3),
        "driver_ms": round(pool.driver.seconds * 1e3, 2),
        "created": calls["create_chunk"],
        "mapped": calls["map_chunk"],
        "searches": now.searches,
        "grows": now.grows,
    }


def smallest_capacity(trace: Trace, program: list[tuple[int, int, int, int]], policy: str) -> float | None:
    """Return the least of `PEAK_STEPS` times the peak live bytes at which the trace completes."""
    for step in PEAK_STEPS:
        try:
            play(trace, program, SmartPoolConfig(policy=policy, max_bytes=int(step * trace.peak_live_bytes)))
        except OutOfMemoryError:
            continue
        return step
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", default="balanced,fast,tight")
    parser.add_argument("--skip-capacity", action="store_true")
    arguments = parser.parse_args()
    traces = [Trace.load(path) for path in sorted(TRACES.glob("*.npz"))]
    programs = {trace.name: events(trace) for trace in traces}
    payload: dict[str, object] = {}
    for policy in arguments.policies.split(","):
        rows = []
        for trace in traces:
            rows.append(row(trace, *play(trace, programs[trace.name], SmartPoolConfig(policy=policy))))
            print(policy, *(f"{key}={value}" for key, value in rows[-1].items()))
        wastes = [float(str(line["fragmentation"])) for line in rows]
        payload[policy] = {"mean": round(statistics.mean(wastes), 5), "worst": max(wastes), "traces": rows}
        print(f"{policy}: mean {statistics.mean(wastes):.2%}, worst {max(wastes):.2%}\n")
    several = next(trace for trace in traces if trace.streams > 1)
    payload["own streams"] = row(
        several, *play(several, programs[several.name], SmartPoolConfig(), own_streams=True)
    )
    print("own streams", payload["own streams"])
    if not arguments.skip_capacity:
        payload["smallest capacity over peak live"] = capacities = {}
        for trace in traces:
            capacities[trace.name] = smallest_capacity(trace, programs[trace.name], "balanced")
            print("smallest capacity", trace.name, capacities[trace.name])
    print(write_results("elastic", payload))


if __name__ == "__main__":
    main()
