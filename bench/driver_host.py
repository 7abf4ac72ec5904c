"""What the drivers cost on this machine: the model's own time a call, and the cpu device's calls.

    python bench/driver_host.py

Also the choice behind the cpu device: one sparse file for all chunks against a file for each.
Medians of rounds, microseconds a call. Writes `bench/results/driver_host.json`.
"""

import ctypes
import os
import statistics
import sys
from pathlib import Path
from time import perf_counter

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from common import write_results  # noqa: E402 - found by the path above

from smartpool.driver import CpuDriver, ModelDriver, pages  # noqa: E402

MiB = 1 << 20


def rounds(function, *, calls, count=7):
    """Median over rounds of microseconds a call, where a round makes `calls` of them."""
    times = []
    for _ in range(count):
        begin = perf_counter()
        function()
        times.append((perf_counter() - begin) / calls * 1e6)
    return round(statistics.median(times), 3)


def by_call(driver, *, live, number=500):
    """Microseconds of each call while `live` mappings are there."""
    unit = driver.granularity
    base = driver.reserve((live + number) * 2 * unit)
    standing = driver.create_chunk(unit)
    for index in range(live):
        driver.map_chunk(base + 2 * index * unit, standing)
    places = [base + (2 * (index * max(live, 1) // number) + 1) * unit for index in range(number)]
    places = places if live >= number else [base + 2 * (live + index) * unit for index in range(number)]
    chunks, row = [], {}

    def each(name, function, values):
        times = []
        for value in values:
            begin = perf_counter()
            function(*value)
            times.append((perf_counter() - begin) * 1e6)
        row[name] = round(statistics.median(times), 3)

    each("create_chunk", lambda: chunks.append(driver.create_chunk(unit)), [()] * number)
    each("map_chunk", driver.map_chunk, list(zip(places, chunks, strict=True)))
    each("enable_access", driver.enable_access, [(place, unit) for place in places])
    each("unmap", driver.unmap, [(place, unit) for place in places])
    each("release_chunk", driver.release_chunk, [(chunk,) for chunk in chunks])
    raw = []
    each("allocate", lambda: raw.append(driver.allocate(unit)), [()] * number)
    each("free", driver.free, [(address,) for address in raw])
    event = driver.create_event()
    each("record_event", driver.record_event, [(event, 0)] * number)
    each("event_done", driver.event_done, [(event,)] * number)
    driver.unmap(base, (live + number) * 2 * unit)
    driver.release_chunk(standing)
    driver.unreserve(base, (live + number) * 2 * unit)
    return row


def files(number=400, size=2 * MiB):
    """One sparse file with ranges, or a file a chunk: microseconds a chunk and open files at the end."""

    def one():
        file = pages.ChunkFile()
        offsets = [file.take(size) for _ in range(number)]
        for offset in offsets:
            file.give(offset, size)
        file.close()

    def many():
        made = []
        for _ in range(number):
            file = os.memfd_create("chunk")
            os.ftruncate(file, size)
            made.append(file)
        for file in made:
            os.close(file)

    def touched(take):
        def work():
            base = pages.reserve(size, size)
            for _ in range(32):
                file, offset, close = take()
                pages.map_pages(base, size, file, offset)
                pages.protect(base, size)
                ctypes.memset(base, 1, size)
                pages.unmap_pages(base, size)
                close()
            pages.unreserve(base, size)

        return work

    shared = pages.ChunkFile()

    def take_range():
        offset = shared.take(size)
        return shared.file, offset, lambda: shared.give(offset, size)

    def take_file():
        file = os.memfd_create("chunk")
        os.ftruncate(file, size)
        return file, 0, lambda: os.close(file)

    row = {
        "one file, create and release": rounds(one, calls=number),
        "a file each, create and release": rounds(many, calls=number),
        "one file, create, map, fill 2 MiB, unmap, release": rounds(touched(take_range), calls=32),
        "a file each, create, map, fill 2 MiB, unmap, release": rounds(touched(take_file), calls=32),
        "open files": {"one file": 1, "a file each": number},
    }
    shared.close()
    return row


def main():
    results = {"model": {}, "cpu": {}}
    for live in (10, 1_000, 30_000):
        results["model"][f"{live} live mappings"] = by_call(ModelDriver(1 << 50), live=live)
    for live in (10, 1_000, 20_000):
        results["cpu"][f"{live} live mappings"] = by_call(CpuDriver(capacity=1 << 44), live=live)
    results["files"] = files()
    for device in ("model", "cpu"):
        for live, row in results[device].items():
            print(f"{device}, {live}:", "  ".join(f"{call} {time:.2f}" for call, time in row.items()))
    for name, value in results["files"].items():
        print(f"{name}: {value}")
    print(write_results("driver_host", results))


if __name__ == "__main__":
    main()
