"""Idle memory and age: a program that works and pauses by turns, and what giving memory back costs it.

A recorded trace is played once a phase, over `BUSY` seconds of a clock that the benchmark turns; then
everything is freed and nothing happens for a while. The optimizer passes every 30 seconds. Of each
way to give memory back: how much of the device the pool held on the average of the pauses, and what
the driver took in each phase after the first (by the costs measured on an H200), to get it back.

Prints a table, writes `bench/results/idle_phases.json`.

Run: python bench/idle_phases.py
"""

from __future__ import annotations

from pathlib import Path

from common import write_results

from smartpool.config import SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.units import GiB

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
BUSY = 40.0
PAUSES = (20.0, 45.0, 90.0, 150.0, 300.0, 1800.0)
PHASES = 24
INTERVAL = 30.0
WAYS = ("never", "every pass", "age", "age, learned")


class Program:
    """A pool, a clock, and a trace that is played again and again."""

    def __init__(self, trace: Trace, way: str) -> None:
        self.way = way
        config = SmartPoolConfig(
            idle_age=60.0,
            fragmentation_threshold=1.0,
            optimization_interval=INTERVAL,
            enable_predictive_allocation=False,  # else the region of the repeated trace is most of it
        )
        self.pool = AdvancedMemoryPoolManager(ModelDriver(141 * GiB), config)
        columns = (trace.op, trace.allocation_numbers(), trace.size)
        self.events = list(zip(*(column.tolist() for column in columns), strict=True))
        self.now = self.passed = 0.0
        self.held = 0.0  # GiB times seconds of pauses

    def work(self) -> None:
        """Play the trace once, and free what it leaves."""
        live: dict[int, int] = {}
        share = BUSY / len(self.events)
        for operation, number, nbytes in self.events:
            if operation:
                self.pool.free(live.pop(number))
            else:
                live[number] = self.pool.malloc(nbytes)
            self.now += share
            self._look_after()
        for pointer in live.values():
            self.pool.free(pointer)

    def pause(self, seconds: float) -> None:
        """Do nothing."""
        end = self.now + seconds
        while self.now < end:
            step = min(end, self.passed + INTERVAL) - self.now
            self.held += self.pool.reserved_bytes / GiB * step
            self.now += step
            self._look_after()

    def _look_after(self) -> None:
        if self.now < self.passed + INTERVAL:
            return
        self.passed = self.now
        if self.way == "every pass":
            self.pool.trim()
        elif self.way != "never":
            self.pool.maintenance.keep_up(self.now)
            if self.way == "age":
                self.pool.maintenance._idle_age.seconds = 60.0  # unlearned


def measure(trace: Trace, way: str, pause: float) -> dict[str, float | int]:
    program = Program(trace, way)
    driver = program.pool.driver
    costs, created = [], []
    for _ in range(PHASES):
        before, chunks = driver.seconds, driver.calls["create_chunk"]
        program.work()
        created.append(driver.calls["create_chunk"] - chunks)
        program.pause(pause)
        costs.append(driver.seconds - before)
    program.pool.check()
    return {
        "held_in_pauses_gib": round(program.held / (PHASES * pause), 2),
        "driver_ms_a_phase": round(sum(costs[1:]) / (PHASES - 1) * 1e3, 3),
        "share_of_time": round(sum(costs[1:]) / ((PHASES - 1) * (BUSY + pause)), 7),
        "phases_that_paid": sum(chunks > 10 for chunks in created[1:]),
    }


def main() -> None:
    payload: dict[str, object] = {"phases": PHASES, "busy_seconds": BUSY, "interval_seconds": INTERVAL}
    for name in ("gpt2-train", "dataframe-mix"):
        trace = Trace.load(TRACES / f"{name}.npz")
        rows = payload[name] = {}
        print(f"{name}: peak live {trace.peak_live_bytes / GiB:.1f} GiB, {PHASES} phases")
        for pause in PAUSES:
            for way in WAYS:
                row = rows.setdefault(f"{pause:g} s", {})[way] = measure(trace, way, pause)
                print(f"  pause {pause:6g} s, {way:13}", *(f"{key} {value}" for key, value in row.items()))
    print(write_results("idle_phases", payload))


if __name__ == "__main__":
    main()
