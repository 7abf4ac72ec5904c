"""How fast the kit finds each planted bug: programs and seconds needed, over several seeds.

    python bench/testing.py [seeds]

A row for each bug of `toys` and `stream_toys` in `tests/kit`, in the default budget of programs (the
budget of time is lifted, so that a busy machine changes no row). "found" counts the seeds that found it under
the right name; a search that finds nothing, or another name, counts as missed. Seconds are of the processor,
shortening included.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from common import write_results

from smartpool.driver.cpu import CpuDriver
from smartpool.testing import Invariant, ViolationError, check_allocator, check_stream_order

sys.path.append(str(Path(__file__).parents[1] / "tests" / "kit"))

from stream_toys import STREAM_PLANTED, StreamToy
from toys import CAPACITY, PLANTED, ToyPool

TOY = {
    "capacity": CAPACITY,
    "alignment": 16,
    "zero_size": "distinct",
    "accounting": "figures",
    "check": "check",
    "trim": "trim",
    "read": "read",
    "write": "write",
    "seconds": 600.0,
}
STREAMS = {
    "capacity": CAPACITY,
    "alignment": 512,
    "zero_size": "distinct",
    "record_stream": "record_stream",
    "close": "close",
    "seconds": 600.0,
}


def host():
    return CpuDriver(capacity=1 << 20)


def hunts():
    """Yield what is hunted: name, what it breaks, and the search as a function of the seed."""
    for planted in PLANTED:
        options = {**TOY, **planted.options}
        yield (
            planted.name,
            planted.breaks,
            lambda seed, planted=planted, options=options: check_allocator(planted.bug, seed=seed, **options),
        )
    for bug in STREAM_PLANTED:
        for by, driver in (("events", "model:64MiB"), ("bytes", host)):
            yield (
                f"{bug.__name__}, by {by}",
                Invariant.STREAM_ORDER,
                (
                    lambda seed, bug=bug, by=by, driver=driver: check_stream_order(
                        bug, driver=driver, by=by, seed=seed, **STREAMS
                    )
                ),
            )


def row(name, breaks, search, seeds):
    found, whole = [], []
    for seed in range(seeds):
        begin = time.process_time()
        try:
            search(seed)
        except ViolationError as error:
            if error.invariant is breaks:
                found.append((error.found.examples, len(error.program)))
        whole.append(time.process_time() - begin)
    programs, steps = zip(*found, strict=True) if found else ((), ())
    return {
        "bug": name,
        "breaks": breaks.value,
        "found": len(found),
        "seeds": seeds,
        "programs": statistics.median(programs) if found else None,
        "programs_worst": max(programs, default=None),
        "cpu_seconds": round(statistics.median(whole), 3),
        "steps": statistics.median(steps) if found else None,
    }


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows = []
    print("| bug | breaks | found | programs, median (worst) | CPU seconds | steps left |")
    print("|---|---|---|---|---|---|")
    for name, breaks, search in hunts():
        each = row(name, breaks, search, seeds)
        rows.append(each)
        needed = f"{each['programs']:g} ({each['programs_worst']})" if each["found"] else "-"
        steps = f"{each['steps']:g}" if each["found"] else "-"
        print(
            f"| {name} | {breaks.value} | {each['found']} of {seeds} | {needed} "
            f"| {each['cpu_seconds']:.2f} | {steps} |",
            flush=True,
        )
    sound = []
    for name, search in (
        ("ToyPool", lambda seed: check_allocator(ToyPool, seed=seed, **TOY)),
        ("StreamToy", lambda seed: check_stream_order(StreamToy, driver="model:64MiB", seed=seed, **STREAMS)),
    ):
        begin = time.process_time()
        reports = [search(seed) for seed in range(seeds)]
        seconds = round((time.process_time() - begin) / seeds, 2)
        steps = statistics.median(report.steps for report in reports)
        sound.append({"pool": name, "seeds": seeds, "cpu_seconds": seconds, "steps": steps})
        print(f"| {name}, sound | | passes | {reports[0].examples} | {seconds:.2f} | {steps:g} |", flush=True)
    print(write_results("testing", {"bugs": rows, "sound": sound}))


if __name__ == "__main__":
    main()
