"""What can be foreseen on the recorded traces, and what it is good for.

Three questions, each with its baselines:

*Lifetimes.* At each request, how long will the block live? Foreseen from what was freed before: always
short, the last lifetime of this size, the mean of this size, and the median of its last 15 (or of its
power of two, while the size is new). Right means: on the right side of `SOON`, a share of the trace's
requests. Also the median error as a factor.

*Placement.* If every lifetime was known (an oracle), would keeping the long-lived apart save memory?
Fragmentation as the heap places (`by_size`: small gaps apart), at the lowest address of all, and with both
kinds at the two ends of the addresses, as the oracle and as the median say; of three borders between short
and long the best.

*Mapping ahead.* The trace is played by its own clock on the model device, and a mapper that works beside
it maps what is foreseen: what was needed by an earlier run of the same program, or 2 or 5 % more than was
ever in use. How much driver time is left to the caller, waits for the mapper included, and how much
memory is reserved at the peak. The second table is a program that pauses for five minutes.

Prints tables, writes `bench/results/prediction.json`.

Run: python bench/prediction.py
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from common import write_results

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.heap.arena import Arena
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.elastic import ElasticHeap
from smartpool.heap.policy import policy_of
from smartpool.heap.segments import SegmentHeap
from smartpool.heap.stream_order import StreamClock
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB, align_up

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
SOON = 0.01
BORDERS = (0.001, 0.01, 0.1)
PAUSE, PHASES = 300.0, 6


def events(trace: Trace) -> list[tuple[int, int, int, float]]:
    """Return (operation, allocation, bytes, seconds)."""
    columns = (trace.op, trace.allocation_numbers(), trace.size, trace.t_us / 1e6)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def lifetimes(trace: Trace) -> list[int]:
    """Return, for each allocation, how many requests came before it was freed."""
    requests, born = 0, [0] * trace.allocations
    lived = [0] * trace.allocations
    for operation, number, _, _ in events(trace):
        if operation:
            lived[number] = requests - born[number]
        else:
            born[number] = requests
            requests += 1
    freed = set(trace.allocation_numbers()[trace.op == 1].tolist())
    for number in range(trace.allocations):
        if number not in freed:
            lived[number] = requests - born[number]
    return lived


# ---------------------------------------------------------------------- lifetimes


class History:
    """The lifetimes of one size, as they come in."""

    def __init__(self) -> None:
        self.recent: deque[int] = deque(maxlen=15)
        self.total = self.count = 0

    def add(self, lifetime: int) -> None:
        self.recent.append(lifetime)
        self.total += lifetime
        self.count += 1


Predictor = Callable[[History | None, History | None], float]
PREDICTORS: dict[str, Predictor] = {
    "always short": lambda size, kind: 1.0,
    "last": lambda size, kind: size.recent[-1] if size else 1.0,
    "mean": lambda size, kind: size.total / size.count if size else 1.0,
    "median of 15": lambda size, kind: (
        statistics.median(size.recent) if size else statistics.median(kind.recent) if kind else 1.0
    ),
}


def foresee(trace: Trace) -> dict[str, dict[str, float]]:
    """Return, for each predictor, the share of lifetimes on the right side and the median error."""
    lived = lifetimes(trace)
    border = SOON * trace.allocations
    by_size: dict[int, History] = {}
    by_kind: dict[int, History] = {}
    right = dict.fromkeys(PREDICTORS, 0)
    errors: dict[str, list[float]] = {name: [] for name in PREDICTORS}
    for operation, number, nbytes, _ in events(trace):
        kind = nbytes.bit_length()
        if operation:
            for table, key in ((by_size, nbytes), (by_kind, kind)):
                table.setdefault(key, History()).add(lived[number])
            continue
        for name, predictor in PREDICTORS.items():
            foreseen = predictor(by_size.get(nbytes), by_kind.get(kind))
            right[name] += (foreseen < border) == (lived[number] < border)
            errors[name].append(abs(math.log2((foreseen + 1) / (lived[number] + 1))))
    return {
        name: {
            "right": round(right[name] / trace.allocations, 4),
            "median_error_factor": round(2 ** statistics.median(errors[name]), 2),
        }
        for name in PREDICTORS
    }


# ---------------------------------------------------------------------- placement


def place_by_side(arena: Arena, size: int, *, long: bool) -> int | None:
    """Place a block as low as possible when it lives long, else as high as possible; None: no gap fits."""
    gaps = list(islice(arena.fitting(size), 64))
    if not gaps:
        return None
    gap = (min if long else max)(gaps, key=lambda gap: gap.start)
    start = gap.start if long else gap.end - size
    arena.place_at(gap, start, size)
    return start


def foreseen_lifetimes(trace: Trace, lived: list[int]) -> list[float]:
    """Return, for each allocation, the median of the last 15 lifetimes of its size when it was requested."""
    by_size: dict[int, History] = {}
    foreseen = [1.0] * trace.allocations
    for operation, number, nbytes, _ in events(trace):
        if operation:
            by_size.setdefault(nbytes, History()).add(lived[number])
        elif nbytes in by_size:
            foreseen[number] = statistics.median(by_size[nbytes].recent)
    return foreseen


def peak_of_heap(trace: Trace, *, virtual: bool, lived: Sequence[float] = (), border: float = 0.0) -> int:
    """Return the peak reserved bytes of a heap, with blocks kept apart by `lived`, if it is told."""
    driver = ModelDriver(141 * GiB)
    if not virtual:
        driver.granularity = 0
    memory, clock = DeviceMemory(driver, 141 * GiB), StreamClock(driver)
    heap = ElasticHeap(memory, clock, policy_of("balanced")) if virtual else SegmentHeap(memory, clock)
    placed: dict[int, tuple[int, int]] = {}
    for operation, number, nbytes, _ in events(trace):
        if operation:
            address, size = placed.pop(number)
            heap.free_all([[address]], size, None)
            continue
        size = align_up(nbytes, 512)
        if lived:
            long = lived[number] >= border * trace.allocations
            found = place_by_side(heap.arena_for(size), size, long=long)
        else:
            found = heap.allocate(size, 512, 0)
        placed[number] = (heap.extend(size, 512, 0) if found is None else found, size)
    return memory.peak_reserved_bytes


def placement(trace: Trace) -> dict[str, dict[str, float]]:
    lived = lifetimes(trace)
    foreseen = foreseen_lifetimes(trace, lived)
    rows = {}
    for name, virtual in (("elastic", True), ("segments", False)):

        def waste(*peaks: int) -> float:
            return round(1 - trace.peak_live_bytes / min(peaks), 4)

        rows[name] = {
            "by_size": waste(peak_of_heap(trace, virtual=virtual)),
            "by_address": waste(peak_of_heap(trace, virtual=virtual, lived=lived, border=0.0)),
            "oracle": waste(*(peak_of_heap(trace, virtual=virtual, lived=lived, border=b) for b in BORDERS)),
            "foreseen": waste(
                *(peak_of_heap(trace, virtual=virtual, lived=foreseen, border=b) for b in BORDERS)
            ),
        }
    return rows


# ---------------------------------------------------------------------- mapping ahead


@dataclass(slots=True)
class Mapper:
    """A mapper beside the caller, on the same clock: what it does takes the time that the driver charges."""

    pool: AdvancedMemoryPoolManager
    extrapolate: float | None = None
    busy_until: float = 0.0
    seconds: float = 0.0
    awake: bool = False

    def work(self, since: float, now: float) -> None:
        """Map what can be foreseen, one chunk after the other, in the time up to `now`."""
        self.busy_until = max(self.busy_until, since)
        while self.awake and self.busy_until <= now:
            before = self.pool.driver.seconds
            self.awake = self._map() > 0
            took = self.pool.driver.seconds - before
            self.seconds += took
            self.busy_until += took

    def _map(self) -> int:
        if self.extrapolate is None:
            return self.pool.maintenance.map_ahead()
        heap = self.pool.slow_path.heap
        wanted = (1 + self.extrapolate) * max(heap.peak_live_bytes, heap.gauge.live_bytes)
        return heap.map_ahead(int(wanted) - heap.gauge.extent_bytes)


@dataclass(slots=True)
class Caller:
    """Who plays a trace, and what the driver took of its time."""

    pool: AdvancedMemoryPoolManager
    mapper: Mapper | None
    seconds: float = 0.0
    waited: float = 0.0

    def play(self, program: list[tuple[int, int, int, float]], begin: float) -> float:
        pool, mapper, live, last = self.pool, self.mapper, {}, begin
        for operation, number, nbytes, at in program:
            now = begin + at
            if mapper is not None:
                mapper.work(last, now)
            last = now
            if operation:
                pool.free(live.pop(number))
                continue
            before, grows, searches = pool.driver.seconds, pool.slow_path.grows, pool.slow_path.searches
            live[number] = pool.malloc(nbytes)
            self.seconds += pool.driver.seconds - before
            if mapper is not None:
                if pool.slow_path.searches > searches and mapper.busy_until > now:
                    self.waited += mapper.busy_until - now
                mapper.awake |= pool.slow_path.grows > grows
        for pointer in live.values():
            pool.free(pointer)
        return last


def run(program: list, *, expected: int | None = None, extrapolate: float | None = None) -> Caller:
    config = SmartPoolConfig(enable_predictive_allocation=False, expected_bytes=expected)
    pool = AdvancedMemoryPoolManager(ModelDriver(141 * GiB), config)
    mapper = Mapper(pool, extrapolate) if expected or extrapolate else None
    caller = Caller(pool, mapper)
    caller.play(program, 0.0)
    pool.check()
    return caller


def figures(caller: Caller, base: Caller) -> dict[str, float]:
    return {
        "caller_ms": round((caller.seconds + caller.waited) * 1e3, 2),
        "of_that_waits_ms": round(caller.waited * 1e3, 2),
        "mapper_ms": round((caller.mapper.seconds if caller.mapper else 0.0) * 1e3, 2),
        "peak_reserved_change": round(caller.pool.peak_reserved_bytes / base.pool.peak_reserved_bytes - 1, 4),
    }


def mapping_ahead(trace: Trace) -> dict[str, dict[str, float]]:
    program = events(trace)
    base = run(program)
    return {
        "nothing foreseen": figures(base, base),
        "as the last run": figures(run(program, expected=base.pool.peak_reserved_bytes), base),
        "2 % beyond": figures(run(program, extrapolate=0.02), base),
        "5 % beyond": figures(run(program, extrapolate=0.05), base),
    }


def pausing(trace: Trace) -> dict[str, dict[str, float]]:
    """Return what the caller pays for each phase after the first, with and without a mapper."""
    program, rows = events(trace), {}
    for name in ("no mapper", "mapper"):
        config = SmartPoolConfig(enable_predictive_allocation=False, fragmentation_threshold=1.0)
        pool = AdvancedMemoryPoolManager(ModelDriver(141 * GiB), config)
        mapper = Mapper(pool) if name == "mapper" else None
        caller, now, after_first = Caller(pool, mapper), 0.0, 0.0
        for phase in range(PHASES):
            now = caller.play(program, now)
            if not phase:
                after_first = caller.seconds + caller.waited
            for _ in range(int(PAUSE / 30)):
                now += 30.0
                pool.maintenance.keep_up(now)
        pool.check()
        paid = (caller.seconds + caller.waited - after_first) / (PHASES - 1)
        rows[name] = {
            "caller_ms_a_phase": round(paid * 1e3, 2),
            "peak_reserved_gib": round(pool.peak_reserved_bytes / GiB, 3),
            "mapped_ahead_and_used": round(
                pool.maintenance.forecast.used_bytes / max(1, pool.maintenance.forecast.mapped_bytes), 3
            ),
        }
    return rows


# ---------------------------------------------------------------------- all of it


def means(rows: dict[str, dict[str, dict[str, float]]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield, for each way, the mean of each figure over the traces."""
    first = next(iter(rows.values()))
    for way, row in first.items():
        yield way, {key: round(statistics.mean(r[way][key] for r in rows.values()), 4) for key in row}


def main() -> None:
    traces = [Trace.load(path) for path in sorted(TRACES.glob("*.npz"))]
    payload: dict[str, object] = {}
    for title, measure in (
        ("lifetimes", foresee),
        ("placement", placement),
        ("mapping ahead", mapping_ahead),
        ("pausing", pausing),
    ):
        print(title)
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for trace in traces:
            rows[trace.name] = measure(trace)
            for way, row in rows[trace.name].items():
                print(f"  {trace.name:18} {way:18}", *(f"{key} {value}" for key, value in row.items()))
        summary = dict(means(rows))
        for way, row in summary.items():
            print(f"  {'mean':18} {way:18}", *(f"{key} {value}" for key, value in row.items()))
        payload[title] = {"traces": rows, "mean": summary}
    print(write_results("prediction", payload))


if __name__ == "__main__":
    main()
