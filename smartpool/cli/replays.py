"""A trace by its name, its replay on every allocator, and the runs as JSON: what several commands do."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import closing
from difflib import get_close_matches
from typing import Final

from smartpool._version import __version__
from smartpool.cli.console import replay_progress
from smartpool.cli.targets import read_from
from smartpool.config import Policy
from smartpool.errors import TraceError
from smartpool.trace.bundled import bundled, bundled_names
from smartpool.trace.importers import read_any
from smartpool.trace.optimum import OPTIMUM, optimum_run
from smartpool.trace.replay import STREAM_MODES, Run, replay
from smartpool.trace.targets import open_device, open_target
from smartpool.trace.trace import Trace

__all__ = ["DEFAULT_DEVICE", "FAILED_REQUESTS", "OK", "find_trace", "machine", "play", "runs_as_json"]

DEFAULT_DEVICE: Final = "model:141GiB"
OK: Final = 0
FAILED_REQUESTS: Final = 3
SCHEMA: Final = 1


def play(
    traces: Sequence[Trace],
    allocators: Sequence[str],
    device: str,
    *,
    passes: int = 1,
    capacity_bytes: int | None = None,
    streams: str = STREAM_MODES[0],
    policy: Policy | float = "balanced",
) -> list[Run]:
    """Replay every trace on every allocator, each on a device of its own, and show how far it is."""
    runs: list[Run] = []
    with replay_progress(len(traces) * len(allocators)) as begin:
        for trace in traces:
            for name in allocators:
                if name == OPTIMUM:
                    begin(trace.name, name)
                    with closing(open_device(device, capacity_bytes)) as driver:
                        shown, most = driver.name, driver.memory_info().total
                    runs.append(optimum_run(trace, shown, passes=passes, capacity_bytes=most))
                    continue
                with open_target(name, device, capacity_bytes=capacity_bytes, policy=policy) as target:
                    progress = begin(trace.name, target.name)
                    runs.append(replay(trace, target, passes=passes, streams=streams, progress=progress))
    return runs


def find_trace(name: str, *, device: int | None = None, drop_unknown_frees: bool = False) -> Trace:
    """Return the trace in a file, in standard input where the name is ``-``, or the bundled one of that name.

    `device` says which one of a snapshot of several, `drop_unknown_frees` is for RMM logs.

    Raises
    ------
    TraceError
        When there is none, or the file cannot be used.
    """
    with read_from(name) as path:
        if path.is_dir():
            if name not in bundled_names():
                raise TraceError(f"{name}: expected a trace file, this is a folder; name a file in it")
        elif path.exists():
            return read_any(path, device=device, drop_unknown_frees=drop_unknown_frees)
    if name in bundled_names():
        return read_any(bundled(name), device=device, drop_unknown_frees=drop_unknown_frees)
    near = get_close_matches(name, bundled_names(), 1)
    raise TraceError(
        f"expected a trace file, or one of the bundled traces {', '.join(bundled_names())}, got {name!r}: "
        f"there is no such file{f'; did you mean {near[0]!r}?' if near else ''}"
    )


def runs_as_json(runs: list[Run]) -> dict[str, object]:
    """Return the object that ``--json`` prints."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "machine": machine(),
        "runs": [one.as_json() for one in runs],
    }


def machine() -> dict[str, object]:
    """Return what a reader of timings needs to know about this machine."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
    }
