"""How low and how fast: the planner on published, recorded and made instances, with the peers' figures.

python bench/planner/planner.py [PART ...] [--seeds N] [--repeat N]

Every plan is checked by the independent validator, outside of the time. The peers' figures were measured
on a machine of the same kind (2 cores): MiniMalloc (C++) by seconds to fit the capacity, idealloc (Rust) by
its height over the load. Published instances and traces are read from $SMARTPOOL_SHARED.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from common import floor_us, write_results
from instances import (
    GRAPHS,
    HARD,
    SHARED,
    cut,
    graph,
    hard,
    random_intervals,
    repeated,
    tiling,
    trace,
    trace_names,
)
from search_instances import larger

from smartpool.planner import IntervalSet, Plan, solve, validate

CAPACITY = 1 << 20
MINIMALLOC_S = {"A": 5.2, "B": 3.9, "C": 0.9, "D": 3.2, "E": 4.4, "F": 6.3}
IDEALLOC = {
    "iree_mobilebert": "fails",
    "G_1": "+0.28 %, 0.02 s",
    "resnet50": "+0.64 %, 0.03 s",
    "tiny_bert": "+0.08 %, 0.04 s",
    "bert_base": "+0.001 %, 0.4 s",
    "pangu_2.6B": "+3.34 %, 1.7 s",
}


def measure(
    intervals: IntervalSet, *, seed: int = 0, capacity: int | None = None, time_limit: float = 60.0
) -> tuple[Plan, list[list[float]]]:
    """Plan once, validate, and return the plan with the steps on the way: seconds and gap."""
    steps: list[list[float]] = []
    began = time.perf_counter()
    plan = solve(
        intervals,
        capacity=capacity,
        seed=seed,
        time_limit=time_limit,
        progress=lambda better: steps.append([round(better.seconds, 3), better.gap]),
    )
    seconds = time.perf_counter() - began
    assert validate(intervals, plan.offsets) == plan.height
    steps.append([round(seconds, 3), plan.gap])
    return plan, steps


def row(name: str, intervals: IntervalSet, plans: list[Plan], peer: str, **more: object) -> dict[str, object]:
    seconds = [plan.seconds for plan in plans]
    worst = max(plan.gap for plan in plans)
    print(
        f"{name:26} {len(intervals):>9,} {statistics.median(seconds):8.3f} s {max(seconds):8.3f} s "
        f"{worst:10.5%} {sum(plan.proved_optimal for plan in plans)}/{len(plans)} optimal  {peer}",
        flush=True,
    )
    return {
        "instance": name,
        "intervals": len(intervals),
        "load_bytes": plans[0].load,
        "seconds": [round(second, 4) for second in seconds],
        "median_s": round(statistics.median(seconds), 4),
        "worst_gap": worst,
        "proved_optimal": sum(plan.proved_optimal for plan in plans),
        "methods": sorted({plan.method for plan in plans}),
        "peer": peer,
        **more,
    }


def run_hard(seeds: int) -> list[dict[str, object]]:
    rows = []
    for name in HARD:
        intervals = hard(name)
        plans = [measure(intervals, seed=seed, capacity=CAPACITY)[0] for seed in range(seeds)]
        fits = sum(plan.height <= CAPACITY for plan in plans)
        rows.append(row(name, intervals, plans, f"MiniMalloc {MINIMALLOC_S[name]} s", fits=fits))
    return rows


def run_variants(seeds: int) -> list[dict[str, object]]:
    made: list[tuple[str, IntervalSet]] = []
    for name in HARD:
        for at in range(seeds):
            for in_time in (False, True):
                what = "time" if in_time else "size"
                made.append(
                    (f"{name} cut in {what} {at}", cut(hard(name), in_time=in_time, share=0.3, seed=at))
                )
    made += [(f"tiling of {n} {at}", tiling(n, seed=at)) for n in (100, 200, 400) for at in range(seeds)]
    rows = []
    for name, intervals in made:
        plan, _ = measure(intervals, capacity=CAPACITY, time_limit=30.0)
        rows.append(row(name, intervals, [plan], "", fits=int(plan.height <= CAPACITY)))
    fitting = sum(bool(each["fits"]) for each in rows)
    print(f"{fitting} of {len(rows)} fit within 30 s each")
    return rows


def run_several(
    names: Iterable[str], make: Callable[[str], IntervalSet], repeat: int, peers: dict[str, str]
) -> list[dict[str, object]]:
    rows = []
    for name in names:
        intervals = make(name)
        plans = [measure(intervals)[0] for _ in range(repeat)]
        rows.append(row(name, intervals, plans, f"idealloc {peers[name]}" if name in peers else ""))
    return rows


def run_million() -> list[dict[str, object]]:
    million = 1_000_000
    cases: list[tuple[str, Callable[[], IntervalSet], float]] = [
        ("resnet50 x960", lambda: repeated("resnet50", 960), 40),
        ("resnet50 x960, jitter", lambda: repeated("resnet50", 960, jitter=3), 40),
        ("resnet50 x960, overlapping", lambda: repeated("resnet50", 960, overlap=100), 40),
        ("pangu_2.6B x54", lambda: repeated("pangu_2.6B", 54), 120),
    ]
    for lifetimes, live, sizes in (
        ("exponential", 300, "uniform"),
        ("uniform", 300, "uniform"),
        ("uniform", 100, "aligned"),
        ("exponential", 300, "logarithmic"),
        ("uniform", 300, "powers"),
        ("exponential", 3000, "uniform"),
    ):
        cases.append(
            (
                f"{lifetimes}, {live} live, {sizes}",
                lambda live=live, lifetimes=lifetimes, sizes=sizes: random_intervals(
                    million, live=live, lifetimes=lifetimes, sizes=sizes
                ),
                40,
            )
        )
    rows = []
    for name, make, time_limit in cases:
        intervals = make()
        plan, steps = measure(intervals, time_limit=time_limit)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        within = next((seconds for seconds, gap in steps if gap <= 0.001), None)
        print(f"  first plan {steps[0][0]:.1f} s, within 0.1 % {within} s, memory {rss:.2f} GiB so far")
        rows.append(
            row(
                name,
                intervals,
                [plan],
                "",
                first_plan_s=steps[0][0],
                within_0_1_percent_s=within,
                rss_gib=rss,
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("hard", "variants", "graphs", "traces", "larger", "million")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="which tables (default: all)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    print(f"floor of this machine: {floor_us():.3f} us")
    print(f"{'instance':26} {'intervals':>9} {'median':>10} {'worst':>10} {'over load':>10}")
    for part in args.parts or parts:
        if part == "hard":
            rows = run_hard(args.seeds)
        elif part == "variants":
            rows = run_variants(args.seeds)
        elif part == "graphs":
            rows = run_several(GRAPHS, graph, args.repeat, IDEALLOC)
        elif part == "traces":
            rows = run_several(trace_names(), trace, args.repeat, {})
        elif part == "larger":
            made = {name: IntervalSet(c.start, c.end, c.size) for name, c in larger(SHARED / "planner")}
            rows = run_several(made, made.__getitem__, 1, {})
        else:
            rows = run_million()
        print(write_results(f"planner_{part}", rows))


if __name__ == "__main__":
    main()
