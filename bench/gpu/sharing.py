"""What sharing between processes costs: chunks that can be exported, exports, and openings.

    python bench/gpu/sharing.py [--repeat 200]

Creates, maps and releases chunks with and without a shareable handle, interleaved; then exports a buffer
and opens it, here and in a spawned process. Writes `bench/results/sharing.json`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

MiB = 1 << 20
SIZES = (2 * MiB, 32 * MiB, 512 * MiB)


def micros(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = function(*arguments)
    return (time.perf_counter() - begin) * 1e6, value


def chunks(repeat: int) -> list[dict[str, Any]]:
    from smartpool.driver import open_driver

    plain, shareable = open_driver("cuda:0"), open_driver("cuda:0")
    shareable.share_chunks()
    rows = []
    for size in SIZES:
        took: dict[str, dict[str, list[float]]] = {}
        for _ in range(repeat):
            for name, driver in (("plain", plain), ("shareable", shareable)):
                own = took.setdefault(name, {})
                base = driver.reserve(size)
                spent, chunk = micros(driver.create_chunk, size)
                own.setdefault("create_chunk", []).append(spent)
                for call, *values in (
                    ("map_chunk", base, chunk),
                    ("enable_access", base, size),
                    ("unmap", base, size),
                    ("release_chunk", chunk),
                ):
                    own.setdefault(call, []).append(micros(getattr(driver, call), *values)[0])
                driver.unreserve(base, size)
        for name, own in took.items():
            medians = {call: round(statistics.median(values), 2) for call, values in own.items()}
            rows.append({"chunks": name, "bytes": size, "median_us": medians})
    return rows


def child(shared: Any, pipe: Any) -> None:
    spent, buffer = micros(shared.open)
    again, second = micros(shared.open)
    del second
    pipe.send((spent, again))
    closing, _ = micros(buffer.free)
    pipe.send(closing)


def transfers(repeat: int) -> list[dict[str, Any]]:
    import smartpool

    pool = smartpool.SmartPool("cuda:0", smartpool.SmartPoolConfig(shareable=True))
    context = multiprocessing.get_context("spawn")
    rows = []
    for size in SIZES:
        buffer = pool.allocate(size)
        exporting, opening, closing = [], [], []
        for _ in range(repeat // 10):
            spent, shared = micros(pool.export, buffer)
            exporting.append(spent)
            spent, opened = micros(shared.open)
            opening.append(spent)
            closing.append(micros(opened.free)[0])
            shared.close()
        shared = pool.export(buffer)
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(shared, theirs))
        process.start()
        first, second = ours.recv()
        process.join()
        rows.append(
            {
                "bytes": size, "chunks": len(shared.description.chunks),
                "export_us": round(statistics.median(exporting), 1),
                "open_here_us": round(statistics.median(opening), 1),
                "free_here_us": round(statistics.median(closing), 1),
                "open_in_new_process_us": round(first, 1), "open_there_again_us": round(second, 1),
            }
        )  # fmt: skip
        shared.close()
        del buffer
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=200)
    arguments = parser.parse_args()
    results = {"chunks": chunks(arguments.repeat), "buffers": transfers(arguments.repeat)}
    for rows in results.values():
        for row in rows:
            print(row)
    from common import write_results

    path = write_results("sharing", results)
    if "OUT" in os.environ:
        shutil.copy(path, os.environ["OUT"])


if __name__ == "__main__":
    main()
