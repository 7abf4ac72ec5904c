"""Planned steps on recorded training: searches, driver calls and microseconds of each repetition.

A trace is cut into repetitions at the lag at which its sequence of requests agrees best with itself.
Prints a table (in brackets: the same without steps), writes `bench/results/steps.json`.

Run: python bench/steps.py
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from common import write_results

from smartpool.driver.model import ModelDriver
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"


def best_lag(sizes: np.ndarray) -> tuple[int, float]:
    """Return the lag, in requests, at which the later half agrees best with itself, and how well."""
    later = sizes[len(sizes) // 2 :]
    agreement = {
        lag: float(np.mean(later[lag:] == later[:-lag])) for lag in range(16, max(17, len(later) // 3))
    }
    best = max(agreement.values())
    return next(lag for lag, share in agreement.items() if share >= best - 0.005), best


def play(trace: Trace, lag: int, *, planned: bool) -> list[dict[str, float]]:
    """Return the figures of each repetition, the oldest first."""
    pool = AdvancedMemoryPoolManager(ModelDriver(141 * GiB))
    allocations = trace.allocations
    starts = set(range(allocations % lag, allocations, lag))
    pointers = [0] * allocations
    rows: list[dict[str, float]] = []
    request, inside = 0, False
    before, begin = pool.snapshot(), time.thread_time()
    for operation, number, nbytes in zip(
        trace.op.tolist(), trace.allocation_numbers().tolist(), trace.size.tolist(), strict=True
    ):
        if not operation:
            if request in starts:
                if inside and planned:
                    pool.end_step()
                now, ended = pool.snapshot(), time.thread_time()
                if inside:
                    rows.append(figures(before, now, ended - begin, lag))
                if planned:
                    pool.begin_step("step", wait_for_plan=True)
                inside = True
                before, begin = pool.snapshot(), time.thread_time()
            request += 1
            pointers[number] = pool.malloc(nbytes)
        else:
            pool.free(pointers[number])
    return rows


def figures(before: object, now: object, seconds: float, lag: int) -> dict[str, float]:
    def calls(snapshot: object) -> int:
        return sum(count for name, count in snapshot.driver_calls.items() if name != "memory_info")

    return {
        "searches": now.searches - before.searches,
        "driver_calls": calls(now) - calls(before),
        "hits": now.steps.hits - before.steps.hits,
        "misses": now.steps.misses - before.steps.misses,
        "us_per_request": round(seconds / lag * 1e6, 3),
    }


def main() -> None:
    payload = {}
    for name in ("llama-train", "gpt2-train", "mixtral-varlen"):
        trace = Trace.load(TRACES / f"{name}.npz")
        lag, agreement = best_lag(trace.size[trace.op == 0])
        rows = play(trace, lag, planned=True)
        plain = play(trace, lag, planned=False)
        payload[name] = {"requests_a_step": lag, "agreement": agreement, "planned": rows, "plain": plain}
        print(f"{name}: {lag} requests a step, {agreement:.1%} equal to the step before, {len(rows)} steps")
        for index, (row, other) in enumerate(zip(rows[:10], plain, strict=False)):
            print(f"  {index:3}", *(f"{key} {row[key]} ({other[key]})" for key in row))
    print(write_results("steps", payload))


if __name__ == "__main__":
    main()
