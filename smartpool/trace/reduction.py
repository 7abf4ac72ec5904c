"""By how much a pool was less fragmented than the caching baseline, on the requests that it got."""

from __future__ import annotations

from smartpool.driver.model import ModelDriver
from smartpool.pool.telemetry.statistics import Reduction
from smartpool.trace.baselines import make_baseline
from smartpool.trace.replay import replay
from smartpool.trace.trace import Trace
from smartpool.units import TiB

__all__ = ["measured_reduction"]


def measured_reduction(trace: Trace, peak_reserved_bytes: int) -> Reduction:
    """Replay `trace` on the model of PyTorch's caching allocator and compare. O(events log events).

    Parameters
    ----------
    trace
        What the pool was asked for.
    peak_reserved_bytes
        The most that the pool reserved meanwhile.
    """
    baseline = make_baseline("pytorch", ModelDriver(64 * TiB))
    run = replay(trace, baseline)
    live = trace.peak_live_bytes
    return Reduction(
        events=len(trace),
        fragmentation=max(0.0, 1 - live / peak_reserved_bytes) if peak_reserved_bytes else 0.0,
        baseline_fragmentation=run.fragmentation or 0.0,
    )
