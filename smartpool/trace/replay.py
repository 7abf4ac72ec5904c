"""Replay: drive an allocator through a recorded trace and measure it.

Problem: say how much memory an allocator reserves for a real sequence of requests, and what that
costs, without the program that made them. Fragmentation is ``1 - peak live / peak reserved`` with
live in bytes as requested: the definition of GMLake (Guo et al., ASPLOS 2024) and STAlloc.
Method: a loop over lists that NumPy made beforehand. It holds nothing but a list of pointers, so what
it adds is a few hundredths of a microsecond an event; `loop_seconds` measures it against an allocator
that does nothing.
A request that fails for lack of memory is counted, and so is no longer live: its free is skipped.
Rejected: replay by the recorded clock (idle time says nothing about an allocator, and the peers were
replayed as fast as they go); reading `reserved_bytes` after each event (it would be a third of the time
of the fastest allocators); pausing the garbage collector (programs do not).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice, repeat
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from smartpool.trace.trace import ALLOCATE, Trace

__all__ = ["STREAM_MODES", "Progress", "ReplayTarget", "Run", "TimelinePoint", "loop_seconds", "replay"]

STREAM_MODES: Final = ("one", "own")
TIMELINE_POINTS: Final = 2000

Progress = Callable[[int, int], None]
"""Called now and then with the number of events done and of all events; last with both equal."""


class ReplayTarget(Protocol):
    """An allocator that can be replayed."""

    @property
    def name(self) -> str:
        """What the allocator is called in tables."""

    @property
    def device(self) -> str:
        """The name of the device whose memory it hands out."""

    @property
    def peak_reserved_bytes(self) -> int:
        """The most physical memory that it held at any instant of its life, exact."""

    @property
    def driver_seconds(self) -> float:
        """Time in the driver so far: by the model's table of costs, or measured."""

    @property
    def driver_calls(self) -> Mapping[str, int]:
        """Number of driver calls so far, by name."""

    def stream(self, number: int) -> Any:
        """Return what `malloc` and `free` call the trace's stream of that number. Asked once a replay."""

    def malloc(self, nbytes: int, stream: Any) -> int:
        """Return the address of `nbytes` > 0 bytes for use on `stream`.

        Raises a `MemoryError` when there is no memory for them, and stays as it was.
        """

    def free(self, pointer: int, stream: Any) -> None:
        """Take back what `malloc` returned; it was last used on `stream`."""

    def reserved_bytes(self) -> int:
        """Return the physical memory held now."""


class TimelinePoint(NamedTuple):
    """A stretch of a run: its last event, and the most bytes that were live and reserved within it."""

    event: int
    live_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one allocator did with one trace. The fields up to `failed_requests` are the JSON's.

    Parameters
    ----------
    trace, allocator, device
        Names.
    events, streams
        Number of events replayed, and of streams that they were replayed on.
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
        Time in the driver, modelled or measured, and calls by name, from the allocator's construction.
    microseconds_per_operation
        ``seconds / events``, in microseconds.
    failed_requests
        Requests that failed for lack of memory.
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
    timeline: tuple[TimelinePoint, ...] = field(default=(), repr=False)

    def as_json(self) -> dict[str, object]:
        """Return the run as ``smartpool replay --json`` prints it: every field but the timeline."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "timeline"}
        return {**values, "driver_calls": dict(self.driver_calls)}


def replay(
    trace: Trace, target: ReplayTarget, *, streams: str = "one", progress: Progress | None = None
) -> Run:
    """Drive `target` through `trace` and return what it did.

    Parameters
    ----------
    trace
        The trace. What is live at its end stays allocated.
    target
        A fresh allocator: what it did before counts as done by this run.
    streams
        ``"one"`` plays every event on stream 0, as the recorded peers were played; ``"own"`` plays each
        on the stream of the trace.
    progress
        Called some hundred times with (events done, events).

    Returns
    -------
    Run
        O(events) time; the loop holds one pointer an allocation.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> from smartpool.trace.baselines import make_baseline
    >>> trace = Trace.from_columns("tiny", op=[0, 0, 1], id=[0, 1, 0], size=[4096, 8192, 4096])
    >>> run = replay(trace, make_baseline("pytorch", open_driver("model:1GiB")))
    >>> run.peak_live_bytes, run.peak_reserved_bytes, run.failed_requests
    (12288, 2097152, 0)
    """
    if streams not in STREAM_MODES:
        raise ValueError(f"expected streams to be one of {STREAM_MODES}, got {streams!r}")
    loop = _Loop(trace, target, own_streams=streams == "own")
    reserved = np.zeros(loop.points, dtype=np.int64)
    done, peak = 0, 0
    report_every = max(1, loop.points // 200)
    for point in range(loop.points):
        done += loop.advance(loop.events_per_point)
        highest = target.peak_reserved_bytes
        reserved[point] = highest if highest > peak else target.reserved_bytes()
        peak = highest
        if progress is not None and (point % report_every == 0 or done == trace.events):
            progress(done, trace.events)
    return _run(trace, target, loop, reserved, streams)


def loop_seconds(trace: Trace) -> float:
    """Return the wall time that the loop of `replay` itself takes on this trace, here and now."""
    loop = _Loop(trace, _Nothing(), own_streams=False)
    loop.advance(trace.events)
    return loop.seconds


class _Loop:
    """The events of a trace as lists, how far they were played, and the time that took."""

    def __init__(self, trace: Trace, target: ReplayTarget, *, own_streams: bool) -> None:
        handles = [target.stream(number) for number in range(trace.streams if own_streams else 1)]
        streams = [handles[number] for number in trace.stream.tolist()] if own_streams else repeat(handles[0])
        numbers = trace.allocation_numbers().tolist()
        sizes = np.where(trace.op == ALLOCATE, trace.size, 0).tolist()  # 0 says that the event is a free
        self._rows = iter(zip(numbers, sizes, streams, strict=False))
        self._target = target
        self._pointers: list[int | None] = [None] * trace.allocations
        self.events_per_point = max(1, -(-trace.events // TIMELINE_POINTS))
        self.points = -(-trace.events // self.events_per_point)
        self.failed: list[int] = []
        self.seconds = 0.0

    def advance(self, events: int) -> int:
        """Play the next `events` events, or what is left of them, and return how many."""
        pointers = self._pointers
        malloc, free = self._target.malloc, self._target.free
        rows = list(islice(self._rows, events))
        start = perf_counter()
        for number, nbytes, stream in rows:
            if nbytes:
                try:
                    pointers[number] = malloc(nbytes, stream)
                except MemoryError:
                    self.failed.append(number)
            else:
                pointer = pointers[number]
                if pointer is not None:  # what failed has nothing to free
                    free(pointer, stream)
        self.seconds += perf_counter() - start
        return len(rows)


class _Nothing:
    """An allocator that does nothing, to measure the loop."""

    name = "nothing"
    device = "none"
    peak_reserved_bytes = 0
    driver_seconds = 0.0
    driver_calls: Mapping[str, int] = {}

    def stream(self, number: int) -> int:
        return number

    def malloc(self, nbytes: int, stream: int) -> int:  # noqa: ARG002
        return 0

    def free(self, pointer: int, stream: int) -> None:
        pass

    def reserved_bytes(self) -> int:
        return 0


def _run(trace: Trace, target: ReplayTarget, loop: _Loop, reserved: NDArray[np.int64], streams: str) -> Run:
    """Put the run together from what the loop and the target know."""
    live = _served_live_bytes(trace, loop.failed)
    peak_live, peak_reserved = int(live.max(initial=0)), target.peak_reserved_bytes
    return Run(
        trace=trace.name,
        allocator=target.name,
        device=target.device,
        events=trace.events,
        streams=trace.streams if streams == "own" else min(1, trace.streams),
        peak_live_bytes=peak_live,
        peak_reserved_bytes=peak_reserved,
        fragmentation=_share_idle(peak_live, peak_reserved, failed=bool(loop.failed)),
        seconds=loop.seconds,
        driver_seconds=target.driver_seconds,
        driver_calls=dict(sorted(target.driver_calls.items())),
        microseconds_per_operation=loop.seconds / trace.events * 1e6 if trace.events else 0.0,
        failed_requests=len(loop.failed),
        timeline=_timeline(live, reserved, loop.events_per_point),
    )


def _share_idle(peak_live: int, peak_reserved: int, *, failed: bool) -> float | None:
    if peak_reserved:
        return 1 - peak_live / peak_reserved
    return None if failed else 0.0


def _served_live_bytes(trace: Trace, failed: list[int]) -> NDArray[np.int64]:
    """Return the live bytes after each event, without the requests that failed."""
    if not failed:
        return trace.live_bytes()
    signed = np.where(trace.op == ALLOCATE, trace.size, -trace.size)
    return np.cumsum(np.where(np.isin(trace.allocation_numbers(), failed), 0, signed))


def _timeline(
    live: NDArray[np.int64], reserved: NDArray[np.int64], stretch: int
) -> tuple[TimelinePoint, ...]:
    """Return one point for each `stretch` events."""
    if not live.size:
        return ()
    starts = np.arange(0, live.size, stretch)
    highest = np.maximum.reduceat(live, starts)
    # What was reserved before a stretch was reserved within it, and never is less than what is live.
    held = np.maximum(np.maximum(reserved, np.concatenate(([0], reserved[:-1]))), highest)
    last = np.minimum(starts + stretch, live.size) - 1
    return tuple(map(TimelinePoint, last.tolist(), highest.tolist(), held.tolist()))
