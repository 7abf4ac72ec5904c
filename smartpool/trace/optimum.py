"""The optimum as one more row of a replay: a plan of the whole trace, made with all lifetimes known.

No allocator can know them, so the row says how far from the least possible the others are. Blocks are
multiples of 512 bytes, as everywhere; the height of the plan is what it would reserve, in one piece.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from smartpool.heap.arena import ALIGNMENT
from smartpool.planner import Plan, plan
from smartpool.trace.runs import Pass, Run, TimelinePoint, share_idle
from smartpool.trace.trace import Trace

__all__ = ["OPTIMUM", "optimum_run", "plan_of"]

OPTIMUM: Final = "optimum"
_POINTS: Final = 2000


def optimum_run(
    trace: Trace,
    device: str,
    *,
    passes: int = 1,
    capacity_bytes: int | None = None,
    time_limit: float | None = None,
) -> Run:
    """Plan `trace` as a whole and return the result as a run; its seconds are the planner's.

    Parameters
    ----------
    trace
        The trace.
    device
        The name that the run carries; the plan needs no device.
    passes
        How often the trace is played: the plan is made in the first pass and serves them all.
    capacity_bytes
        Memory of the device: requests whose blocks end above it are refused, as on any other allocator.
    time_limit
        Seconds for the planner; None for its own choice.

    Examples
    --------
    >>> from smartpool.trace import bundled
    >>> run = optimum_run(Trace.load(bundled("multistream-mix")), "model:141GiB")
    >>> run.allocator, run.fragmentation < 0.001, run.failed_requests
    ('optimum', True, 0)
    """
    begin = time.perf_counter()
    sizes, result = plan_of(trace, time_limit=time_limit)
    seconds = time.perf_counter() - begin
    ends = result.offsets + sizes
    served = ends <= (result.height if capacity_bytes is None else capacity_bytes)
    refused, height = int(np.count_nonzero(~served)), int(ends[served].max(initial=0))
    live = trace.live_bytes(without=np.flatnonzero(~served))
    peak_live = int(live.max(initial=0))
    fragmentation = share_idle(peak_live, height, failed=refused > 0)
    first = Pass(
        peak_reserved_bytes=height,
        fragmentation=fragmentation,
        seconds=seconds,
        driver_seconds=0.0,
        driver_calls={},
    )
    return Run(
        trace=trace.name,
        allocator=OPTIMUM,
        device=device,
        events=trace.events * passes,
        streams=1,
        peak_live_bytes=peak_live,
        peak_reserved_bytes=height,
        fragmentation=fragmentation,
        seconds=seconds,
        driver_seconds=0.0,
        driver_calls={},
        microseconds_per_operation=seconds / max(1, trace.events * passes) * 1e6,
        failed_requests=refused * passes,
        passes=passes,
        by_pass=(first, *[replace(first, seconds=0.0)] * (passes - 1)),
        timeline=_timeline(np.tile(live, passes), height),
    )


def plan_of(trace: Trace, *, time_limit: float | None = None) -> tuple[NDArray[np.int64], Plan]:
    """Return the sizes of a trace's blocks, multiples of 512, and their plan with all lifetimes known."""
    lifetimes = trace.lifetimes()
    sizes = -(-lifetimes.size // ALIGNMENT) * ALIGNMENT
    return sizes, plan(lifetimes.start, lifetimes.end, sizes, alignment=ALIGNMENT, time_limit=time_limit)


def _timeline(live: NDArray[np.int64], height: int) -> tuple[TimelinePoint, ...]:
    """Return the peaks of live bytes in stretches of the trace, under a constant height."""
    if not len(live):
        return ()
    step = -(-len(live) // _POINTS)
    starts = np.arange(0, len(live), step)
    peaks = np.maximum.reduceat(live, starts)
    ends = np.minimum(starts + step, len(live)) - 1
    return tuple(
        TimelinePoint(event, peak, height) for event, peak in zip(ends.tolist(), peaks.tolist(), strict=True)
    )
