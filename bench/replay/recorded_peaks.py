"""Every baseline on every trace, beside the peak reserved that the real allocator showed.

Run with ``python bench/replay/recorded_peaks.py``; writes bench/results/recorded_peaks.json. The peers
were recorded on one H200 (driver 580, CUDA 13.0; PyTorch 2.11, CuPy 14.2, RMM 26.10).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_results

from smartpool.driver import open_driver
from smartpool.trace.baselines import BASELINES, make_baseline
from smartpool.trace.replay import replay
from smartpool.trace.trace import Trace

DATA = Path(__file__).parents[2] / "tests" / "data"
PEER_OF = {
    "pytorch": "torch",
    "pytorch-expandable": "torch:expandable_segments:True",
    "pytorch-max-split-128": "torch:max_split_size_mb:128",
    "pytorch-roundup-8": "torch:roundup_power2_divisions:8",
    "cupy": "cupy",
    "rmm": "rmm_pool",
    "driver-pool": "driver_pool",
}


def main():
    lines = (DATA / "anchors" / "peers_replay_h200.jsonl").read_text().splitlines()
    recorded = {(row["peer"], row["trace"]): row["peak_reserved"] for row in map(json.loads, lines)}
    rows = []
    print(f"{'baseline':22} {'trace':18} {'modeled MiB':>13} {'recorded MiB':>13} {'residue':>9}")
    for path in sorted((DATA / "traces").glob("*.npz")):
        trace = Trace.load(path)
        for name in BASELINES:
            run = replay(trace, make_baseline(name, open_driver("model:141GiB")))
            peak, real = run.peak_reserved_bytes, recorded[PEER_OF[name], trace.name]
            residue = peak / real - 1
            rows.append(
                {
                    "baseline": name,
                    "trace": trace.name,
                    "modeled": peak,
                    "recorded": real,
                    "residue": residue,
                    "us_per_operation": run.microseconds_per_operation,
                }
            )
            sizes = f"{peak / 2**20:13,.1f} {real / 2**20:13,.1f}"
            print(f"{name:22} {trace.name:18} {sizes} {residue:+9.3%}", flush=True)
    exact = sum(row["modeled"] == row["recorded"] for row in rows)
    print(f"{exact} of {len(rows)} to the byte; worst {max(abs(row['residue']) for row in rows):.3%}")
    print(write_results("recorded_peaks", rows))


if __name__ == "__main__":
    main()
