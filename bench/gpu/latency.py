"""Latency of one allocate-and-free pair from Python, 512 B to 1 GiB: SmartPool beside its peers.

    python bench/gpu/latency.py [--device 0] [--rounds 15] [--out FOLDER]

Every pair is measured warm: the sizes have been asked for before, so a pool answers from its cache.
Rounds are interleaved, and the median of the rounds counts. PyTorch's allocator is for the life of a
process, so PyTorch on SmartPool is measured in a second process, beside a repetition of SmartPool's
own rows that shows what the two processes have in common. Contenders whose package is absent are left
out. Writes `bench/results/latency-cuda.json`, and to FOLDER too where one is named.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from common import write_results  # noqa: E402 - found by the path above

import smartpool  # noqa: E402
from smartpool.driver import open_driver  # noqa: E402

SIZES = [512 << shift for shift in (0, 3, 7, 11, 15, 19, 21)]  # 512 B to 1 GiB
QUICK_BYTES = 64 << 20  # the driver's own calls take milliseconds beyond this

Names = dict[str, Any]
Contender = tuple[str, str, Names]  # its name, the statement with `size`, what the statement uses


# ------------------------------------------------------------------ who is measured


def smartpool_rows(pool: smartpool.SmartPool) -> Iterator[Contender]:
    names: Names = {"malloc": pool.malloc, "free": pool.free, "allocate": pool.allocate}
    yield "SmartPool malloc + free", "free(malloc(size))", names
    yield "SmartPool Buffer", "allocate(size)", names


def smartpool_through_cupy(pool: smartpool.SmartPool) -> Iterator[Contender]:
    cupy = import_module("cupy")
    interop = import_module("smartpool.interop.cupy")
    allocate = interop.allocator(pool)
    yield "SmartPool under CuPy, allocator", "allocate(size)", {"allocate": allocate}
    # `cupy.empty` asks the allocator of the process, so it is switched around each measurement.
    setup = {"empty": cupy.empty, "u1": cupy.uint8, "around": lambda: interop.using(pool)}
    yield "cupy.empty on SmartPool", "empty(size, u1)", setup


def cupy_rows() -> Iterator[Contender]:
    cupy = import_module("cupy")
    yield "CuPy MemoryPool.malloc", "malloc(size)", {"malloc": cupy.cuda.MemoryPool().malloc}
    yield "cupy.empty", "empty(size, u1)", {"empty": cupy.empty, "u1": cupy.uint8}


def torch_rows(label: str = "") -> Iterator[Contender]:
    torch = import_module("torch")
    torch.cuda.init()
    names = {
        "empty": torch.empty, "u1": torch.uint8, "device": torch.device("cuda", torch.cuda.current_device()),
        "take": torch._C._cuda_cudaCachingAllocator_raw_alloc,
        "give": torch._C._cuda_cudaCachingAllocator_raw_delete,
    }  # fmt: skip
    yield f"PyTorch raw alloc + delete{label}", "give(take(size, 0))", names
    yield f"torch.empty{label}", "empty(size, dtype=u1, device=device)", names


def cuda_core_rows(ordinal: int, pool: smartpool.SmartPool) -> Iterator[Contender]:
    core = import_module("cuda.core")
    if not hasattr(core, "Device"):
        core = import_module("cuda.core.experimental")
    device = core.Device(ordinal)
    device.set_current()
    stream = device.create_stream()
    resource = device.memory_resource
    statement = "allocate(size, stream=s).close()"
    yield "cuda.core DeviceMemoryResource", statement, {"allocate": resource.allocate, "s": stream}
    ours = import_module("smartpool.interop.cuda_core").memory_resource(pool)
    yield "cuda.core on SmartPool", statement, {"allocate": ours.allocate, "s": stream}


def rmm_rows(pool: smartpool.SmartPool) -> Iterator[Contender]:
    rmm = import_module("rmm")
    theirs = rmm.mr.PoolMemoryResource(
        rmm.mr.CudaMemoryResource(), initial_pool_size=4 << 30, maximum_pool_size=8 << 30
    )
    ours = import_module("smartpool.interop.rmm").memory_resource(pool)
    for label, resource in (("RMM PoolMemoryResource", theirs), ("RMM on SmartPool", ours)):
        names = {"take": resource.allocate, "give": resource.deallocate}
        yield label, "give(take(size), size)", names
    for label, resource in (("rmm.DeviceBuffer", theirs), ("rmm.DeviceBuffer on SmartPool", ours)):
        yield label, "buffer(size=size, mr=resource)", {"buffer": rmm.DeviceBuffer, "resource": resource}


def driver_rows() -> Iterator[Contender]:
    driver = import_module("cuda.bindings.driver")
    names = {
        "alloc": driver.cuMemAlloc, "free": driver.cuMemFree, "async_alloc": driver.cuMemAllocAsync,
        "async_free": driver.cuMemFreeAsync, "s": driver.CUstream(0),
    }  # fmt: skip
    pool = driver.cuDeviceGetDefaultMemPool(driver.cuDeviceGet(0)[1])[1]
    keep = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    driver.cuMemPoolSetAttribute(pool, keep, driver.cuuint64_t(1 << 40))
    yield "cuMemAllocAsync + cuMemFreeAsync", "async_free(async_alloc(size, s)[1], s)", names
    yield "cuMemAlloc + cuMemFree", "free(alloc(size)[1])", names


def floor_row() -> Iterator[Contender]:
    lists = {size: [1, 2, 3] for size in SIZES}

    def take(size: int) -> int:
        return lists[size].pop()

    def give(size: int, pointer: int) -> None:
        lists[size].append(pointer)

    yield "floor: a dict of lists", "give(size, take(size))", {"take": take, "give": give}


# ------------------------------------------------------------------ measuring


def gather(makers: list[Callable[[], Iterator[Contender]]]) -> list[Contender]:
    """Return the contenders whose packages are there."""
    found: list[Contender] = []
    for make in makers:
        with suppress(ImportError):
            found.extend(make())
    return found


def measure(contenders: list[Contender], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return by contender and size the median of microseconds a pair, and the spread of the rounds."""
    timers = {}
    for name, statement, names in contenders:
        for size in SIZES:
            used = names | {"size": size}
            timer = timeit.Timer(statement, globals=used)
            around = names.get("around")
            run(timer, 5, around)  # maps memory, compiles, fills caches
            warm = run(timer, 5, around)
            number = max(10, min(3000, int(0.006 / max(warm / 5, 1e-7))))
            timers[name, size] = (timer, number if size <= QUICK_BYTES else min(number, 1000), around)
    took: dict[tuple[str, int], list[float]] = {key: [] for key in timers}
    for _ in range(rounds):
        for key, (timer, number, around) in timers.items():
            took[key].append(run(timer, number, around) / number * 1e6)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for (name, size), values in took.items():
        median = statistics.median(values)
        rows.setdefault(name, {})[smartpool.format_size(size)] = {
            "microseconds": round(median, 3),
            "spread": round((max(values) - min(values)) / median, 3),
        }
    return rows


def run(timer: timeit.Timer, number: int, around: Callable[[], Any] | None) -> float:
    if around is None:
        return timer.timeit(number)
    with around():
        return timer.timeit(number)


def here(ordinal: int, rounds: int) -> dict[str, Any]:
    """Measure everybody but PyTorch on SmartPool."""
    with smartpool.SmartPool(f"cuda:{ordinal}") as pool:
        makers = [
            floor_row,
            lambda: smartpool_rows(pool),
            lambda: smartpool_through_cupy(pool),
            cupy_rows,
            torch_rows,
            lambda: cuda_core_rows(ordinal, pool),
            lambda: rmm_rows(pool),
            driver_rows,
        ]
        return measure(gather(makers), rounds)


def installed(ordinal: int, rounds: int) -> dict[str, Any]:
    """Measure PyTorch on SmartPool."""
    pool = smartpool.SmartPool(f"cuda:{ordinal}")
    import_module("smartpool.interop.torch").install(pool)
    return measure(
        gather([floor_row, lambda: smartpool_rows(pool), lambda: torch_rows(" on SmartPool")]), rounds
    )


def in_a_process_of_its_own(ordinal: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--installed", "--device", str(ordinal), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"PyTorch on SmartPool was not measured: {done.stderr[-2000:]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout)


def show(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    sizes = [smartpool.format_size(size) for size in SIZES]
    print(f"{'microseconds a pair':42}" + "".join(f"{size:>10}" for size in sizes))
    for name, row in rows.items():
        print(f"{name:42}" + "".join(f"{row[size]['microseconds']:10.2f}" for size in sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--installed", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.installed:
        print(json.dumps(installed(arguments.device, arguments.rounds)))
        return
    first = here(arguments.device, arguments.rounds)
    second = in_a_process_of_its_own(arguments.device, arguments.rounds)
    print("\nin one process")
    show(first)
    print("\nin a process where SmartPool is PyTorch's allocator")
    show(second)
    name = open_driver(f"cuda:{arguments.device}").describe()["name"]
    rows = {"device": name, "one_process": first, "pytorch_on_smartpool": second}
    path = write_results("latency-cuda", rows)
    print(path)
    if arguments.out:
        shutil.copy(path, arguments.out)


if __name__ == "__main__":
    main()
