"""Results of benchmarks: JSON with machine, versions and commit, under `bench/results/`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import timeit
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """Return what a reader needs to judge the figures, the floor of this machine included."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "floor_us": round(floor_us(), 4),
    }


def floor_us(repeat: int = 7, number: int = 200_000) -> float:
    """Microseconds of one pop and one append on a dict of lists behind two function calls."""
    lists = {512: [1, 2, 3]}

    def take(size: int) -> int:
        return lists[size].pop()

    def give(size: int, pointer: int) -> None:
        lists[size].append(pointer)

    timer = timeit.Timer("give(512, take(512))", globals={"take": take, "give": give})
    return sorted(timer.repeat(repeat, number))[repeat // 2] / number * 1e6


def write_results(name: str, payload: object) -> Path:
    """Write `payload` with machine, versions and commit to `bench/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "versions": _versions("smartpool", "numpy", "cuda-bindings", "torch", "cupy-cuda13x", "rmm-cu13"),
        "results": payload,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    if "SMARTPOOL_COMMIT" in os.environ:  # a machine that has the files and no history
        return os.environ["SMARTPOOL_COMMIT"]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
