"""The first pass of a second run: what is left of the driver's time when an earlier run left a profile.

Run: python bench/second_run.py. Writes bench/results/second_run.json.

Each recorded trace is played twenty times on a model of the device, and what the pool learned is kept. A
fresh pool makes it again, as the mapper's thread would, and plays the trace; milliseconds of the driver are
the model's, from measured prices. "left" is what the caller's thread spends in it in that pass.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from common import write_results

from smartpool.driver import open_driver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import read_any
from smartpool.trace.replay import replay
from smartpool.trace.targets import PoolTarget

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
DEVICE = "model:141GiB"
PASSES = 20


def main():
    rows = []
    print(f"{'trace':18} {'first':>7} {'20th':>6} {'left':>6} {'ahead':>7} ms of the driver")
    for path in sorted(TRACES.glob("*.npz")):
        trace = read_any(path)
        pool = AdvancedMemoryPoolManager(open_driver(DEVICE))
        run = replay(trace, PoolTarget(pool), passes=PASSES)
        profile = pool.maintenance.learned()
        pool.close()

        pool = AdvancedMemoryPoolManager(open_driver(DEVICE))
        pool.maintenance.restore(profile)
        while pool.maintenance.map_ahead():
            pass
        ahead = pool.driver.seconds
        again = replay(trace, PoolTarget(pool), passes=2)
        left = again.by_pass[0].driver_seconds - ahead
        pool.close()
        row = {
            "trace": path.stem,
            "chunks": len(profile.chunks),
            "windows": len(profile.windows),
            "first_ms": 1e3 * run.by_pass[0].driver_seconds,
            "last_ms": 1e3 * run.by_pass[-1].driver_seconds,
            "left_ms": 1e3 * left,
            "ahead_ms": 1e3 * ahead,
            "peak_reserved_bytes": [run.peak_reserved_bytes, again.peak_reserved_bytes],
        }
        rows.append(row)
        print(
            f"{path.stem:18} {row['first_ms']:7.2f} {row['last_ms']:6.2f} {row['left_ms']:6.2f} "
            f"{row['ahead_ms']:7.2f}",
            flush=True,
        )
    left = fmean(row["left_ms"] for row in rows)
    print(f"mean left {left:.2f} ms of {fmean(row['first_ms'] for row in rows):.1f}")
    print(write_results("second_run", {"passes": PASSES, "mean_left_ms": left, "rows": rows}))


if __name__ == "__main__":
    main()
