"""Where the time of a replay goes: hits, misses, emptied bins, growth and stitching, the driver.

Each recorded trace is replayed on `model`, with driver time by the costs measured on an H200, first plainly
and then with one part timed at a time: timing all of them at once would count the clock as well. Beside it
stands what PyTorch's caching allocator took for the same trace on an H200 (`bench/results/gpu-replay.json`).
Wall time is this machine's. Prints a table, writes `bench/results/parts.json`.

Run: python bench/parts.py [--policies balanced,fast] [--repeat 3]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from common import write_results
from elastic import TRACES, events

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB

PARTS = {"miss": "_refill", "empty": "empty_bins", "grow": "_grow"}
PEERS = Path(__file__).parent / "results" / "gpu-replay.json"


class Timed:
    """A function, how often it was called, and the seconds it took."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function, self.calls, self.seconds = function, 0, 0.0

    def __call__(self, *arguments: object) -> object:
        begin = time.thread_time()
        result = self.function(*arguments)
        self.seconds += time.thread_time() - begin
        self.calls += 1
        return result


def replay(
    trace: Trace, program: list[tuple[int, int, int, int]], config: SmartPoolConfig, part: str | None
) -> tuple[float, Timed | None, AdvancedMemoryPoolManager]:
    """Return the seconds of one replay, with `part` of it timed, and the pool."""
    pool = AdvancedMemoryPoolManager(ModelDriver(141 * GiB), config)
    timed = None
    if part is not None:
        owner = pool if part == PARTS["miss"] else pool.slow_path
        timed = Timed(getattr(owner, part))
        setattr(owner, part, timed)
    pointers: list[int | None] = [None] * trace.allocations
    malloc, free = pool.malloc, pool.free
    begin = time.thread_time()
    for operation, number, nbytes, _ in program:
        if operation:
            free(pointers[number])
            pointers[number] = None
        else:
            pointers[number] = malloc(nbytes)
    return time.thread_time() - begin, timed, pool


def clock_seconds(calls: int = 20_000) -> float:
    """Return what timing one call adds to it."""
    timed = Timed(int)
    for _ in range(calls):
        timed()
    return timed.seconds / calls


def row(trace: Trace, config: SmartPoolConfig, repeat: int, overhead: float) -> dict[str, object]:
    """Return milliseconds by part, medians of `repeat` replays each."""
    program = events(trace)
    gc.collect()
    gc.freeze()  # the program's tuples are the benchmark's: no collection should visit them
    whole = statistics.median(replay(trace, program, config, None)[0] for _ in range(repeat))
    ms: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, part in PARTS.items():
        runs = [replay(trace, program, config, part)[1] for _ in range(repeat)]
        ms[name] = statistics.median(run.seconds - run.calls * overhead for run in runs if run) * 1e3
        counts[name] = runs[0].calls if runs[0] else 0
    pool = replay(trace, program, config, None)[2]
    return {
        "trace": trace.name,
        "operations": trace.events,
        "pool_ms": round(whole * 1e3, 2),
        "pool_us_per_operation": round(whole / trace.events * 1e6, 3),
        "hits_frees_loop_ms": round(whole * 1e3 - ms["miss"], 2),
        "misses_ms": round(ms["miss"] - ms["empty"] - ms["grow"], 2),
        "emptying_bins_ms": round(ms["empty"], 2),
        "growing_stitching_ms": round(ms["grow"], 2),
        "driver_ms": round(pool.driver.seconds * 1e3, 2),
        "counts": counts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", default="balanced,fast")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    rows, overhead = json.loads(PEERS.read_text())["results"]["rows"], clock_seconds()
    torch_ms = {line["trace"]: line["ms"] for line in rows if line["peer"] == "torch"}
    payload: dict[str, object] = {}
    for policy in arguments.policies.split(","):
        lines, ratios = [], []
        for path in sorted(TRACES.glob("*.npz")):
            trace = Trace.load(path)
            line = row(trace, SmartPoolConfig(policy=policy), arguments.repeat, overhead)
            ms = float(str(line["pool_ms"])) + float(str(line["driver_ms"]))
            ratios.append(ms / torch_ms[trace.name])
            lines.append(
                line | {"torch_h200_ms": torch_ms[trace.name], "over_torch_h200": round(ratios[-1], 2)}
            )
            print(policy, *(f"{key}={value}" for key, value in lines[-1].items()))
        mean = round(math.exp(statistics.mean(map(math.log, ratios))), 2)
        print(f"{policy}: {mean} times PyTorch on the H200, as a geometric mean\n")
        payload[policy] = {"over_torch_h200": mean, "traces": lines}
    print(write_results("parts", payload))


if __name__ == "__main__":
    main()
