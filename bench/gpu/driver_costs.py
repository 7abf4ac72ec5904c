"""What each CUDA driver call costs from Python, bare and through our driver; feeds `CostTable`.

    python bench/gpu/driver_costs.py [--device 0]

Microseconds, medians over repetitions on an idle device. Prints a table and writes
`bench/results/driver_costs.json`. Also answers, by trying, what the documentation leaves open:
what small raw allocations take, which calls need a current context; `driver_trials.py` has the rest.
"""

import argparse
import itertools
import json
import statistics
import sys
import threading
from pathlib import Path
from time import perf_counter

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from common import write_results  # noqa: E402 - found by the path above

from smartpool.driver.cuda import CudaDriver  # noqa: E402

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30


def must(result):
    assert int(result[0]) == 0, result[0]
    return result[1] if len(result) == 2 else result[1:] or None


def timed(function, arguments):
    """Median microseconds of one call for each of the argument tuples, and the results."""
    times, results = [], []
    for values in arguments:
        begin = perf_counter()
        result = function(*values)
        times.append((perf_counter() - begin) * 1e6)
        results.append(must(result))
    return statistics.median(times), results


def raw_memory(driver):
    api, rows = driver.context.api, {}
    sizes = [
        1,
        512,
        64 * KiB,
        512 * KiB,
        MiB,
        MiB + 1,
        2 * MiB,
        4 * MiB,
        16 * MiB,
        64 * MiB,
        256 * MiB,
        GiB,
        4 * GiB,
    ]
    for size in sizes:
        count = max(3, min(60, 16 * GiB // size))
        for round_ in ("first", "again"):
            free = driver.memory_info().free
            allocate, addresses = timed(api.cuMemAlloc, [(size,)] * count)
            taken = (free - driver.memory_info().free) / count
            give, _ = timed(api.cuMemFree, [(address,) for address in reversed(addresses)])
            rows[f"{size} {round_}"] = {
                "allocate": allocate,
                "free": give,
                "taken_each": taken,
                "aligned": min((int(a) & -int(a)).bit_length() - 1 for a in addresses),
            }
    for size in (512, 4 * KiB, 64 * KiB, 500 * KiB, MiB, 3 * MiB // 2, 2 * MiB + 512, 5 * MiB):
        count = 200
        free = driver.memory_info().free
        addresses = [must(api.cuMemAlloc(size)) for _ in range(count)]
        taken = free - driver.memory_info().free
        held = sorted(map(int, addresses))
        gaps = [b - a for a, b in itertools.pairwise(held)]
        for address in addresses:
            must(api.cuMemFree(address))
        rows[f"packing {size}"] = {
            "count": count,
            "taken": taken,
            "taken_each": taken / count,
            "usual_distance": statistics.mode(gaps),
            "left_after_free": free - driver.memory_info().free,
        }
    return rows


def virtual_memory(driver):
    api, rows = driver.context.api, {}
    base = driver.reserve(64 * GiB)
    other = driver.reserve(64 * GiB)
    properties, access = driver._chunk_properties, driver._access
    for size in [s * MiB for s in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)]:
        count = max(4, min(64, 8 * GiB // size))
        places = [base + index * size for index in range(count)]
        others = [other + index * size for index in range(count)]
        row = rows[size // MiB] = {"count": count}
        for round_ in ("first", "again"):
            made = timed(api.cuMemCreate, [(size, properties, 0)] * count)
            handles = made[1]
            row[f"create {round_}"] = made[0]
            row[f"map {round_}"] = timed(
                api.cuMemMap, [(p, size, 0, h, 0) for p, h in zip(places, handles, strict=True)]
            )[0]
            begin = perf_counter()
            must(api.cuMemSetAccess(base, count * size, access, 1))
            row[f"access in one call, each {round_}"] = (perf_counter() - begin) * 1e6 / count
            row["map a second time"] = timed(
                api.cuMemMap, [(p, size, 0, h, 0) for p, h in zip(others, handles, strict=True)]
            )[0]
            row["access a second time, singly"] = timed(
                api.cuMemSetAccess, [(p, size, access, 1) for p in others]
            )[0]
            row["unmap one of two, singly"] = timed(api.cuMemUnmap, [(p, size) for p in others])[0]
            begin = perf_counter()
            must(api.cuMemUnmap(base, count * size))
            row[f"unmap in one call, each {round_}"] = (perf_counter() - begin) * 1e6 / count
            timed(api.cuMemMap, [(p, size, 0, h, 0) for p, h in zip(places, handles, strict=True)])
            row["access singly"] = timed(api.cuMemSetAccess, [(p, size, access, 1) for p in places])[0]
            begin = perf_counter()
            must(api.cuMemSetAccess(base, count * size, access, 1))
            row["access again, in one call, each"] = (perf_counter() - begin) * 1e6 / count
            row["access again, singly"] = timed(api.cuMemSetAccess, [(p, size, access, 1) for p in places])[0]
            half = count // 2 * size  # the first half keeps its access, the second is mapped anew
            must(api.cuMemUnmap(base + half, count * size - half))
            timed(
                api.cuMemMap,
                [(p, size, 0, h, 0) for p, h in list(zip(places, handles, strict=True))[count // 2 :]],
            )
            begin = perf_counter()
            must(api.cuMemSetAccess(base, count * size, access, 1))
            row["access, half of it new, in one call, each new"] = (perf_counter() - begin) * 2e6 / count
            row["unmap singly"] = timed(api.cuMemUnmap, [(p, size) for p in places])[0]
            row[f"release {round_}"] = timed(api.cuMemRelease, [(h,) for h in handles])[0]
    driver.unreserve(base, 64 * GiB)
    driver.unreserve(other, 64 * GiB)
    return rows


def reservations(driver):
    api, rows = driver.context.api, {}
    for size in (2 * MiB, GiB, 256 * GiB, 1 << 40, 4 << 40, 16 << 40, 64 << 40):
        try:
            take, bases = timed(api.cuMemAddressReserve, [(size, 0, 0, 0)] * 4)
        except AssertionError as error:
            rows[size] = str(error)
            continue
        give, _ = timed(api.cuMemAddressFree, [(b, size) for b in bases])
        rows[size] = {"reserve": take, "unreserve": give}
    return rows


def streams_and_events(driver):
    api, rows = driver.context.api, {}
    make, streams = timed(api.cuStreamCreate, [(1,)] * 20)
    rows["stream create"] = make
    event_make, events = timed(api.cuEventCreate, [(2,)] * 200)
    rows["event create"] = event_make
    for name, stream in (("user", streams[0]), ("null", api.CUstream(0)), ("per-thread", api.CUstream(2))):
        rows[f"record, {name} stream"] = timed(api.cuEventRecord, [(e, stream) for e in events])[0]
        driver.synchronize()
        rows[f"query done, {name} stream"] = timed(api.cuEventQuery, [(e,) for e in events])[0]
        rows[f"wait, {name} stream"] = timed(api.cuStreamWaitEvent, [(stream, e, 0) for e in events])[0]
        rows[f"synchronize idle, {name} stream"] = timed(api.cuStreamSynchronize, [(stream,)] * 50)[0]
    rows["event synchronize, done"] = timed(api.cuEventSynchronize, [(e,) for e in events])[0]
    rows["context synchronize, idle"] = timed(api.cuCtxSynchronize, [()] * 50)[0]
    rows["memory info"] = timed(api.cuMemGetInfo, [()] * 50)[0]
    rows["event destroy"] = timed(api.cuEventDestroy, [(e,) for e in events])[0]
    address = driver.allocate(GiB)
    for size in (512, MiB, 64 * MiB):
        driver.synchronize()
        rows[f"memset call, {size} B"] = timed(api.cuMemsetD8Async, [(address, 0, size, streams[0])] * 50)[0]
        driver.synchronize()
        copy = [(address, address + GiB // 2, size, streams[0])] * 50
        rows[f"copy call, {size} B"] = timed(api.cuMemcpyDtoDAsync, copy)[0]
    driver.synchronize()
    rows["stream destroy"] = timed(api.cuStreamDestroy, [(s,) for s in streams])[0]
    driver.free(address)
    return rows


def overhead(driver):
    """Our call beside the bare one, microseconds each over many."""
    api, rows = driver.context.api, {}

    def each(call, number=2000):
        best = []
        for _ in range(5):
            begin = perf_counter()
            for _ in range(number):
                call()
            best.append((perf_counter() - begin) / number * 1e6)
        return statistics.median(best)

    stream, event = driver.create_stream(), driver.create_event()
    raw_stream, raw_event = driver.stream_handle(stream), driver._events._live[event]
    null = driver.stream_handle(0)
    pairs = {
        "record_event, user stream": (
            lambda: driver.record_event(event, stream),
            lambda: api.cuEventRecord(raw_event, raw_stream),
        ),
        "record_event, null stream": (
            lambda: driver.record_event(event, 0),
            lambda: api.cuEventRecord(raw_event, null),
        ),
        "event_done": (lambda: driver.event_done(event), lambda: api.cuEventQuery(raw_event)),
        "wait_event": (
            lambda: driver.wait_event(stream, event),
            lambda: api.cuStreamWaitEvent(raw_stream, raw_event, 0),
        ),
        "memory_info": (driver.memory_info, api.cuMemGetInfo),
        "create+destroy event": (
            lambda: driver.destroy_event(driver.create_event()),
            lambda: api.cuEventDestroy(api.cuEventCreate(2)[1]),
        ),
        "stream(int)": (lambda: driver.stream(stream), lambda: None),
        "current context": (lambda: int(api.cuCtxGetCurrent()[1]), lambda: None),
    }
    for name, (ours, bare) in pairs.items():
        rows[name] = {"ours": each(ours), "bare": each(bare)}
        driver.synchronize()
    size = 2 * MiB
    base, chunk = driver.reserve(GiB), driver.create_chunk(size)

    def ours():
        driver.map_chunk(base, chunk)
        driver.enable_access(base, size)
        driver.unmap(base, size)

    def bare():
        api.cuMemMap(base, size, 0, chunk, 0)
        api.cuMemSetAccess(base, size, driver._access, 1)
        api.cuMemUnmap(base, size)

    rows["map+access+unmap"] = {"ours": each(ours, 200), "bare": each(bare, 200)}
    rows["create+release chunk"] = {
        "ours": each(lambda: driver.release_chunk(driver.create_chunk(size)), 200),
        "bare": each(lambda: api.cuMemRelease(api.cuMemCreate(size, driver._chunk_properties, 0)[1]), 200),
    }
    rows["allocate+free 2 MiB"] = {
        "ours": each(lambda: driver.free(driver.allocate(size)), 50),
        "bare": each(lambda: api.cuMemFree(api.cuMemAlloc(size)[1]), 50),
    }
    driver.release_chunk(chunk)
    driver.unreserve(base, GiB)
    driver.destroy_event(event)
    driver.destroy_stream(stream)
    return rows


def without_context(driver):
    """Which calls work on a thread that has no current context."""
    api, size = driver.context.api, 2 * MiB
    stream, event, address = driver.create_stream(), driver.create_event(), driver.allocate(size)
    raw_stream, raw_event = driver.stream_handle(stream), driver._events._live[event]
    rows = {}

    def work():
        rows["current"] = int(api.cuCtxGetCurrent()[1])
        steps = {
            "event record": lambda: api.cuEventRecord(raw_event, raw_stream),
            "event query": lambda: api.cuEventQuery(raw_event),
            "event synchronize": lambda: api.cuEventSynchronize(raw_event),
            "stream wait": lambda: api.cuStreamWaitEvent(raw_stream, raw_event, 0),
            "stream synchronize": lambda: api.cuStreamSynchronize(raw_stream),
            "stream context": lambda: api.cuStreamGetCtx(raw_stream),
            "memset, user stream": lambda: api.cuMemsetD8Async(address, 0, size, raw_stream),
            "event record, null stream": lambda: api.cuEventRecord(raw_event, api.CUstream(0)),
            "memset, null stream": lambda: api.cuMemsetD8Async(address, 0, size, api.CUstream(0)),
            "event create": lambda: api.cuEventCreate(2),
            "memory info": api.cuMemGetInfo,
            "allocate": lambda: api.cuMemAlloc(size),
            "free": lambda: api.cuMemFree(address),
        }
        for name, step in steps.items():
            rows[name] = step()[0].name
        made = api.cuMemCreate(size, driver._chunk_properties, 0)
        base = api.cuMemAddressReserve(size, 0, 0, 0)
        rows["create"], rows["reserve"] = made[0].name, base[0].name
        rows["map"] = api.cuMemMap(base[1], size, 0, made[1], 0)[0].name
        rows["access"] = api.cuMemSetAccess(base[1], size, driver._access, 1)[0].name
        rows["unmap"] = api.cuMemUnmap(base[1], size)[0].name
        rows["release"] = api.cuMemRelease(made[1])[0].name
        rows["unreserve"] = api.cuMemAddressFree(base[1], size)[0].name

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if rows["free"] == "CUDA_SUCCESS":
        del driver._raw[address]
    else:
        driver.free(address)
    driver.destroy_event(event)
    driver.destroy_stream(stream)
    return rows


def per_thread_order(driver):
    """Whether the legacy stream is ordered after another thread's per-thread stream."""
    api, rows = driver.context.api, {}
    big = driver.allocate(16 * GiB)
    event = driver.create_event()
    raw = driver._events._live[event]
    queued, checked = threading.Event(), threading.Event()

    def work():
        driver.fill(big, 1, 4096, driver.stream(2))
        driver.synchronize()
        for _ in range(40):
            driver.fill(big, 1, 16 * GiB, driver.stream(2))
        queued.set()
        checked.wait(20)

    for name in ("record on legacy", "synchronize legacy", "wait on legacy"):
        queued.clear()
        checked.clear()
        thread = threading.Thread(target=work)
        thread.start()
        queued.wait(20)
        begin = perf_counter()
        if name == "record on legacy":
            must(api.cuEventRecord(raw, api.CUstream(0)))
            rows[name + ": done at once"] = api.cuEventQuery(raw)[0].name
            must(api.cuEventSynchronize(raw))
        elif name == "synchronize legacy":
            must(api.cuStreamSynchronize(api.CUstream(0)))
        else:  # this thread's own per-thread stream must wait for what the legacy stream waits for
            must(api.cuStreamSynchronize(api.CUstream(2)))
            rows[name + ": own per-thread stream idle, us"] = (perf_counter() - begin) * 1e6
            other = driver.create_event()
            must(api.cuEventRecord(raw, api.CUstream(0)))
            must(api.cuStreamWaitEvent(api.CUstream(0), raw, 0))
            must(api.cuEventRecord(driver._events._live[other], api.CUstream(2)))
            rows[name + ": later work on own stream done at once"] = api.cuEventQuery(
                driver._events._live[other]
            )[0].name
            must(api.cuEventSynchronize(driver._events._live[other]))
            driver.destroy_event(other)
        rows[name + ": waited, ms"] = (perf_counter() - begin) * 1e3
        checked.set()
        thread.join()
        driver.synchronize()
    driver.destroy_event(event)
    driver.free(big)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=int, default=0)
    arguments = parser.parse_args()
    begin = perf_counter()
    driver = CudaDriver(arguments.device)
    results = {"open_seconds": perf_counter() - begin, "device": driver.describe()}
    sections = {
        "raw": lambda: raw_memory(driver),
        "virtual": lambda: virtual_memory(driver),
        "reservations": lambda: reservations(driver),
        "streams": lambda: streams_and_events(driver),
        "overhead": lambda: overhead(driver),
        "without_context": lambda: without_context(driver),
        "per_thread_order": lambda: per_thread_order(driver),
    }
    for name, section in sections.items():
        begin = perf_counter()
        try:
            results[name] = section()
        except Exception as error:  # noqa: BLE001 - the other sections are still worth having
            results[name] = f"failed: {error!r}"
        print(f"--- {name} ({perf_counter() - begin:.1f} s)")
        print(json.dumps(results[name], indent=1, default=str))
    driver.check()
    print(write_results("driver_costs", results))


if __name__ == "__main__":
    main()
