"""Does anything creep? Mixed traffic for minutes; reserved, process memory and latency over time.

Each device runs in a process of its own, all at once. A round is some 10,000 requests and frees: most
from a working set whose sizes drift, so that bins come and go, gaps are searched, memory grows and is
stitched; with them bursts of large blocks, a second stream, buffers that die by themselves or in cycles,
and a planned step. Every few rounds the pool is trimmed, and every tenth it is emptied.

A round in 8 is timed call by call; the others run without clocks. Prints a table, quarter by quarter,
and writes `bench/results/soak.json`: how many operations were run is in it, and not more than were run
are claimed. What is flat stays flat within noise; the ratio of the last quarter to the second says it
(the first has the warming up in it).

Run: nice python bench/soak.py --seconds 240
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import write_results

from smartpool import SmartPool, SmartPoolConfig
from smartpool.units import GiB, KiB, MiB, format_size

DEVICES = ("model:16GiB", "cpu")
SLOTS = 1500
SMALL = [512 << step for step in range(6)]
TIMED_EVERY = 8
QUARTERS = 4
PAGE = resource.getpagesize()


class Traffic:
    """What a program does to a pool, over and over, never quite the same."""

    def __init__(self, device: str, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.pool = SmartPool(device, SmartPoolConfig(max_bytes=2 * GiB, optimization_interval=0.5))
        self.manager = self.pool.managers[0]
        self.touch = device == "cpu"
        self.stream = self.manager.driver.create_stream()
        self.live = [self.pool.malloc(4 * KiB) for _ in range(SLOTS)]
        self.operations = SLOTS
        self.rounds = 0

    def sizes(self) -> list[int]:
        """Return the sizes of a round: powers of two, steps of a drifting base, and large ones of any size.

        The drift comes round after 50 rounds, so that each quarter of the run sees the same. Sizes of any
        number of bytes rarely repeat: the pool's bins reach the bound at which it forgets them.
        """
        base = 40 * KiB + 3584 * (self.rounds % 50)
        kinds = [*SMALL, base, 2 * base, 3 * base, base + 64 * KiB]
        sizes = self.random.choices(kinds, k=4000)
        for index in range(0, 4000, 25):
            sizes[index] = self.random.randrange(MiB, 6 * MiB)
        return sizes

    def round(self, clock: list[tuple[int, int]] | None) -> None:
        """Run one round; `clock` takes nanoseconds of each request and free, where they are wanted."""
        slots, sizes = self.random.choices(range(SLOTS), k=4000), self.sizes()
        if clock is None:
            self._steady(slots, sizes)
        else:
            self._timed(slots, sizes, clock)
        self.operations += 2 * len(sizes)
        self._burst()
        self._on_another_stream()
        self._buffers()
        if self.rounds % 4 == 0:
            self._step()
        if self.touch:
            for pointer in self.live[::64]:
                ctypes.memset(pointer, 1, 512)
        self.rounds += 1
        if self.rounds % 7 == 0:
            self.pool.trim(256 * MiB)
        if self.rounds % 10 == 0:
            self._begin_anew()

    def _steady(self, slots: list[int], sizes: list[int]) -> None:
        malloc, free, live = self.pool.malloc, self.pool.free, self.live
        for slot, size in zip(slots, sizes, strict=True):
            free(live[slot])
            live[slot] = malloc(size)

    def _timed(self, slots: list[int], sizes: list[int], clock: list[tuple[int, int]]) -> None:
        malloc, free, live, now = self.pool.malloc, self.pool.free, self.live, time.perf_counter_ns
        for slot, size in zip(slots, sizes, strict=True):
            began = now()
            free(live[slot])
            between = now()
            live[slot] = malloc(size)
            clock.append((now() - between, between - began))

    def _burst(self) -> None:
        blocks = [self.pool.malloc(self.random.randrange(4 * MiB, 24 * MiB)) for _ in range(12)]
        for block in blocks[::2]:
            self.pool.free(block)
        blocks[::2] = [self.pool.malloc(self.random.randrange(8 * MiB, 40 * MiB)) for _ in range(6)]
        for block in blocks:
            self.pool.free(block)
        self.operations += 36

    def _on_another_stream(self) -> None:
        blocks = [self.pool.malloc(size, self.stream) for size in (3000, 100 * KiB, 2 * MiB) * 20]
        self.manager.record_stream(blocks[0], 0)
        for block in blocks:
            self.pool.free(block)
        self.operations += 2 * len(blocks)

    def _buffers(self) -> None:
        held = [self.pool.allocate(1000 + 512 * (number % 50)) for number in range(200)]
        cycle = [held.pop()]
        cycle.append(cycle)  # type: ignore[arg-type]
        self.operations += 400

    def _step(self) -> None:
        with self.pool.step():
            first = [self.pool.malloc(size) for size in (MiB, 300 * KiB, 5 * MiB) * 10]
            for block in first:
                self.pool.free(block)
        self.operations += 60

    def _begin_anew(self) -> None:
        for pointer in self.live:
            self.pool.free(pointer)
        self.pool.trim()
        self.live[:] = [self.pool.malloc(4 * KiB) for _ in range(SLOTS)]
        self.operations += 2 * SLOTS

    def end(self) -> None:
        """Give all back, and prove that all went."""
        for pointer in self.live:
            self.pool.free(pointer)
        gc.collect()
        self.pool.check()
        self.pool.close()
        held = self.manager.driver.held()
        if any(held.values()):
            raise RuntimeError(f"expected nothing to be held at the end, got {held}")


def rss_bytes() -> int:
    """Return the memory of this process, the shared pages of the `cpu` device's chunks included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    """Return microseconds at some shares of the calls."""
    ordered = sorted(nanoseconds)
    places = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {name: ordered[int(share * (len(ordered) - 1))] / 1e3 for name, share in places.items()}


def soak(device: str, seconds: float) -> dict[str, object]:
    """Run for `seconds`, and return what was seen, one sample for each timed round."""
    traffic = Traffic(device)
    begin, samples = time.monotonic(), []
    processor = time.process_time()
    while time.monotonic() - begin < seconds:
        clock: list[tuple[int, int]] | None = [] if traffic.rounds % TIMED_EVERY == 0 else None
        traffic.round(clock)
        if clock is None:
            continue
        requests, frees = zip(*clock, strict=True)
        samples.append(
            {
                "seconds": round(time.monotonic() - begin, 2),
                "operations": traffic.operations,
                "reserved_bytes": traffic.manager.reserved_bytes,
                "live_bytes": traffic.manager.live_bytes,
                "rss_bytes": rss_bytes(),
                "malloc_us": percentiles(list(requests)),
                "free_us": percentiles(list(frees)),
            }
        )
    elapsed, processor = time.monotonic() - begin, time.process_time() - processor
    calls = sum(traffic.manager.driver.calls.values())
    traffic.end()
    return {
        "device": device,
        "seconds": round(elapsed, 1),
        "processor_seconds": round(processor, 1),
        "operations": traffic.operations,
        "rounds": traffic.rounds,
        "driver_calls": calls,
        "quarters": [quarter(part) for part in parts(samples)],
        "samples": samples[:: max(1, len(samples) // 60)],
    }


def parts(samples: list[dict]) -> list[list[dict]]:
    """Return the samples in quarters of the run."""
    size = max(1, len(samples) // QUARTERS)
    return [samples[number * size : (number + 1) * size] for number in range(QUARTERS)]


def quarter(samples: list[dict]) -> dict[str, float]:
    """Return the medians of a quarter."""
    figures = {
        name: statistics.median(sample[name] for sample in samples)
        for name in ("reserved_bytes", "live_bytes", "rss_bytes")
    }
    for call in ("malloc_us", "free_us"):
        for place in ("p50", "p99", "p99.9"):
            value = statistics.median(sample[call][place] for sample in samples)
            figures[f"{call.removesuffix('_us')}_{place}_us"] = round(value, 3)
    return figures


def show(run: dict) -> None:
    """Print a run's quarters, and the last against the second."""
    print(
        f"\n{run['device']}: {run['operations']:,} operations in {run['seconds']:.0f} s "
        f"({run['processor_seconds']:.0f} s of processor), {run['driver_calls']:,} driver calls"
    )
    quarters = run["quarters"]
    for name in quarters[0]:
        values = [part[name] for part in quarters]
        shown = [format_size(int(value)) if name.endswith("bytes") else f"{value:.2f}" for value in values]
        ratio = values[3] / values[1] if values[1] else 1.0
        print(f"  {name:18}" + "".join(f"{text:>12}" for text in shown) + f"   x{ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--devices", nargs="+", default=DEVICES)
    parser.add_argument("--no-results", action="store_true", help="print only")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(len(arguments.devices)) as processes:
        runs = list(processes.map(soak, arguments.devices, [arguments.seconds] * len(arguments.devices)))
    for run in runs:
        show(run)
    total = sum(run["operations"] for run in runs)
    print(f"\n{total:,} operations in all; load of the machine meanwhile: {os.getloadavg()[1]:.1f}")
    if not arguments.no_results:
        write_results("soak", {"operations": total, "load_average": os.getloadavg()[1], "runs": runs})


if __name__ == "__main__":
    main()
