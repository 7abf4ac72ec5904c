"""What a replay tells: a run of one allocator over one trace, in one pass or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import NamedTuple

__all__ = ["Pass", "Run", "TimelinePoint", "share_idle"]


class TimelinePoint(NamedTuple):
    """A stretch of a run: its last event, and the most bytes that were live and reserved within it."""

    event: int
    live_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass of a run took: an entry of ``by_pass`` in the JSON.

    Parameters
    ----------
    peak_reserved_bytes
        The most physical memory held within the pass, what was held at its beginning included. Exact
        where it is the most of the run so far; otherwise the most that was seen at about 2000 looks.
    fragmentation
        ``1 - peak live / peak reserved`` of this pass alone.
    seconds
        Wall time, with that of freeing what the trace leaves live.
    driver_seconds, driver_calls
        Time in the driver and calls by name, of this pass; those of the allocator's construction belong
        to the first.
    """

    peak_reserved_bytes: int
    fragmentation: float | None
    seconds: float
    driver_seconds: float
    driver_calls: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one allocator did with one trace. The fields up to `by_pass` are the JSON's.

    Parameters
    ----------
    trace, allocator, device
        Names.
    events, streams
        Number of the trace's events replayed, in all passes, and of streams that they were replayed on.
    peak_live_bytes
        The most bytes live at once, as requested, of the requests that were served.
    peak_reserved_bytes
        The most bytes of physical memory that the allocator held at once.
    fragmentation
        ``1 - peak_live_bytes / peak_reserved_bytes``; 0 for a trace that asks for nothing, and None where
        every request failed, so that there is nothing to tell.
    seconds
        Wall time of the replay, the loop's own included. Time that a model device charges does not pass.
    driver_seconds, driver_calls
        Time in the driver, modeled or measured, and calls by name, from the allocator's construction.
    microseconds_per_operation
        ``seconds / events``, in microseconds.
    failed_requests
        Requests that failed for lack of memory.
    passes, by_pass
        How often the trace was played, and what each pass took. All other figures are over all passes.
    timeline
        About 2000 points in order that keep the peaks. The most that was reserved within a stretch is
        known where it rose above all before; elsewhere it is what was reserved at the ends of the
        stretch, or what was live within it if that is more.
    """

    trace: str
    allocator: str
    device: str
    events: int
    streams: int
    peak_live_bytes: int
    peak_reserved_bytes: int
    fragmentation: float | None
    seconds: float
    driver_seconds: float
    driver_calls: Mapping[str, int]
    microseconds_per_operation: float
    failed_requests: int
    passes: int = 1
    by_pass: tuple[Pass, ...] = field(default=(), repr=False)
    timeline: tuple[TimelinePoint, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, object]:
        """Return the run as ``smartpool replay --json`` prints it: every field but the timeline."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "timeline"}
        by_pass = [asdict(one) for one in self.by_pass]
        return {**values, "driver_calls": dict(self.driver_calls), "by_pass": by_pass}

    def of_pass(self, number: int) -> Run:
        """Return pass `number`, counted from 0, as a run of its own, without a timeline.

        Peak live and failed requests are those of the whole run.
        """
        one = self.by_pass[number]
        events = self.events // self.passes
        return replace(
            self,
            events=events,
            peak_reserved_bytes=one.peak_reserved_bytes,
            fragmentation=one.fragmentation,
            seconds=one.seconds,
            driver_seconds=one.driver_seconds,
            driver_calls=one.driver_calls,
            microseconds_per_operation=one.seconds / events * 1e6 if events else 0.0,
            passes=1,
            by_pass=(one,),
            timeline=(),
        )


def share_idle(peak_live: int, peak_reserved: int, *, failed: bool) -> float | None:
    """Return ``1 - peak_live / peak_reserved``; of nothing reserved 0, or None where requests failed."""
    if peak_reserved:
        return 1 - peak_live / peak_reserved
    return None if failed else 0.0
