"""Replay of the recorded traces with real driver calls, SmartPool beside the real peers, in one run.

Each allocator runs in a process of its own, on one stream, from Python, and plays every trace once
to warm the process up on a short cut of it, then in full,
`--passes` times in one pool. Peers that are not installed are left out.
Prints a table, writes `bench/results/gpu-replay.json` (and a copy under $OUT where that is set).

Run on a machine with a GPU:
python bench/gpu/replay.py [--peers NAMES] [--traces NAMES] [--repeat 3] [--passes 5]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

TRACES = ROOT / "tests" / "data" / "traces"
PEERS = ("smartpool", "smartpool-fast", "torch", "torch-expandable", "cupy", "driver-pool")


class Allocator:
    """What is played against: two functions, and what they reserved at most."""

    malloc: Callable[[int], object]
    free: Callable[[object], None]

    def begin(self) -> None:
        """Start anew, with nothing reserved."""

    def peak_reserved(self) -> int:
        raise NotImplementedError

    def driver_seconds(self) -> float | None:
        return None


class Smart(Allocator):
    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.pool = None

    def begin(self) -> None:
        from smartpool.config import SmartPoolConfig
        from smartpool.driver import open_driver
        from smartpool.manager import AdvancedMemoryPoolManager

        if self.pool is not None:
            self.pool.close()
        self.pool = AdvancedMemoryPoolManager(open_driver("cuda:0"), SmartPoolConfig(policy=self.policy))
        self.malloc, self.free = self.pool.malloc, self.pool.free
        self.before = self.pool.driver.seconds

    def peak_reserved(self) -> int:
        return self.pool.peak_reserved_bytes

    def driver_seconds(self) -> float:
        return self.pool.driver.seconds - self.before


class Torch(Allocator):
    def __init__(self) -> None:
        import torch

        self.torch = torch
        torch.cuda.init()
        device = torch.cuda.current_device()
        stream = torch.cuda.current_stream().cuda_stream
        allocate, delete = (
            torch._C._cuda_cudaCachingAllocator_raw_alloc,
            torch._C._cuda_cudaCachingAllocator_raw_delete,
        )
        self.malloc = lambda nbytes: allocate(nbytes, stream)
        self.free = delete
        self.device = device

    def begin(self) -> None:
        self.torch.cuda.synchronize()
        self.torch.cuda.empty_cache()
        self.torch.cuda.reset_peak_memory_stats()

    def peak_reserved(self) -> int:
        return self.torch.cuda.max_memory_reserved()


class CuPy(Allocator):
    def begin(self) -> None:
        import cupy

        if hasattr(self, "pool"):
            self.pool.free_all_blocks()
        self.pool = cupy.cuda.MemoryPool()
        self.malloc = self.pool.malloc
        self.free = lambda pointer: None  # dropped by the caller, which is the free
        self.cupy = cupy

    def peak_reserved(self) -> int:
        return self.pool.total_bytes()


class DriverPool(Allocator):
    """`cuMemAllocAsync` on a pool that keeps everything."""

    def begin(self) -> None:
        from cuda.bindings import driver as cuda

        if not hasattr(self, "context"):
            cuda.cuInit(0)
            device = cuda.cuDeviceGet(0)[1]
            self.context = cuda.cuDevicePrimaryCtxRetain(device)[1]
            cuda.cuCtxSetCurrent(self.context)
            self.device = device
        else:
            cuda.cuCtxSynchronize()
            cuda.cuMemPoolTrimTo(self.pool, 0)
            cuda.cuMemPoolDestroy(self.pool)
        properties = cuda.CUmemPoolProps()
        properties.allocType = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = 0
        self.pool = cuda.cuMemPoolCreate(properties)[1]
        keep = cuda.cuuint64_t(2**63)
        cuda.cuMemPoolSetAttribute(
            self.pool, cuda.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, keep
        )
        allocate, free, pool = cuda.cuMemAllocFromPoolAsync, cuda.cuMemFreeAsync, self.pool

        def malloc(nbytes: int) -> object:
            code, pointer = allocate(nbytes, pool, 0)
            if code:
                raise MemoryError(code)
            return pointer

        self.malloc = malloc
        self.free = lambda pointer: free(pointer, 0)
        self.cuda = cuda

    def peak_reserved(self) -> int:
        name = self.cuda.CUmemPool_attribute.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT  # it never gives back
        return int(self.cuda.cuMemPoolGetAttribute(self.pool, name)[1])


def make(peer: str) -> Allocator:
    if peer.startswith("smartpool"):
        return Smart(peer.partition("-")[2] or "balanced")
    return {"torch": Torch, "torch-expandable": Torch, "cupy": CuPy, "driver-pool": DriverPool}[peer]()


def play(allocator: Allocator, program: list[tuple[int, int, int]], allocations: int) -> float:
    """Return the seconds that the program takes; what is still live at the end is freed after them."""
    held: list[object] = [None] * allocations
    malloc, free = allocator.malloc, allocator.free
    begin = time.perf_counter()
    for operation, number, nbytes in program:
        if operation:
            free(held[number])
            held[number] = None
        else:
            held[number] = malloc(nbytes)
    seconds = time.perf_counter() - begin
    for pointer in held:
        if pointer is not None:
            free(pointer)
    return seconds


def worker(peer: str, names: list[str], repeat: int, passes: int) -> list[dict[str, object]]:
    """Play the traces on one peer and return a row for each."""
    from smartpool.trace import Trace

    allocator = make(peer)
    rows = []
    for name in names:
        trace = Trace.load(TRACES / f"{name}.npz")
        columns = (trace.op, trace.allocation_numbers(), trace.size)
        program = list(zip(*(column.tolist() for column in columns), strict=True))
        first, later, together, drivers, later_drivers = [], [], [], [], []
        gc.collect()
        gc.freeze()  # the program's tuples are the benchmark's: no collection should visit them
        for _ in range(repeat):
            allocator.begin()
            seconds, spent = [], [allocator.driver_seconds()]
            for number in range(passes):
                seconds.append(play(allocator, program, trace.allocations))
                spent.append(allocator.driver_seconds())
                if not number:
                    first_peak = allocator.peak_reserved()
            first.append(seconds[0])
            later += seconds[-2:]
            together.append(sum(seconds))
            if spent[0] is not None:
                drivers.append(spent[1] - spent[0])
                later_drivers.append(spent[-1] - spent[-2])
        peak = allocator.peak_reserved()
        best = statistics.median(first)
        row: dict[str, object] = {
            "peer": peer, "trace": name, "events": len(program), "peak_live_bytes": trace.peak_live_bytes,
            "peak_reserved_bytes": peak, "fragmentation": round(1 - trace.peak_live_bytes / peak, 5),
            "fragmentation_first_pass": round(1 - trace.peak_live_bytes / first_peak, 5),
            "ms": round(best * 1e3, 2), "all_ms": [round(value * 1e3, 2) for value in first],
            "later_ms": round(statistics.median(later) * 1e3, 2), "passes": passes,
            "together_ms": round(statistics.median(together) * 1e3, 2),
            "us_per_operation": round(best / len(program) * 1e6, 3),
            "later_us_per_operation": round(statistics.median(later) / len(program) * 1e6, 3),
        }  # fmt: skip
        if drivers:
            own = statistics.median(s - d for s, d in zip(first, drivers, strict=True))
            row["later_driver_ms"] = round(statistics.median(later_drivers) * 1e3, 2)
            row["driver_ms"] = round(statistics.median(drivers) * 1e3, 2)
            row["pool_us_per_operation"] = round(own / len(program) * 1e6, 3)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows


def run_peer(peer: str, names: list[str], repeat: int, passes: int) -> list[dict[str, object]]:
    environment = dict(os.environ)
    if peer == "torch-expandable":
        environment["PYTORCH_ALLOC_CONF"] = environment["PYTORCH_CUDA_ALLOC_CONF"] = (
            "expandable_segments:True"
        )
    command = [
        sys.executable,
        __file__,
        "--worker",
        peer,
        "--traces",
        ",".join(names),
        "--repeat",
        str(repeat),
        "--passes",
        str(passes),
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{peer}: left out, it ended with {done.returncode}", file=sys.stderr)
        return []
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--traces", default=",".join(sorted(path.stem for path in TRACES.glob("*.npz"))))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    names = arguments.traces.split(",")
    if arguments.worker:
        print(json.dumps(worker(arguments.worker, names, arguments.repeat, arguments.passes)))
        return
    rows = [
        row
        for peer in arguments.peers.split(",")
        for row in run_peer(peer, names, arguments.repeat, arguments.passes)
    ]
    by = {(row["peer"], row["trace"]): row for row in rows}
    summary = {}
    for peer in dict.fromkeys(row["peer"] for row in rows):
        own = [by[peer, name] for name in names if (peer, name) in by]
        ratios = {
            key: [row[key] / by["torch", row["trace"]][key] for row in own if ("torch", row["trace"]) in by]
            for key in ("ms", "later_ms", "together_ms")
        }
        summary[peer] = {
            "mean_fragmentation": round(statistics.mean(row["fragmentation"] for row in own), 5),
            "worst_fragmentation": max(row["fragmentation"] for row in own),
            "mean_fragmentation_first_pass": round(
                statistics.mean(row["fragmentation_first_pass"] for row in own), 5
            ),
            **{
                f"{key}_over_torch": round(math.exp(statistics.mean(map(math.log, values))), 3)
                for key, values in ratios.items()
                if values
            },
        }
        for row in own:
            print(
                f"{peer:17} {row['trace']:18} {row['fragmentation']:7.2%} {row['ms']:9.2f} ms "
                f"{row['us_per_operation']:7.3f} us/op, later {row['later_us_per_operation']:7.3f}  "
                f"driver {row.get('driver_ms', '-')} ms  pool {row.get('pool_us_per_operation', '-')} us/op"
            )
        print(peer, summary[peer])
    from common import write_results

    path = write_results("gpu-replay", {"summary": summary, "rows": rows, "gpu": gpu()})
    if "OUT" in os.environ:
        shutil.copy(path, os.environ["OUT"])


def gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
