"""What the pool reserves and asks of the driver on nine traces, held against what is stored.

Run: python bench/golden.py --check      all traces, policies and passes; status 1 where any differs
     python bench/golden.py --write      after a change of policy: store the figures anew
     python bench/golden.py --check --traces dataframe-mix,llama-train --passes 5

Every block of every pass is checked on the way: it lies in mapped memory, and no other live block has a
byte of it. The suite does the same with short traces and few passes (`tests/golden`).
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden" / "kit"))

from golden import PASSES, POLICY_NAMES, TRACES, differences, measured, write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare with what is stored")
    what.add_argument("--write", action="store_true", help="store what is measured; all traces and passes")
    parser.add_argument("--traces", default=",".join(TRACES), help="with --check: which (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--passes", type=int, default=max(PASSES), choices=PASSES)
    arguments = parser.parse_args()
    names = list(TRACES) if arguments.write else arguments.traces.split(",")
    passes = max(PASSES) if arguments.write else arguments.passes
    cases = [(name, policy) for name in names for policy in POLICY_NAMES]
    figures, found = {name: {} for name in names}, []
    with ProcessPoolExecutor(max_workers=arguments.jobs) as workers:
        measuring = [workers.submit(measured, *case, passes) for case in cases]
        for (name, policy), rows in zip(cases, (one.result() for one in measuring), strict=True):
            figures[name][policy] = rows
            wrong = [] if arguments.write else differences(name, policy, rows)
            peaks = " ".join(f"{row['peak_reserved_bytes'] / 2**30:7.3f}" for row in rows.values())
            print(f"{name:30} {policy:9} {peaks} GiB{' differs' if wrong else ''}", flush=True)
            found += wrong
    if arguments.write:
        write(figures)
    print("\n".join(found))
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
