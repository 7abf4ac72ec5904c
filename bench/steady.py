"""Memory and driver calls as a program repeats its work: the first pass, the fifth and the twentieth.

Run: python bench/steady.py [--vary] [--more FOLDER] [--traces NAMES] [--allocators NAMES] [--jobs N]

Each trace is played again and again in one allocator, on a model of the device; what is live at the end of
a pass is freed there. SmartPool has three rows, its policies; the peers are models, checked against what
the real ones reserved. With --vary the passes differ, too: from the second on, all sizes from 64 KiB up
are scaled by one number a pass, drawn from 0.6 to 1 with a fixed seed, as batches differ in a program.
--more takes all traces of a folder into a table of their own. Writes bench/results/steady.json.

Fragmentation "after 5" is 1 - peak live / peak reserved, the peaks over the first five passes.
"""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import numpy as np
from common import write_results

from smartpool.trace import read_any
from smartpool.trace.replay import replay_passes
from smartpool.trace.targets import open_target
from smartpool.trace.trace import Trace

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
DEVICE = "model:141GiB"
SHOWN = (1, 5, 20)
ALLOCATORS = (
    "smartpool:tight", "smartpool:balanced", "smartpool:fast",
    "pytorch", "pytorch-expandable", "cupy", "rmm", "driver-pool",
)  # fmt: skip
SETTLED = 3  # passes from which on nothing new should be learned
SEED = 5
LEAST_SCALED = 64 << 10
GRAIN = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=max(SHOWN))
    parser.add_argument("--vary", action="store_true", help="play passes that differ, too")
    parser.add_argument("--more", type=Path, metavar="FOLDER", help="traces for a table of their own")
    parser.add_argument("--traces", metavar="NAMES", help="which of the recorded traces (default: all nine)")
    parser.add_argument("--allocators", default=",".join(ALLOCATORS), metavar="NAMES")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--dry", action="store_true", help="write no results")
    arguments = parser.parse_args()
    wanted = arguments.traces.split(",") if arguments.traces else None
    paths = [path for path in sorted(TRACES.glob("*.npz")) if wanted is None or path.stem in wanted]
    sets = {"recorded": paths}
    if arguments.more is not None:
        sets["more"] = sorted(path for path in arguments.more.iterdir() if path.is_file())
    allocators = arguments.allocators.split(",")
    results: dict[str, object] = {"device": DEVICE, "passes": arguments.passes}
    with ProcessPoolExecutor(max_workers=arguments.jobs) as workers:
        for title, files in sets.items():
            for vary in (False, True)[: 1 + arguments.vary]:
                name = f"{title}, {'sizes that change' if vary else 'equal passes'}"
                rows = [(path, allocator) for allocator in allocators for path in files]
                playing = [workers.submit(played, *row, arguments.passes, vary=vary) for row in rows]
                results[name] = told(name, [one.result() for one in playing])
    if not arguments.dry:
        print(write_results("steady", results))


def played(path: Path, allocator: str, passes: int, *, vary: bool) -> dict[str, object]:
    """Return what one allocator did with one trace."""
    trace = read_any(path)
    traces = list(varied(trace, passes)) if vary else [trace] * passes
    name, _, policy = allocator.partition(":")
    with open_target(name, DEVICE, policy=policy or "balanced") as target:
        run = replay_passes(traces, target)
    reserved = list(accumulate((one.peak_reserved_bytes for one in run.by_pass), max))
    live = list(accumulate((trace.peak_live_bytes for trace in traces), max))
    milliseconds = [one.driver_seconds * 1e3 for one in run.by_pass]
    calls = [sum(one.driver_calls.values()) for one in run.by_pass]
    seconds = [one.seconds for one in run.by_pass]
    return {
        "trace": path.stem,
        "allocator": allocator,
        "failed_requests": run.failed_requests,
        "fragmentation": {
            number: round(1 - live[number - 1] / reserved[number - 1], 5)
            for number in sorted({*SHOWN, passes})
            if number <= passes
        },
        "driver_ms": [round(value, 3) for value in (milliseconds[0], later(milliseconds), milliseconds[-1])],
        "driver_calls": [round(value, 1) for value in (calls[0], later(calls), calls[-1])],
        "us_per_operation": [
            round(value / trace.events * 1e6, 3) for value in (seconds[0], later(seconds), seconds[-1])
        ],
    }


def later(values: list[float]) -> float:
    """Return the mean over the passes that should have settled; over the last where there are few."""
    return fmean(values[SETTLED:] or values[-1:])


def varied(trace: Trace, passes: int):
    """Yield the trace, and then passes of the same events with all large sizes scaled."""
    dice = random.Random(SEED)
    yield trace
    columns = trace.columns()
    for _ in range(passes - 1):
        scaled = (trace.size * dice.uniform(0.6, 1)).astype(np.int64) // GRAIN * GRAIN
        size = np.where(trace.size >= LEAST_SCALED, scaled, trace.size)
        yield Trace(trace.name, **{**columns, "size": size}, meta=trace.meta)


def told(title: str, rows: list[dict]) -> dict[str, object]:
    """Print the table of one set and return its rows with the means."""
    numbers = list(rows[0]["fragmentation"])
    print(f"\n{title}: {len({row['trace'] for row in rows})} traces")
    head = " ".join(f"{f'after {number}':>9} {'worst':>6}" for number in numbers)
    print(f"{'':20} {head}  {'driver ms: first':>16} {'later':>7} {'last':>7} {'calls: last':>12}")
    summary = {}
    for allocator in dict.fromkeys(row["allocator"] for row in rows):
        own = [row for row in rows if row["allocator"] == allocator]
        wastes = {number: [row["fragmentation"][number] for row in own] for number in numbers}
        mean = {number: round(fmean(values), 5) for number, values in wastes.items()}
        worst = {number: max(values) for number, values in wastes.items()}
        driver = [round(fmean(row["driver_ms"][place] for row in own), 3) for place in range(3)]
        calls = [round(fmean(row["driver_calls"][place] for row in own), 1) for place in range(3)]
        summary[allocator] = {"mean": mean, "worst": worst, "driver_ms": driver, "driver_calls": calls}
        cells = " ".join(f"{mean[number]:9.2%} {worst[number]:6.1%}" for number in numbers)
        first, settled, last = driver
        print(f"{allocator:20} {cells}  {first:16.2f} {settled:7.2f} {last:7.2f} {calls[2]:12.0f}")
    return {"traces": rows, "summary": summary}


if __name__ == "__main__":
    main()
