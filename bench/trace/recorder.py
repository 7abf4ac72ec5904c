"""What recording costs: microseconds an event beside an empty method call and the clock, and bytes.

Run with ``python bench/trace/recorder.py``; writes bench/results/recorder.json. The alternatives that
were rejected are measured in the same run.
"""

# ruff: noqa: ARG002  what is measured takes the arguments of an event

from __future__ import annotations

import sys
import tracemalloc
from array import array
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import write_results

from smartpool import SmartPool
from smartpool.trace import Recorder, Trace, bundled

EVENTS = 100_000
REPEAT = 15
GOAL_US = 0.3


class Empty:
    def allocated(self, pointer, nbytes, stream=0):
        pass


class Clock:
    def allocated(self, pointer, nbytes, stream=0):
        perf_counter_ns()


class ListOfTuples:
    def __init__(self):
        self.events = []

    def allocated(self, pointer, nbytes, stream=0):
        self.events.append((pointer, nbytes, stream, perf_counter_ns()))


class ArrayExtend:
    def __init__(self):
        self.events = array("q")

    def allocated(self, pointer, nbytes, stream=0):
        self.events.extend((pointer, nbytes, stream, perf_counter_ns()))


class Slots:
    def __init__(self):
        self.columns = [array("q", bytes(8 * EVENTS)) for _ in range(4)]
        self.next = count()

    def allocated(self, pointer, nbytes, stream=0):
        slot = next(self.next)
        pointers, sizes, streams, times = self.columns
        pointers[slot], sizes[slot], streams[slot], times[slot] = pointer, nbytes, stream, perf_counter_ns()


class ListAColumn:
    """Faster, and wrong: threads interleave between the appends."""

    def __init__(self):
        self.pointers, self.sizes, self.streams, self.times = [], [], [], []

    def allocated(self, pointer, nbytes, stream=0):
        self.pointers.append(pointer)
        self.sizes.append(nbytes)
        self.streams.append(stream)
        self.times.append(perf_counter_ns())


def per_event(call, pointers):
    """Microseconds a call, by a loop whose own cost is in every row alike."""
    begin = perf_counter_ns()
    for pointer in pointers:
        call(pointer, 4096, 0)
    return (perf_counter_ns() - begin) / len(pointers) / 1000


def pool_operation_us():
    """Median microseconds of a cached `malloc` or `free`, without recording and with it."""
    found = {False: [], True: []}
    with SmartPool("model:8GiB") as pool:
        pool.free(pool.malloc(4096))
        for _ in range(REPEAT):
            for recording, times in found.items():
                if recording:
                    pool.start_recording()
                begin = perf_counter_ns()
                for _ in range(EVENTS // 2):
                    pool.free(pool.malloc(4096))
                times.append((perf_counter_ns() - begin) / EVENTS / 1000)
                if recording:
                    pool.stop_recording()
    return median(found[False]), median(found[True])


def main():
    pointers = [0x7F0000000000 + 512 * n for n in range(EVENTS)]
    makers = {
        "an empty method call": lambda: Empty().allocated,
        "an empty call and the clock": lambda: Clock().allocated,
        "Recorder.allocated": lambda: Recorder().allocated,
        "rejected: list of tuples": lambda: ListOfTuples().allocated,
        "rejected: array.extend": lambda: ArrayExtend().allocated,
        "rejected: slots in arrays": lambda: Slots().allocated,
        "rejected: a list a column": lambda: ListAColumn().allocated,
    }
    times = {name: [] for name in makers}
    for _ in range(REPEAT):  # interleaved, so that a slow moment of the machine meets all rows
        for name, make in makers.items():
            times[name].append(per_event(make(), pointers))
    rows = {
        name: {"median_us": round(median(t), 4), "min_us": round(min(t), 4), "max_us": round(max(t), 4)}
        for name, t in times.items()
    }

    tracemalloc.start()
    recorder = Recorder()
    for pointer in pointers:
        recorder.allocated(pointer + 1, pointer % 1_000_003 + 1000, 0)
    bytes_an_event = tracemalloc.get_traced_memory()[0] / EVENTS
    tracemalloc.stop()
    begin = perf_counter()
    recorder.trace()
    building = (perf_counter() - begin) / EVENTS * 1e6

    reading = []
    for _ in range(REPEAT):
        begin = perf_counter()
        trace = Trace.load(bundled("llama-train"))
        reading.append((perf_counter() - begin) / len(trace) * 1e6)

    print(f"{'':32}{'median':>8}{'min':>8}{'max':>8}   us an event")
    for name, row in rows.items():
        print(f"{name:32}{row['median_us']:8.3f}{row['min_us']:8.3f}{row['max_us']:8.3f}")
    recording = rows["Recorder.allocated"]["median_us"]
    print(f"\nrecording an event: {recording:.3f} us (goal: at most {GOAL_US}), {bytes_an_event:.0f} bytes")
    print(f"Recorder.trace(): {building:.2f} us an event; Trace.load: {median(reading):.3f} us an event")
    quiet, recorded = pool_operation_us()
    print(f"a pool's cached malloc or free: {quiet:.3f} us, {recorded:.3f} us when recorded")
    path = write_results(
        "recorder",
        {
            "goal_us": GOAL_US,
            "events": EVENTS,
            "repeat": REPEAT,
            "rows": rows,
            "bytes_an_event": round(bytes_an_event),
            "trace_us_an_event": round(building, 3),
            "pool_operation_us": {"quiet": round(quiet, 4), "recorded": round(recorded, 4)},
            "load_us_an_event": round(median(reading), 4),
        },
    )
    print(path)


if __name__ == "__main__":
    main()
