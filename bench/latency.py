"""Latency of one request and its free, against a floor in the same run; import and first allocation.

The floor is one pop and one append on a dict of lists behind two Python function calls. Rounds are
interleaved, each gives a ratio to the floor of the same round, and the median of the ratios counts:
that is what another machine can be compared by.

Run: python bench/latency.py [--device cpu] [--rounds 25]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable

from common import write_results

import smartpool

NUMBER = 50_000


def pairs(pool: smartpool.SmartPool) -> dict[str, Callable[[], timeit.Timer]]:
    """Return what is timed: statement by name."""
    lists = {512: [1, 2, 3]}

    def take(size: int) -> int:
        return lists[size].pop()

    def give(size: int, pointer: int) -> None:
        lists[size].append(pointer)

    stream = pool.managers[0].driver.create_stream()
    for size in (512, 1 << 20, 64 << 20):
        pool.free(pool.malloc(size))
        pool.free(pool.malloc(size, stream))
    names = {
        "take": take, "give": give, "malloc": pool.malloc, "free": pool.free, "allocate": pool.allocate,
        "empty": pool.empty, "stream": stream, "shape": (16, 8),
    }  # fmt: skip
    statements = {
        "floor": "give(512, take(512))",
        "malloc + free, 512 B": "free(malloc(512))",
        "malloc + free, 1 MiB": "free(malloc(1048576))",
        "malloc + free, 64 MiB": "free(malloc(67108864))",
        "malloc + free on a stream": "free(malloc(512, stream))",
        "allocate + drop of a Buffer": "allocate(512)",
        "empty(shape, dtype) + drop": "empty(shape, 'float32')",
    }
    return {name: timeit.Timer(statement, globals=names) for name, statement in statements.items()}


def measure(device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return microseconds and floors, by median over rounds, for each pair."""
    with smartpool.SmartPool(device) as pool:
        timers = pairs(pool)
        took: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(rounds):
            for name, timer in timers.items():
                took[name].append(timer.timeit(NUMBER) / NUMBER * 1e6)
    floors = took["floor"]
    return {
        name: {
            "microseconds": round(statistics.median(values), 4),
            "floors": round(statistics.median(v / f for v, f in zip(values, floors, strict=True)), 3),
            "spread": round((max(values) - min(values)) / statistics.median(values), 3),
        }
        for name, values in took.items()
    }


def start_up(repeat: int = 15) -> dict[str, float]:
    """Return milliseconds of fresh interpreters: NumPy alone, SmartPool, and a first allocation."""
    programs = {
        "python": "pass",
        "import numpy": "import numpy",
        "import smartpool": "import smartpool",
        "first allocation (cpu)": "import smartpool; smartpool.SmartPool('cpu').allocate(1000)",
    }
    took: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeat):
        for name, program in programs.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            took[name].append((time.perf_counter() - begin) * 1e3)
    return {name: round(statistics.median(values), 1) for name, values in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    latency = measure(arguments.device, arguments.rounds)
    for name, row in latency.items():
        print(f"{name:32} {row['microseconds']:8.3f} us {row['floors']:7.2f} floors")
    started = start_up()
    for name, milliseconds in started.items():
        print(f"{name:32} {milliseconds:8.1f} ms")
    payload = {"device": arguments.device, "latency": latency, "start_up_ms": started}
    print(write_results(f"latency-{arguments.device.replace(':', '-')}", payload))


if __name__ == "__main__":
    main()
