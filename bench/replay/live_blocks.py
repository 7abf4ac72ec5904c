"""Latency against the number of live blocks: is it flat?

Run with ``python bench/replay/live_blocks.py``; writes bench/results/live_blocks.json. A pool on a model
device is filled with N live blocks of mixed sizes, then three things are timed, each a pair of `malloc`
and `free` in steady state:

* cached: a size that was freed before, the quick path;
* churn: free a random live block, request one of a size drawn from 1,000: what a program does;
* search: sizes that were never asked for before, so that every request searches the arenas.

Microseconds a pair: the median and the 99th percentile of single pairs, and the median of REPEAT means.
The floor is one pop and one append on a dict of lists behind two function calls, in the same process.
"""

from __future__ import annotations

import random
import sys
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter_ns

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import floor_us, write_results

from smartpool.driver import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager

COUNTS = (100, 1_000, 10_000, 100_000, 1_000_000)
PAIRS = 2_000
REPEAT = 9
SEED = 20_260_101
FRESH_SIZES = count(600, 7)


def filled(blocks):
    """Return a manager with `blocks` live blocks and a like number freed among them, and their pointers."""
    rng = random.Random(SEED)
    sizes = [int(512 * 2 ** rng.uniform(0, 9)) for _ in range(1000)]
    manager = AdvancedMemoryPoolManager(ModelDriver(1 << 46))
    pointers = [manager.malloc(rng.choice(sizes)) for _ in range(2 * blocks)]
    rng.shuffle(pointers)
    for pointer in pointers[blocks:]:
        manager.free(pointer)
    manager.flush()  # what was freed becomes gaps between live blocks
    return manager, pointers[:blocks], sizes, rng


def cached(manager, *_):
    manager.free(manager.malloc(4096))
    return [lambda: manager.free(manager.malloc(4096))] * PAIRS


def churn(manager, pointers, sizes, rng):
    def pair(place, size):
        manager.free(pointers[place])
        pointers[place] = manager.malloc(size)

    return [partial(pair, rng.randrange(len(pointers)), rng.choice(sizes)) for _ in range(PAIRS)]


def search(manager, *_):
    def pair(size):
        manager.free(manager.malloc(size))

    return [partial(pair, next(FRESH_SIZES)) for _ in range(PAIRS)]


KINDS = {"cached": cached, "churn": churn, "search": search}


def clocked(pairs):
    """Return the nanoseconds of each pair."""
    single = []
    for pair in pairs:
        begin = perf_counter_ns()
        pair()
        single.append(perf_counter_ns() - begin)
    return single


def main():
    clock = median(clocked([lambda: None] * 20_000))
    floor = floor_us()
    rows = []
    print(f"floor {floor:.3f} us, clock {clock} ns (taken off)")
    print(f"{'live blocks':>12} " + " ".join(f"{kind:>8} {'p99':>8}" for kind in KINDS) + "   us a pair")
    for blocks in COUNTS:
        manager, pointers, sizes, rng = filled(blocks)
        row = {"live_blocks": blocks}
        for kind, pairs in KINDS.items():
            single = [clocked(pairs(manager, pointers, sizes, rng)) for _ in range(REPEAT)]
            means = [sum(part) / len(part) for part in single]
            every = sorted(value for part in single for value in part)
            row[kind] = {
                "mean_us": (median(means) - clock) / 1e3,
                "median_us": (every[len(every) // 2] - clock) / 1e3,
                "p99_us": (every[int(len(every) * 0.99)] - clock) / 1e3,
            }
        rows.append(row)
        cells = (f"{row[kind]['median_us']:8.2f} {row[kind]['p99_us']:8.2f}" for kind in KINDS)
        print(f"{blocks:12,} " + " ".join(cells), flush=True)
        manager.check()
        manager.close()
    print(write_results("live_blocks", {"floor_us": floor, "clock_ns": clock, "rows": rows}))


if __name__ == "__main__":
    main()
