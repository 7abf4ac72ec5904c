"""Does the exact search fit hard instances, how often, and how fast?

Run with ``python bench/planner/search_fit.py [--limit SECONDS] [--count N]``; writes
bench/results/planner_search_fit.json. Needs the public instances (folder `shared` beside the checkout,
or SMARTPOOL_SHARED); they belong to others. One thread; seconds of wall clock, and of processor time
beside, as a shared machine stretches the former. Rows where instances fail stay in.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_results
from search_instances import (
    Columns,
    cut_sizes,
    cut_times,
    guillotine,
    on_top,
    read,
    side_by_side,
    turnover,
)

from smartpool.planner import IntervalSet
from smartpool.planner.clash import find_clash
from smartpool.planner.clock import Clock
from smartpool.planner.problem import normalize
from smartpool.planner.search import fit

MIB = 1 << 20
SHARED = Path(os.environ.get("SMARTPOOL_SHARED", Path(__file__).parents[2].parent / "shared")) / "planner"
MINIMALLOC_S = {"A": 5.2, "B": 3.9, "C": 0.9, "D": 3.2, "E": 4.4, "F": 6.3}  # C++, default options
Case = tuple[Columns, int]


def published(letter: str) -> Columns:
    return read(SHARED / f"{letter}.1048576.csv")


def families(count: int) -> Iterator[tuple[str, list[Case]]]:
    """Yield the name of each family and its instances with their capacities."""
    rngs = [np.random.default_rng(1000 + number) for number in range(count)]
    base = [published("ABCDEF"[number % 6]) for number in range(count)]
    other = [published("ABCDEF"[(number + 1 + number // 6) % 6]) for number in range(count)]
    sizes = [int(rng.integers(100, 401)) for rng in rngs]
    yield (
        "guillotine, sizes to the byte",
        [(guillotine(rng, n, MIB, 10_000), MIB) for rng, n in zip(rngs, sizes, strict=True)],
    )
    yield (
        "guillotine, 1024 sizes",
        [(guillotine(rng, n, 1024, 10**6), 1024) for rng, n in zip(rngs, sizes, strict=True)],
    )
    yield (
        "guillotine, 1024 sizes, 200 instants",
        [(guillotine(rng, n, 1024, 200), 1024) for rng, n in zip(rngs, sizes, strict=True)],
    )
    yield (
        "guillotine, 200 sizes, 100 instants",
        [(guillotine(rng, n, 200, 100), 200) for rng, n in zip(rngs, sizes, strict=True)],
    )
    yield (
        "turnover, sizes to the byte",
        [(turnover(rng, n, MIB, int(rng.integers(5, 40))), MIB) for rng, n in zip(rngs, sizes, strict=True)],
    )
    yield (
        "turnover, 1024 sizes",
        [
            (turnover(rng, n, 1024, int(rng.integers(5, 40))), 1024)
            for rng, n in zip(rngs, sizes, strict=True)
        ],
    )
    yield "A-F, 40 % cut in size", [(cut_sizes(rng, b, 0.4), MIB) for rng, b in zip(rngs, base, strict=True)]
    yield "A-F, 40 % cut in time", [(cut_times(rng, b, 0.4), MIB) for rng, b in zip(rngs, base, strict=True)]
    yield (
        "A-F, half cut in both, to the byte",
        [(cut_times(rng, cut_sizes(rng, b, 0.5, 1), 0.5), MIB) for rng, b in zip(rngs, base, strict=True)],
    )
    yield (
        "two of A-F on one another",
        [(on_top(rng, [b, o]), 2 * MIB) for rng, b, o in zip(rngs, base, other, strict=True)],
    )
    yield (
        "two of A-F after one another",
        [(side_by_side(rng, [b, o]), MIB) for rng, b, o in zip(rngs, base, other, strict=True)],
    )


def run(columns: Columns, capacity: int, limit: float, seed: int) -> tuple[bool, float, float]:
    """Return whether it fitted, the seconds, and the processor's seconds."""
    wall, busy = time.perf_counter(), time.process_time()
    intervals = IntervalSet(columns.start, columns.end, columns.size)
    normalized = normalize(intervals)
    found = fit(normalized.problem, capacity // normalized.unit, Clock.for_seconds(limit), seed=seed)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    if found is not None:
        offsets = normalized.expand(found, intervals)
        tops = offsets + columns.size
        assert int(tops.max()) <= capacity
        assert find_clash(columns.start, columns.end, offsets, tops) is None
    return found is not None, wall, busy


def summary(name: str, outcomes: list[tuple[bool, float, float]], **more: object) -> dict[str, object]:
    wall = sorted(outcome[1] for outcome in outcomes)
    row = {
        "instances": name,
        "fitted": sum(outcome[0] for outcome in outcomes),
        "of": len(outcomes),
        "median_s": round(median(wall), 4),
        "worst_s": round(wall[-1], 3),
        "median_busy_s": round(median(outcome[2] for outcome in outcomes), 4),
        **more,
    }
    print(
        f"{name:38} {row['fitted']:4}/{row['of']:<4} median {row['median_s']:8.4f} s"
        f" (busy {row['median_busy_s']:8.4f})  worst {row['worst_s']:7.3f} s  {more or ''}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=float, default=30.0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    rows = [
        summary(
            letter,
            [run(published(letter), MIB, given.limit, seed) for seed in range(given.seeds)],
            minimalloc_s=peer,
        )
        for letter, peer in MINIMALLOC_S.items()
    ]
    for name, cases in families(given.count):
        outcomes = [run(columns, capacity, given.limit, n) for n, (columns, capacity) in enumerate(cases)]
        rows.append(summary(name, outcomes))
    write_results("planner_search_fit", {"limit_s": given.limit, "rows": rows})


if __name__ == "__main__":
    main()
