"""What the live page costs: the price of a frame, and what a program feels of being looked at.

Predicted: served but not looked at, nothing; looked at, at most a fifth of one core.

    python bench/live.py
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time

from common import write_results

import smartpool
from smartpool.live import LiveView
from smartpool.units import KiB

BLOCKS = (100, 1_000, 10_000, 100_000)
CELLS = 13_000
ROUNDS = 9
PAIRS = 100_000


def frame_cost(blocks: int) -> dict[str, float]:
    with smartpool.SmartPool("model:80GiB") as pool:
        held = [pool.malloc((1 + number % 97) * 4 * KiB) for number in range(blocks)]
        for pointer in held[::3]:
            pool.free(pointer)
        view = LiveView(pool)
        seconds, size = [], 0
        for _ in range(ROUNDS if blocks < 100_000 else 3):
            time.sleep(0.11)  # beyond the time for which a frame's data is shared
            begun = time.perf_counter()
            frame = view.frame({"device": 0, "first": 0, "last": None, "cells": CELLS, "after": 0})
            seconds.append(time.perf_counter() - begun)
            size = len(str(frame))
        for number, pointer in enumerate(held):
            if number % 3:
                pool.free(pointer)
    return {"blocks": blocks, "milliseconds": 1e3 * statistics.median(seconds), "kilobytes": size / 1000}


def pair_nanoseconds(pool: smartpool.SmartPool) -> float:
    malloc, free = pool.malloc, pool.free
    free(malloc(4096))
    begun = time.perf_counter()
    for _ in range(PAIRS):
        free(malloc(4096))
    return 1e9 * (time.perf_counter() - begun) / PAIRS


def felt() -> dict[str, float]:
    """Return the median price of a cached pair: bare, served, and looked at, interleaved."""
    times: dict[str, list[float]] = {"bare": [], "served": [], "looked_at": []}
    with smartpool.SmartPool("model:80GiB") as pool:
        held = [pool.malloc((1 + number % 97) * 4 * KiB) for number in range(1000)]
        for _ in range(ROUNDS):
            times["bare"].append(pair_nanoseconds(pool))
            with pool.serve():
                times["served"].append(pair_nanoseconds(pool))
                stop = threading.Event()
                looker = threading.Thread(target=_look, args=(pool, stop))
                looker.start()
                times["looked_at"].append(pair_nanoseconds(pool))
                stop.set()
                looker.join()
        for pointer in held:
            pool.free(pointer)
    return {name: statistics.median(values) for name, values in times.items()}


def _look(pool: smartpool.SmartPool, stop: threading.Event) -> None:
    """Ask as the page asks: four times a second, or rarer when a frame takes longer."""
    view = LiveView(pool)
    while not stop.is_set():
        frame = view.frame({"device": 0, "first": 0, "last": None, "cells": CELLS, "after": 0})
        stop.wait(max(0.25, 5 * frame["seconds"]) - frame["seconds"])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    frames = [frame_cost(blocks) for blocks in BLOCKS]
    for cost in frames:
        print(
            f"{cost['blocks']:>8,} blocks: {cost['milliseconds']:8.1f} ms a frame, {cost['kilobytes']:.0f} kB"
        )
    pairs = felt()
    for name, nanoseconds in pairs.items():
        print(
            f"malloc and free, {name:<10} {nanoseconds:7.1f} ns   {nanoseconds / pairs['bare']:.3f} of bare"
        )
    write_results("live", {"frames": frames, "pair_nanoseconds": pairs})


if __name__ == "__main__":
    main()
