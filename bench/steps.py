"""Planned steps: what repetition costs where it is marked, where it is recognised, and where there is none.

Four parts, on the `model` device with driver time by the costs measured on an H200:

* *operations*: microseconds of a request and its free from a bin, from a plan, and by a search;
* *marked*: three recorded trainings cut into steps; searches, driver calls and time of each repetition;
* *recognised*: a long run made of the repeating part of two of them, without a mark; how many
  repetitions it takes the pool to serve them from a plan, and what that saves;
* *price*: the nine traces with recognition off, as it is by default, and from the first request on.

Prints tables, writes `bench/results/steps.json`.

Run: python bench/steps.py [--repeat 5] [--repetitions 150]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import write_results

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB, KiB

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
MARKED = ("llama-train", "gpt2-train", "mixtral-varlen")
REPEATING = ("llama-train", "gpt2-train")

Operation = tuple[bool, int, int]
"""Whether it is a free, which request, and its bytes."""


def open_pool(**config: object) -> AdvancedMemoryPoolManager:
    return AdvancedMemoryPoolManager(ModelDriver(141 * GiB), SmartPoolConfig(**config))


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

    pool = open_pool(recognise_after=None)
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
    pool = open_pool(recognise_after=None)
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


# ---------------------------------------------------------------------- recognised


@dataclass(frozen=True)
class LongRun:
    """A trace up to its last whole repetition, and that repetition, to be played again and again."""

    before: list[Operation]
    places: dict[int, int]  # where the requests of `before` stand, counted from the repetition's first
    repetition: list[tuple[bool, int, int]]  # whether it is a free, which request, bytes
    requests: int
    peak_live_bytes: int


def long_run(trace: Trace, lag: int) -> LongRun:
    """Cut a trace; what its last repetition frees of the one before, later ones free of theirs."""
    whole = operations_of(trace)
    starts = [index for index, (freed, _, _) in enumerate(whole) if not freed]
    count = trace.allocations // lag - 1
    first, last = starts[count * lag - lag], starts[count * lag]
    begin, end = count * lag - lag, count * lag
    order = {whole[index][1]: place for place, index in enumerate(starts)}
    repetition: list[tuple[bool, int, int]] = []
    gone = set()
    for freed, number, nbytes in whole[first:last]:
        place = order[number]
        if not freed:
            repetition.append((False, place - begin, nbytes))
        elif place >= begin - lag:
            repetition.append((True, place - begin, 0))
            gone.add((place - begin) % lag)
    repetition += [(True, place - lag, 0) for place in range(end - begin) if place not in gone]
    places = {number: place - begin for number, place in order.items() if place < begin}
    return LongRun(whole[:first], places, repetition, lag, trace.peak_live_bytes)


def play_long(run: LongRun, repetitions: int, **config: object) -> dict[str, object]:
    """Return what the whole run cost, and when the pool began to serve it from a plan."""
    pool = open_pool(**config)
    malloc, free = pool.malloc, pool.free
    pointers: dict[int, int] = {}
    for freed, number, nbytes in run.before:
        if freed:
            free(pointers.pop(number))
        else:
            pointers[number] = malloc(nbytes)
    held = {run.places[number]: pointer for number, pointer in pointers.items()}  # by request, over all
    served_from, late = None, []
    first_clock = time.process_time()
    for repetition in range(repetitions):
        base = repetition * run.requests
        searches, begin = pool.searches, time.thread_time()
        for freed, place, nbytes in run.repetition:
            if not freed:
                held[base + place] = malloc(nbytes)
            elif base + place in held:
                free(held.pop(base + place))
        late.append((time.thread_time() - begin) / len(run.repetition) * 1e6)
        if served_from is None and pool.searches == searches:
            served_from = repetition
    steps = pool.snapshot().steps
    return {
        "us_per_operation": round(
            (time.process_time() - first_clock) / repetitions / len(run.repetition) * 1e6, 3
        ),
        "us_per_operation_of_the_last": round(statistics.median(late[-10:]), 3),
        "first_without_a_search": served_from,
        "hit_rate": round(steps.hits / (repetitions * run.requests), 4),
        "misses": steps.misses,
        "recognised": steps.recognised,
        "driver_seconds": round(pool.driver.seconds, 5),
        "peak_reserved_bytes": pool.peak_reserved_bytes,
    }


def show_recognised(name: str, repetitions: int) -> dict[str, object]:
    trace = Trace.load(TRACES / f"{name}.npz")
    run = long_run(trace, best_lag(trace.size[trace.op == 0])[0])
    found = {
        "off": play_long(run, repetitions, recognise_after=None),
        "by default": play_long(run, repetitions),
        "from the start": play_long(run, repetitions, recognise_after=0),
    }
    print(f"{name}, {repetitions} repetitions without a mark")
    for label, row in found.items():
        print(f"  {label:15}", *(f"{key} {value}" for key, value in row.items()))
    return found


# ---------------------------------------------------------------------- price


def price_by_trace(repeat: int) -> dict[str, dict[str, float]]:
    """Return the time of each trace, and its fragmentation, with recognition off, by default, and at once."""
    settings = {"off": None, "default": SmartPoolConfig().recognise_after, "at_once": 0}
    rows: dict[str, dict[str, float]] = {}
    for path in sorted(TRACES.glob("*.npz")):
        trace = Trace.load(path)
        program = operations_of(trace)
        seconds: dict[str, list[float]] = {label: [] for label in settings}
        row: dict[str, float] = {}
        for _ in range(repeat):
            for label, after in settings.items():
                pool = open_pool(recognise_after=after)
                pointers = [0] * trace.allocations
                malloc, free = pool.malloc, pool.free
                begin = time.process_time()
                for freed, number, nbytes in program:
                    if freed:
                        free(pointers[number])
                    else:
                        pointers[number] = malloc(nbytes)
                for thread in threading.enumerate():
                    if thread.name == "smartpool-planner":
                        thread.join()  # what it takes counts here, and not for whoever comes next
                seconds[label].append(time.process_time() - begin)
                row[f"{label}_fragmentation"] = 1 - trace.peak_live_bytes / pool.peak_reserved_bytes
                row[f"{label}_hits"] = pool.snapshot().steps.hits
        for label, taken in seconds.items():
            row[f"{label}_us"] = round(statistics.median(taken) / len(program) * 1e6, 3)
        rows[trace.name] = row
        print(
            f"{trace.name:20}",
            *(
                f"{label}: {row[f'{label}_us']:.2f} us an operation, {row[f'{label}_fragmentation']:.2%};"
                for label in settings
            ),
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=150)
    arguments = parser.parse_args()
    payload: dict[str, object] = {"us_of_a_request_and_its_free": price_of_operations()}
    print(payload)
    payload["marked"] = {name: show_marked(name) for name in MARKED}
    payload["recognised"] = {name: show_recognised(name, arguments.repetitions) for name in REPEATING}
    payload["price"] = price_by_trace(arguments.repeat)
    print(write_results("steps", payload))


if __name__ == "__main__":
    main()
