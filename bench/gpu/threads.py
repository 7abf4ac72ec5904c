"""Eight threads on eight streams, allocating and freeing, every byte checked on the device.

    python bench/gpu/threads.py [--seconds 60] [--threads 8] [--max-bytes 2GiB] [--policy balanced]

Each thread has a stream of the pool's own set and up to 48 blocks of 512 B to 32 MiB: of 32 sizes, and
one in ten of a size that never came before (in a shorter second run all of them, the worst case for a
pool that keeps freed blocks by size). A block is filled with its own number by
a kernel on the thread's stream when it is requested, and looked through by a kernel before it is freed;
one in eight is handed to another thread first, which checks and frees it on its own stream, behind an
event. A byte that another thread wrote counts as an error on the device. Beside it, one thread does the
same alone for a quarter of the time, and CuPy's own pool does it with one thread and with all (without
handing over, which it has no order for): what threads of Python cost each other shows there too. The
cap makes the pool remap all the while.

Writes `bench/results/threads.json`, and a copy under $OUT where that is set.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

BLOCKS = 48
SIZES = [int(2 ** (9 + 16 * step / 31)) // 512 * 512 for step in range(32)]  # 512 B to 32 MiB
SOURCE = r"""
extern "C" __global__ void put(unsigned *p, unsigned long n, unsigned tag) {
    for (unsigned long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        p[i] = tag;
}
extern "C" __global__ void look(const unsigned *p, unsigned long n, unsigned tag, unsigned long long *bad) {
    for (unsigned long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        if (p[i] != tag) atomicAdd(bad, 1ULL);
}
"""


class Worker(threading.Thread):
    """One thread with its stream."""

    def __init__(self, number: int, shared: Any, pool: Any, seconds: float, stream: Any, odd: float) -> None:
        super().__init__(name=f"worker-{number}")
        self.shared, self.pool, self.seconds, self.odd = shared, pool, seconds, odd
        self.dice = random.Random(number)
        self.stream = stream
        self.inbox: queue.SimpleQueue[tuple[int, int, int, Any]] = queue.SimpleQueue()
        self.operations = self.handed = self.refused = 0
        self.tag = number << 24
        self.hands_over = True
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - told in the end
            self.error = error

    def work(self) -> None:
        shared, stream = self.shared, self.stream
        held: list[tuple[int, int, int]] = []
        deadline = time.perf_counter() + self.seconds
        with stream:
            while time.perf_counter() < deadline:
                self.take_in()
                if len(held) < BLOCKS and self.dice.random() < 0.55:
                    odd = self.dice.random() < self.odd
                    words = int(2 ** self.dice.uniform(7, 23)) if odd else self.dice.choice(SIZES) // 4
                    try:
                        pointer = self.pool.malloc(4 * words, stream.ptr)
                    except MemoryError:
                        self.refused += 1
                        if held:
                            self.give(*held.pop())
                        continue
                    self.tag += 1
                    shared.put((64,), (256,), (pointer, words, self.tag))
                    held.append((pointer, words, self.tag))
                    self.operations += 1
                elif held:
                    block = held.pop(self.dice.randrange(len(held)))
                    if self.hands_over and len(shared.workers) > 1 and self.dice.random() < 0.125:
                        self.hand_over(*block)
                    else:
                        self.give(*block)
            for block in held:
                self.give(*block)
            stream.synchronize()

    def give(self, pointer: int, words: int, tag: int) -> None:
        self.shared.look((64,), (256,), (pointer, words, tag, self.shared.bad))
        self.pool.free(pointer, self.stream.ptr)
        self.operations += 1

    def hand_over(self, pointer: int, words: int, tag: int) -> None:
        event = self.shared.cupy.cuda.Event(disable_timing=True)
        event.record(self.stream)
        other = self.dice.choice([worker for worker in self.shared.workers if worker is not self])
        other.inbox.put((pointer, words, tag, event))
        self.handed += 1

    def take_in(self) -> None:
        while not self.inbox.empty():
            pointer, words, tag, event = self.inbox.get()
            self.stream.wait_event(event)
            self.give(pointer, words, tag)


class CuPyPool:
    """CuPy's own pool behind the two functions that the workers call."""

    def __init__(self, cupy: Any) -> None:
        self.pool = cupy.cuda.MemoryPool()
        self.held: dict[int, Any] = {}

    def malloc(self, nbytes: int, stream: int) -> int:  # noqa: ARG002 - CuPy's current one
        memory = self.pool.malloc(nbytes)
        self.held[memory.ptr] = memory
        return int(memory.ptr)

    def free(self, pointer: int, stream: int) -> None:  # noqa: ARG002
        del self.held[pointer]


class Shared:
    """What the workers have in common."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        module = cupy.RawModule(code=SOURCE)
        self.put, self.look = module.get_function("put"), module.get_function("look")
        self.bad = cupy.zeros(1, dtype=cupy.uint64)
        self.workers: list[Worker] = []


def run_cupy(threads: int, seconds: float, odd: float) -> dict[str, Any]:
    shared = Shared()
    pool = CuPyPool(shared.cupy)
    streams = [shared.cupy.cuda.Stream(non_blocking=True) for _ in range(threads)]
    shared.workers = [
        Worker(number + 1, shared, pool, seconds, stream, odd) for number, stream in enumerate(streams)
    ]
    for worker in shared.workers:
        worker.hands_over = False
    elapsed = work_off(shared)
    operations = sum(worker.operations for worker in shared.workers)
    return {
        "pool": "CuPy", "odd_sizes": odd, "threads": threads, "seconds": round(elapsed, 2),
        "operations": operations,
        "operations_per_second": round(operations / elapsed), "wrong_words": int(shared.bad[0]),
        "peak_reserved_bytes": pool.pool.total_bytes(),
    }  # fmt: skip


def work_off(shared: Shared) -> float:
    """Let the workers work, and return the seconds that it took."""
    begin = time.perf_counter()
    for worker in shared.workers:
        worker.start()
    for worker in shared.workers:
        worker.join()
    elapsed = time.perf_counter() - begin
    for worker in shared.workers:
        with worker.stream:
            worker.take_in()  # handed over when the other had ended
    shared.cupy.cuda.runtime.deviceSynchronize()
    failed = [worker.error for worker in shared.workers if worker.error is not None]
    if failed:
        raise failed[0]
    return elapsed


def run(pool: Any, threads: int, seconds: float, odd: float) -> dict[str, Any]:
    from smartpool.streams import StreamSet

    shared = Shared()
    streams = StreamSet(pool.managers[0].driver, threads)
    theirs = [shared.cupy.cuda.Stream.from_external(streams.next()) for _ in range(threads)]
    shared.workers = [
        Worker(number + 1, shared, pool, seconds, stream, odd) for number, stream in enumerate(theirs)
    ]
    before = pool.statistics.devices[0]
    elapsed = work_off(shared)
    streams.close()
    pool.check()
    now = pool.statistics.devices[0]
    operations = sum(worker.operations for worker in shared.workers)
    return {
        "pool": "SmartPool", "odd_sizes": odd, "threads": threads, "seconds": round(elapsed, 2),
        "operations": operations,
        "operations_per_second": round(operations / elapsed),
        "handed_over": sum(worker.handed for worker in shared.workers),
        "refused": sum(worker.refused for worker in shared.workers), "wrong_words": int(shared.bad[0]),
        "live_blocks_left": now.live_blocks, "waits_between_streams": now.waits - before.waits,
        "remaps": now.driver_calls["map_chunk"] - before.driver_calls.get("map_chunk", 0),
        "unmaps": now.driver_calls.get("unmap", 0) - before.driver_calls.get("unmap", 0),
        "peak_reserved_bytes": now.peak_reserved_bytes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--max-bytes", default="2GiB")
    parser.add_argument("--policy", default="balanced")
    parser.add_argument("--no-results", action="store_true")
    arguments = parser.parse_args()
    import smartpool

    rows = []
    plan = [(1, arguments.seconds / 4, 0.1), (arguments.threads, arguments.seconds, 0.1)]
    if not arguments.no_results:
        plan += [(1, arguments.seconds / 8, 1.0), (arguments.threads, arguments.seconds / 8, 1.0)]
    for threads, seconds, odd in plan:
        config = smartpool.SmartPoolConfig(max_bytes=arguments.max_bytes, policy=arguments.policy)
        with smartpool.SmartPool("cuda:0", config) as pool:
            row = run(pool, threads, seconds, odd)
        print(row, flush=True)
        rows.append(row)
    if not arguments.no_results:
        for odd in (0.1, 1.0):
            for threads in (1, arguments.threads):
                rows.append(run_cupy(threads, arguments.seconds / 8, odd))
                print(rows[-1], flush=True)
    if any(row["wrong_words"] or row.get("live_blocks_left") for row in rows):
        sys.exit("corrupted, or blocks are left")
    if arguments.no_results:
        return
    from common import write_results

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    speeds = [row["operations_per_second"] for row in rows]
    names = ("SmartPool", "SmartPool, odd sizes", "CuPy", "CuPy, odd sizes")
    ratios = {name: round(speeds[2 * at + 1] / speeds[2 * at], 3) for at, name in enumerate(names)}
    options = {"max_bytes": arguments.max_bytes, "policy": arguments.policy}
    results = {"rows": rows, "throughput_over_one_thread": ratios, "gpu": gpu, **options}
    path = write_results("threads", results)
    if "OUT" in os.environ:
        shutil.copy(path, os.environ["OUT"])


if __name__ == "__main__":
    main()
