"""Replay: drive an allocator through a recorded trace and measure it.

Problem: say how much memory an allocator reserves for a real sequence of requests, and what that
costs, without the program that made them. Fragmentation is ``1 - peak live / peak reserved`` with
live in bytes as requested: the definition of GMLake (Guo et al., ASPLOS 2024) and STAlloc.
Method: a loop over lists that NumPy made beforehand. It holds nothing but a list of pointers, so what
it adds is a few hundredths of a microsecond an event; `loop_seconds` measures it against an allocator
that does nothing.
A request that fails for lack of memory is counted, and so is no longer live: its free is skipped.
A program repeats its work, so a replay can too: passes are played one after another in one allocator,
and what a trace leaves live is freed at the end of its pass.
Rejected: replay by the recorded clock (idle time says nothing about an allocator, and the peers were
replayed as fast as they go); reading `reserved_bytes` after each event (it would be a third of the time
of the fastest allocators); pausing the garbage collector (programs do not).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, repeat
from time import perf_counter
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from smartpool.errors import InvalidRequestError
from smartpool.trace.runs import Pass, Run, TimelinePoint, share_idle
from smartpool.trace.trace import ALLOCATE, Trace
from smartpool.values import as_integer, shown

__all__ = [
    "STREAM_MODES",
    "Pass",
    "Progress",
    "ReplayTarget",
    "Run",
    "TimelinePoint",
    "loop_seconds",
    "replay",
    "replay_passes",
]

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


def replay(
    trace: Trace,
    target: ReplayTarget,
    *,
    passes: int = 1,
    streams: str = "one",
    progress: Progress | None = None,
) -> Run:
    """Drive `target` through `trace` and return what it did.

    Parameters
    ----------
    trace
        The trace.
    target
        A fresh allocator: what it did before counts as done by this run.
    passes
        How often the trace is played, one pass after another in the same allocator. With more than one,
        what is live at the end of each is freed there; with one it stays allocated.
    streams
        ``"one"`` plays every event on stream 0, as the recorded peers were played; ``"own"`` plays each
        on the stream of the trace.
    progress
        Called some hundred times a pass with (events done, events of all passes).

    Returns
    -------
    Run
        O(events) time a pass; the loop holds one pointer an allocation.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> from smartpool.trace.baselines import make_baseline
    >>> trace = Trace.from_columns("tiny", op=[0, 0, 1], id=[0, 1, 0], size=[4096, 8192, 4096])
    >>> run = replay(trace, make_baseline("pytorch", open_driver("model:1GiB")), passes=3)
    >>> run.peak_live_bytes, run.peak_reserved_bytes, run.failed_requests
    (12288, 2097152, 0)
    >>> [one.driver_calls for one in run.by_pass]
    [{'allocate': 1}, {}, {}]
    """
    count = as_integer(passes)
    if count is None or count < 1:
        raise InvalidRequestError(f"passes: expected an integer of at least 1, got {shown(passes)}")
    return replay_passes([trace] * count, target, streams=streams, progress=progress)


def replay_passes(
    traces: Sequence[Trace], target: ReplayTarget, *, streams: str = "one", progress: Progress | None = None
) -> Run:
    """Drive `target` through passes that may differ, a trace each, and return what it did.

    As `replay` does; the run has the name of the first trace.
    """
    if streams not in STREAM_MODES:
        raise ValueError(f"expected streams to be one of {STREAM_MODES}, got {streams!r}")
    if not traces:
        raise ValueError("expected at least one trace, got none")
    own_streams = streams == "own"
    used = max(trace.streams for trace in traces) if own_streams else 1
    handles = [target.stream(number) for number in range(used)]
    watch = _Watch(target, sum(trace.events for trace in traces), progress)
    rows: _Rows | None = None
    for trace in traces:
        if rows is None or rows.trace is not trace:
            rows = _Rows(trace, handles, own_streams=own_streams)
        watch.play(_Loop(rows, target), frees_rest=len(traces) > 1, points_as_one=len(traces))
    seconds = sum(one.seconds for one in watch.passes)
    return Run(
        trace=traces[0].name,
        allocator=target.name,
        device=target.device,
        events=watch.events,
        streams=used if watch.events else 0,
        peak_live_bytes=watch.peak_live,
        peak_reserved_bytes=target.peak_reserved_bytes,
        fragmentation=share_idle(watch.peak_live, target.peak_reserved_bytes, failed=watch.failed > 0),
        seconds=seconds,
        driver_seconds=target.driver_seconds,
        driver_calls=dict(sorted(target.driver_calls.items())),
        microseconds_per_operation=seconds / watch.events * 1e6 if watch.events else 0.0,
        failed_requests=watch.failed,
        passes=len(traces),
        by_pass=tuple(watch.passes),
        timeline=tuple(watch.timeline),
    )


def loop_seconds(trace: Trace) -> float:
    """Return the wall time that the loop of `replay` itself takes on this trace, here and now."""
    loop = _Loop(_Rows(trace, [0], own_streams=False), _Nothing())
    loop.advance(trace.events)
    return loop.seconds


class _Watch:
    """Plays passes on a target, and holds what each took and what all came to."""

    def __init__(self, target: ReplayTarget, total: int, progress: Progress | None) -> None:
        self._target = target
        self._total = total
        self._progress = progress
        self._reserved = self._peak = 0  # now, and the most so far
        self._driver_seconds = 0.0
        self._driver_calls: dict[str, int] = {}
        self.events = self.peak_live = self.failed = 0
        self.passes: list[Pass] = []
        self.timeline: list[TimelinePoint] = []

    def play(self, loop: _Loop, *, frees_rest: bool, points_as_one: int) -> None:
        """Play one pass, and join so many of its points to one of the timeline."""
        trace = loop.rows.trace
        stretch = max(1, -(-trace.events // TIMELINE_POINTS))
        held = self._held(loop, stretch, frees_rest=frees_rest)
        live = trace.live_bytes(without=loop.failed)
        peak_live, peak_reserved = int(live.max(initial=0)), self._reserved
        if live.size:
            starts = np.arange(0, live.size, stretch)
            held = np.maximum(held, np.maximum.reduceat(live, starts))  # never less than what is live
            self._draw(live, held, stretch, points_as_one)
            peak_reserved = int(held.max())
        calls, seconds = dict(sorted(self._target.driver_calls.items())), self._target.driver_seconds
        before = self._driver_calls
        self.passes.append(
            Pass(
                peak_reserved_bytes=peak_reserved,
                fragmentation=share_idle(peak_live, peak_reserved, failed=bool(loop.failed)),
                seconds=loop.seconds,
                driver_seconds=seconds - self._driver_seconds,
                driver_calls={
                    call: count - before.get(call, 0)
                    for call, count in calls.items()
                    if count != before.get(call, 0)
                },
            )
        )
        self._driver_seconds, self._driver_calls = seconds, calls
        self.events += trace.events
        self.peak_live = max(self.peak_live, peak_live)
        self.failed += len(loop.failed)

    def _held(self, loop: _Loop, stretch: int, *, frees_rest: bool) -> NDArray[np.int64]:
        """Play a pass and return for each stretch of it the most bytes that were seen reserved in it."""
        events = loop.rows.trace.events
        points = -(-events // stretch)
        held = np.zeros(points, dtype=np.int64)
        report_every = max(1, points // 200)
        for point in range(points):
            loop.advance(stretch)
            last = point == points - 1
            if last and frees_rest:
                loop.free_rest()
            highest, now = self._target.peak_reserved_bytes, self._target.reserved_bytes()
            held[point] = highest if highest > self._peak else max(self._reserved, now)
            self._reserved, self._peak = now, highest
            if self._progress is not None and (point % report_every == 0 or last):
                self._progress(self.events + min(events, (point + 1) * stretch), self._total)
        return held

    def _draw(self, live: NDArray[np.int64], held: NDArray[np.int64], stretch: int, joined: int) -> None:
        """Add the points of a pass to the timeline."""
        starts = np.arange(0, live.size, stretch * joined)
        highest = np.maximum.reduceat(live, starts)
        reserved = np.maximum.reduceat(held, np.arange(0, held.size, joined))
        last = self.events + np.minimum(starts + stretch * joined, live.size) - 1
        self.timeline += map(TimelinePoint, last.tolist(), highest.tolist(), reserved.tolist())


class _Rows:
    """The events of a trace as lists: numbers, sizes and streams, and what is live at the end."""

    def __init__(self, trace: Trace, handles: list[Any], *, own_streams: bool) -> None:
        self.trace = trace
        self.numbers = trace.allocation_numbers().tolist()
        self.sizes = np.where(trace.op == ALLOCATE, trace.size, 0).tolist()  # 0 says that it is a free
        self.streams = [handles[number] for number in trace.stream.tolist()] if own_streams else None
        self.only_stream = handles[0] if handles else None
        left = trace.lifetimes()
        kept = left.start[left.end == trace.events].tolist()
        self.rest = [(self.numbers[event], self.stream_of(event)) for event in kept]

    def stream_of(self, event: int) -> Any:
        """Return the stream of an event."""
        return self.only_stream if self.streams is None else self.streams[event]


class _Loop:
    """One pass over the rows of a trace: how far it was played, what failed, and the time it took."""

    def __init__(self, rows: _Rows, target: ReplayTarget) -> None:
        self.rows = rows
        streams = repeat(rows.only_stream) if rows.streams is None else rows.streams
        self._rows = iter(zip(rows.numbers, rows.sizes, streams, strict=False))
        self._target = target
        self._pointers: list[int | None] = [None] * rows.trace.allocations
        self.failed: list[int] = []
        self.seconds = 0.0

    def advance(self, events: int) -> None:
        """Play the next `events` events, or what is left of them."""
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

    def free_rest(self) -> None:
        """Free what the trace leaves live, each where it was allocated."""
        pointers, free = self._pointers, self._target.free
        start = perf_counter()
        for number, stream in self.rows.rest:
            pointer = pointers[number]
            if pointer is not None:
                free(pointer, stream)
        self.seconds += perf_counter() - start


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
