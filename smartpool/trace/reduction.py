"""By how much a pool was less fragmented than the caching baseline, on the requests that it got."""

from __future__ import annotations

from collections.abc import Iterable

from smartpool.driver.model import ModelDriver
from smartpool.pool.telemetry.statistics import Reduction
from smartpool.trace.baselines import make_baseline
from smartpool.trace.replay import replay
from smartpool.trace.runs import share_idle
from smartpool.trace.trace import Trace
from smartpool.units import TiB

__all__ = ["measured_reduction"]


def measured_reduction(recorded: Iterable[tuple[Trace, int, int]]) -> Reduction | None:
    """Replay traces on the model of PyTorch's caching allocator and compare. O(events log events).

    Several devices are compared by the sums of their peaks. None when no trace has an event.

    Parameters
    ----------
    recorded
        For each device what the pool was asked for, how many of these events were recorded, and the most
        that the pool reserved meanwhile.
    """
    events = live = held = baseline_held = 0
    for trace, count, peak_reserved_bytes in recorded:
        if count:
            run = replay(trace, make_baseline("pytorch", ModelDriver(64 * TiB)))
            events += count
            live += trace.peak_live_bytes
            held += peak_reserved_bytes
            baseline_held += run.peak_reserved_bytes
    if not events:
        return None
    shares = (max(0.0, share_idle(live, most, failed=False) or 0.0) for most in (held, baseline_held))
    fragmentation, baseline_fragmentation = shares
    return Reduction(
        events=events, fragmentation=fragmentation, baseline_fragmentation=baseline_fragmentation
    )
