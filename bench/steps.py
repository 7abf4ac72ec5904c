"""Planned steps: what a marked repetition costs, beside one that nobody marked.

Two parts, on the `model` device with driver time by the costs measured on an H200:

* *operations*: microseconds of a request and its free from a bin, from a plan, and by a search;
* *marked*: three recorded trainings cut into steps; searches, driver calls and time of each repetition.

Prints tables, writes `bench/results/steps.json`.

Run: python bench/steps.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import write_results

from smartpool.driver.model import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB, KiB

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
MARKED = ("llama-train", "gpt2-train", "mixtral-varlen")

Operation = tuple[bool, int, int]
"""Whether it is a free, which request, and its bytes."""


def open_pool() -> AdvancedMemoryPoolManager:
    return AdvancedMemoryPoolManager(ModelDriver(141 * GiB))


def operations_of(trace: Trace) -> list[Operation]:
    columns = (trace.op != 0, trace.allocation_numbers(), trace.size)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def driver_calls(snapshot: object) -> int:
    return sum(count for name, count in snapshot.driver_calls.items() if name != "memory_info")


# ---------------------------------------------------------------------- operations


def price_of_operations(pairs: int = 2000, rounds: int = 40) -> dict[str, float]:
    """Return the least microseconds of a request and its free, by what serves it."""
    sizes = [4 * KiB * (number % 50 + 1) for number in range(pairs)]

    def once(pool: AdvancedMemoryPoolManager) -> float:
        malloc, free = pool.malloc, pool.free
        begin = time.thread_time()
        for nbytes in sizes:
            free(malloc(nbytes))
        return (time.thread_time() - begin) / pairs * 1e6

    pool = open_pool()
    for pointer in [pool.malloc(nbytes) for nbytes in set(sizes)]:
        pool.free(pointer)
    from_bins = min(once(pool) for _ in range(rounds))
    for _ in range(2):
        pool.begin_step("step", wait_for_plan=True)
        once(pool)
        pool.end_step()
    planned = []
    for _ in range(rounds):
        pool.begin_step("step", wait_for_plan=True)
        planned.append(once(pool))
        pool.end_step()
    assert pool.snapshot().steps.misses == 0
    searched = []
    for _ in range(rounds):
        total = 0.0
        for nbytes in sizes[:200]:
            pool.flush()
            begin = time.thread_time()
            pool.free(pool.malloc(nbytes))
            total += time.thread_time() - begin
        searched.append(total / 200 * 1e6)
    return {
        "bin": round(from_bins, 3),
        "planned": round(min(planned), 3),
        "searched": round(min(searched), 3),
    }


# ---------------------------------------------------------------------- marked


def best_lag(sizes: np.ndarray) -> tuple[int, float]:
    """Return the lag, in requests, at which the later half agrees best with itself, and how well."""
    later = sizes[len(sizes) // 2 :]
    agreement = {
        lag: float(np.mean(later[lag:] == later[:-lag])) for lag in range(16, max(17, len(later) // 3))
    }
    best = max(agreement.values())
    return next(lag for lag, share in agreement.items() if share >= best - 0.005), best


def play_marked(trace: Trace, lag: int, *, marks: bool) -> list[dict[str, float]]:
    """Return the figures of each repetition, the oldest first."""
    pool = open_pool()
    starts = set(range(trace.allocations % lag, trace.allocations, lag))
    pointers = [0] * trace.allocations
    rows: list[dict[str, float]] = []
    request, inside, done = 0, False, 0
    before, begin = pool.snapshot(), time.thread_time()
    for freed, number, nbytes in operations_of(trace):
        done += 1
        if freed:
            pool.free(pointers[number])
            continue
        if request in starts:
            ended = time.thread_time()
            if inside and marks:
                pool.end_step()
            now = pool.snapshot()
            if inside:
                rows.append(figures(before, now, ended - begin, done))
            if marks:
                pool.begin_step("step", wait_for_plan=True)
            inside, done = True, 0
            before, begin = pool.snapshot(), time.thread_time()
        request += 1
        pointers[number] = pool.malloc(nbytes)
    return rows


def figures(before: object, now: object, seconds: float, operations: int) -> dict[str, float]:
    return {
        "searches": now.searches - before.searches,
        "driver_calls": driver_calls(now) - driver_calls(before),
        "hits": now.steps.hits - before.steps.hits,
        "misses": now.steps.misses - before.steps.misses,
        "us_per_operation": round(seconds / operations * 1e6, 3),
    }


def show_marked(name: str) -> dict[str, object]:
    trace = Trace.load(TRACES / f"{name}.npz")
    lag, agreement = best_lag(trace.size[trace.op == 0])
    marked, plain = (play_marked(trace, lag, marks=marks) for marks in (True, False))
    print(f"{name}: {lag} requests a step, {agreement:.1%} equal to the step before, {len(marked)} steps")
    for index, (row, other) in enumerate(zip(marked[:10], plain, strict=False)):
        print(f"  {index:3}", *(f"{key} {row[key]} ({other[key]})" for key in row))
    return {"requests_a_step": lag, "agreement": agreement, "planned": marked, "plain": plain}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    payload: dict[str, object] = {"us_of_a_request_and_its_free": price_of_operations()}
    print(payload)
    payload["marked"] = {name: show_marked(name) for name in MARKED}
    print(write_results("steps", payload))


if __name__ == "__main__":
    main()
