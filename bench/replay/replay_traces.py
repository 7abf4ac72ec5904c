"""SmartPool on every shared trace: operations a second, where the time goes, and the memory it takes.

Run with ``python bench/replay/replay_traces.py``; writes bench/results/replay_traces.json. Each trace is
replayed by each policy in a process of its own on ``model:141GiB``, all on one stream. Columns:

* ops/s, us/op: wall time of the replay, median of REPEAT, with the spread (fastest to slowest);
* loop, model, pool: where that wall time goes, in us/op: the replay's loop, the model device's own
  bookkeeping in Python (which no GPU would spend), and the rest, which is the pool. The model's part is
  measured in a replay of its own, by a clock around every driver call, and the clock's cost taken off;
* driver: what the driver calls would have taken on an H200, by the model's table, in us/op;
* share: pool / (pool + driver), the pool's own share of an operation on the GPU;
* RSS: peak resident memory of the process, and by how much the replay raised it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_results

from smartpool.driver import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace.replay import loop_seconds, replay
from smartpool.trace.targets import PoolTarget, open_target
from smartpool.trace.trace import Trace

TRACES = Path(__file__).parents[2] / "tests" / "data" / "traces"
DEVICE = "model:141GiB"
POLICIES = ("balanced", "tight", "fast")
REPEAT = 3


@dataclass
class Clock:
    """Time spent in calls that it wraps, nested calls counted once."""

    seconds: float = 0.0
    calls: int = 0
    inside: bool = False

    def around(self, function):
        def timed(*args, **options):
            if self.inside:
                return function(*args, **options)
            self.inside = True
            self.calls += 1
            start = perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += perf_counter() - start
                self.inside = False

        return timed


DRIVER_CALLS = (
    "memory_info", "allocate", "free", "reserve", "unreserve", "create_chunk", "release_chunk",
    "map_chunk", "enable_access", "unmap", "record_event", "event_done", "wait_event",
    "synchronize_event", "synchronize", "create_event", "destroy_event",
)  # fmt: skip


def model_bookkeeping(trace, policy):
    """Seconds of a replay that the model device's own Python code takes."""
    driver, clock = ModelDriver(141 << 30), Clock()
    for call in DRIVER_CALLS:
        setattr(driver, call, clock.around(getattr(driver, call)))
    with open_target("smartpool", DEVICE, policy=policy) as target:
        config = target.manager.config
    replay(trace, PoolTarget(AdvancedMemoryPoolManager(driver, config)))
    empty = Clock()
    nothing = empty.around(lambda: None)
    for _ in range(10_000):
        nothing()
    return max(0.0, clock.seconds - clock.calls * empty.seconds / empty.calls)


def peak_rss_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name, policy):
    trace = Trace.load(TRACES / f"{name}.npz")
    before, runs = peak_rss_mib(), []
    for _ in range(REPEAT):
        with open_target("smartpool", DEVICE, policy=policy) as target:
            runs.append(replay(trace, target))
    peak = peak_rss_mib()
    wall = sorted(run.microseconds_per_operation for run in runs)
    loop = median(loop_seconds(trace) for _ in range(REPEAT)) / trace.events * 1e6
    model = median(model_bookkeeping(trace, policy) for _ in range(3)) / trace.events * 1e6
    driver = runs[0].driver_seconds / trace.events * 1e6
    pool = max(0.0, median(wall) - loop - model)
    return {
        "trace": name,
        "policy": policy,
        "events": trace.events,
        "operations_per_second": round(1e6 / median(wall)),
        "us_per_operation": median(wall),
        "us_fastest": wall[0],
        "us_slowest": wall[-1],
        "us_loop": loop,
        "us_model_bookkeeping": model,
        "us_pool": pool,
        "us_driver": driver,
        "pool_share": pool / (pool + driver),
        "fragmentation": runs[0].fragmentation,
        "driver_milliseconds": runs[0].driver_seconds * 1e3,
        "driver_calls": dict(runs[0].driver_calls),
        "peak_rss_mib": peak,
        "rss_growth_mib": peak - before,
    }


def main():
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    rows = []
    print(HEAD)
    for path in sorted(TRACES.glob("*.npz")):
        for policy in POLICIES:
            command = [sys.executable, __file__, path.stem, policy]
            row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            rows.append(row)
            print(line(row), flush=True)
    print(write_results("replay_traces", rows))


HEAD = (
    f"{'trace':18} {'policy':9} {'ops/s':>9} {'us/op':>6} {'spread':>13} {'loop':>5} {'model':>6} "
    f"{'pool':>6} {'driver':>7} {'share':>6} {'frag':>6} {'driver ms':>9} {'RSS MiB':>8} {'grew':>5}"
)


def line(row):
    spread = f"{row['us_fastest']:.2f}-{row['us_slowest']:.2f}"
    return (
        f"{row['trace']:18} {row['policy']:9} {row['operations_per_second']:9,} "
        f"{row['us_per_operation']:6.2f} {spread:>13} {row['us_loop']:5.2f} "
        f"{row['us_model_bookkeeping']:6.2f} {row['us_pool']:6.2f} {row['us_driver']:7.2f} "
        f"{row['pool_share']:6.1%} {row['fragmentation']:6.1%} {row['driver_milliseconds']:9.1f} "
        f"{row['peak_rss_mib']:8.0f} {row['rss_growth_mib']:5.1f}"
    )


if __name__ == "__main__":
    main()
