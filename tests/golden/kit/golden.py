"""What the pool reserved, what it asked of the driver and whether its blocks lay right, on recorded traces.

The values are the same on every machine: the device is a model and nothing in them is a time. They stand
in golden.json, and a change of them is a change of the pool's policy: `python bench/golden.py --write`
writes them anew, and the commit says why.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

from placement import PlacementCheck

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.driver import open_driver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.trace import Trace
from smartpool.trace.replay import replay
from smartpool.trace.targets import PoolTarget

__all__ = [
    "DEVICE",
    "FILE",
    "PASSES",
    "POLICY_NAMES",
    "TRACES",
    "differences",
    "load",
    "measured",
    "stored",
    "write",
]

TESTS = Path(__file__).parents[2]
FILE = TESTS / "golden" / "golden.json"
DEVICE = "model:141GiB"
PASSES = (1, 5, 20)
POLICY_NAMES = tuple(POLICIES)
OWN_STREAMS = " on its streams"
TRACES = (
    *sorted(path.stem for path in (TESTS / "data" / "traces").glob("*.npz")),
    f"multistream-mix{OWN_STREAMS}",
)


class CheckedTarget(PoolTarget):
    """A pool whose every block is looked at."""

    def __init__(self, manager, check):
        super().__init__(manager)
        self.check = check
        malloc, free = manager.malloc, manager.free

        def checked_malloc(nbytes, stream):
            pointer = malloc(nbytes, stream)
            check.took(pointer, nbytes)
            return pointer

        def checked_free(pointer, stream):
            check.freed(pointer)
            free(pointer, stream)

        self.malloc, self.free = checked_malloc, checked_free


@cache
def load(name: str) -> Trace:
    return Trace.load(TESTS / "data" / "traces" / f"{name.removesuffix(OWN_STREAMS)}.npz")


def measured(name: str, policy: str, passes: int) -> dict[int, dict[str, object]]:
    """Return the figures after each of `PASSES` up to `passes`, every block checked on the way.

    Nothing is planned: when a thread is done planning differs from run to run.
    """
    driver = open_driver(DEVICE)
    check = PlacementCheck(driver)
    config = SmartPoolConfig(policy=policy, enable_predictive_allocation=False)
    manager = AdvancedMemoryPoolManager(driver, config)
    streams = "own" if name.endswith(OWN_STREAMS) else "one"
    # At least two passes, because a single one leaves its last blocks live.
    run = replay(load(name), CheckedTarget(manager, check), passes=max(2, passes), streams=streams)
    assert run.failed_requests == 0
    assert check.live_blocks == 0
    manager.check()
    manager.close()
    figures, calls, peak = {}, Counter(), 0
    for number, one in enumerate(run.by_pass, 1):
        calls.update(one.driver_calls)
        peak = max(peak, one.peak_reserved_bytes)
        if number in PASSES and number <= passes:
            figures[number] = {"peak_reserved_bytes": peak, "driver_calls": dict(sorted(calls.items()))}
    return figures


@cache
def stored() -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    """Return the stored figures by trace, policy and passes."""
    return json.loads(FILE.read_text())


def differences(name: str, policy: str, figures: dict[int, dict[str, object]]) -> list[str]:
    """Return in words where figures differ from those that are stored."""
    return [
        f"{name}, {policy}, {number} passes: {field}: expected {expected}, got {row[field]}"
        for number, row in figures.items()
        for field, expected in stored()[name][policy][str(number)].items()
        if row[field] != expected
    ]


def write(figures: dict[str, dict[str, dict[int, dict[str, object]]]]) -> None:
    """Store figures, a line for each trace, policy and number of passes."""
    traces = []
    for name, policies in figures.items():
        rows = [
            f'  "{policy}": {{\n'
            + ",\n".join(f'   "{number}": {json.dumps(row)}' for number, row in by_passes.items())
            + "\n  }"
            for policy, by_passes in policies.items()
        ]
        traces.append(f' "{name}": {{\n' + ",\n".join(rows) + "\n }")
    FILE.write_text("{\n" + ",\n".join(traces) + "\n}\n")
