"""Does the lazy hot core reach the load of real instances, and of larger ones made of them?

Run with ``python bench/planner/search_core.py``; writes bench/results/planner_search_core.json. Needs
the public instances, as search_fit.py. One set of parameters; wall clock, processor time beside.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_results
from search_fit import SHARED
from search_instances import Columns, cut_times, read, side_by_side

from smartpool.planner import IntervalSet
from smartpool.planner.clash import find_clash
from smartpool.planner.clock import Clock
from smartpool.planner.problem import normalize
from smartpool.planner.search import hot_core

REAL = ("iree_mobilebert", "G_1", "resnet50", "tiny_bert", "bert_base", "pangu_2.6B")
IDEALLOC = {  # over the load, best of what was measured; seconds
    "iree_mobilebert": "fails",
    "G_1": "+0.17 %, 1.1 s",
    "resnet50": "+0.28 %, 1.6 s",
    "tiny_bert": "+0.08 %, 0.04 s",
    "bert_base": "+0.001 %, 0.4 s",
    "pangu_2.6B": "+3.34 %, 1.7 s",
}


def perturbed(rng: np.random.Generator, columns: Columns, share: float) -> Columns:
    """Change every size by a normal deviate of this share."""
    size = columns.size * (1 + share * rng.standard_normal(len(columns)))
    return Columns(columns.start, columns.end, np.maximum(1, size.astype(np.int64)))


def larger() -> Iterator[tuple[str, Columns]]:
    """Yield instances of 18,000 to 62,000 intervals made of the real ones."""
    rng = np.random.default_rng(5)
    resnet, bert, pangu = (read(SHARED / f"{name}.csv") for name in ("resnet50", "bert_base", "pangu_2.6B"))
    yield "pangu_2.6B, sizes +-2 %", perturbed(rng, pangu, 0.02)
    yield "pangu_2.6B, half cut in time", cut_times(rng, pangu, 0.5)
    yield "resnet50 x 28, +-1 %", side_by_side(rng, [perturbed(rng, resnet, 0.01) for _ in range(28)])
    yield (
        "resnet50 x 28, +-1 %, overlapping",
        side_by_side(rng, [perturbed(rng, resnet, 0.01) for _ in range(28)], overlap=200),
    )
    yield "bert_base x 11", side_by_side(rng, [bert] * 11)
    yield "bert_base x 11, +-1 %", side_by_side(rng, [perturbed(rng, bert, 0.01) for _ in range(11)])
    yield "pangu_2.6B x 3", side_by_side(rng, [pangu] * 3)
    yield "pangu_2.6B x 3, +-1 %", side_by_side(rng, [perturbed(rng, pangu, 0.01) for _ in range(3)])
    yield "pangu_2.6B x 3, overlapping", side_by_side(rng, [pangu] * 3, overlap=3000)


def run(name: str, columns: Columns, limit: float, seeds: int) -> dict[str, object]:
    """Plan an instance with some seeds and print a line."""
    intervals = IntervalSet(columns.start, columns.end, columns.size)
    gaps, walls, busies = [], [], []
    for seed in range(seeds):
        wall, busy = time.perf_counter(), time.process_time()
        normalized = normalize(intervals)
        found = hot_core(normalized.problem, Clock.for_seconds(limit), seed=seed)
        walls.append(time.perf_counter() - wall)
        busies.append(time.process_time() - busy)
        offsets = normalized.expand(found, intervals)
        assert find_clash(columns.start, columns.end, offsets, offsets + columns.size) is None
        gaps.append(int((offsets + columns.size).max()) / intervals.load - 1)
    row = {
        "instance": name,
        "intervals": len(columns),
        "load_bytes": intervals.load,
        "worst_gap": max(gaps),
        "median_s": round(median(walls), 3),
        "median_busy_s": round(median(busies), 3),
        "worst_busy_s": round(max(busies), 3),
        "seeds": seeds,
        "idealloc": IDEALLOC.get(name, ""),
    }
    print(
        f"{name:34} {len(columns):6} worst gap {max(gaps):8.4%} median {row['median_s']:7.2f} s"
        f" (busy {row['median_busy_s']:6.2f}, worst {row['worst_busy_s']:6.2f})  {row['idealloc']}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rows = [run(name, read(SHARED / f"{name}.csv"), given.limit, given.seeds) for name in REAL]
    rows += [run(name, columns, given.limit, given.seeds) for name, columns in larger()]
    write_results("planner_search_core", {"limit_s": given.limit, "rows": rows})


if __name__ == "__main__":
    main()
