"""Where an allocator put every block of a trace, and what memory it held at the time.

A `Run` has the figures of a replay; a `Layout` has the picture: time runs across, memory upward, each
block a rectangle. It is made by watching a replay from between the trace and the allocator, so any
`ReplayTarget` that can tell where its memory is has one, the peers' models and SmartPool alike.

Addresses are made compact. Reservations of virtual addresses are far larger than what is used of them,
and segments lie anywhere; shown are the ranges that ever had memory, one behind the other in the order
of their addresses. A block of SmartPool that is stitched together from pieces is shown in its pieces,
where they lie at home: one row of the picture is one piece of physical memory.

Memory is looked at when the reserved bytes have changed, after the call in which they did. What moved
while they stayed the same (the driver's own pool moves chunks) is seen at the next change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from smartpool.heap.arena import Range
from smartpool.trace.optimum import OPTIMUM, plan_of
from smartpool.trace.replay import Progress, ReplayTarget, Run, replay
from smartpool.trace.trace import ALLOCATE, Trace

__all__ = [
    "RECORDED",
    "Layout",
    "LayoutTarget",
    "covered_runs",
    "layout_of_plan",
    "recorded_layout",
    "watched_replay",
]

RECORDED: Final = "recorded"

Int64s = NDArray[np.int64]


class LayoutTarget(ReplayTarget, Protocol):
    """An allocator that can be replayed and tells where its memory is."""

    def memory(self) -> list[Range]:
        """Return where its physical memory is, by address."""

    def pieces(self, pointer: int) -> tuple[Range, ...]:
        """Return the memory under a live block, in order."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layout:
    """What lay where, in event-index time and compact addresses.

    Parameters
    ----------
    allocator
        The name.
    number, offset, size
        One row a rectangle: the number of its allocation (in the order in which they began), where it
        lies, and its bytes as requested. Allocations that failed have none; stitched ones several.
    held_start, held_end, held_offset, held_size
        One row a range of memory: from which event on and until which it was held.
    change, reserved
        The events after which the reserved bytes changed, and what they were from then on.
    span_bytes
        The height of the picture: no rectangle ends above it.
    """

    allocator: str
    number: Int64s
    offset: Int64s
    size: Int64s
    held_start: Int64s
    held_end: Int64s
    held_offset: Int64s
    held_size: Int64s
    change: Int64s
    reserved: Int64s
    span_bytes: int


def watched_replay(
    trace: Trace, target: LayoutTarget, *, streams: str = "one", progress: Progress | None = None
) -> tuple[Run, Layout]:
    """Replay a trace as `smartpool.trace.replay.replay` does, and return the layout too.

    Examples
    --------
    >>> from smartpool.trace.targets import open_target
    >>> trace = Trace.from_columns("tiny", op=[0, 0, 1], id=[0, 1, 0], size=[4096, 9, 4096])
    >>> with open_target("pytorch", "model:1GiB") as target:
    ...     run, layout = watched_replay(trace, target)
    >>> layout.offset.tolist(), layout.size.tolist(), layout.held_size.tolist(), layout.span_bytes
    ([0, 4096], [4096, 9], [2097152], 2097152)
    """
    watch = _Watch(trace, target)
    run = replay(trace, watch, streams=streams, progress=progress)
    return run, watch.layout()


def layout_of_plan(trace: Trace, *, time_limit: float | None = None) -> Layout:
    """Return the layout of a plan of the whole trace: what an allocator with foresight would do.

    Blocks are multiples of 512 bytes, as everywhere. The plan's memory is held from the first event to
    the last.
    """
    _, found = plan_of(trace, time_limit=time_limit)
    height = int(found.height)
    return Layout(
        allocator=OPTIMUM,
        number=np.arange(trace.allocations, dtype=np.int64),
        offset=found.offsets,
        size=trace.lifetimes().size,
        held_start=np.zeros(1, np.int64),
        held_end=np.full(1, trace.events, np.int64),
        held_offset=np.zeros(1, np.int64),
        held_size=np.full(1, height, np.int64),
        change=np.zeros(1, np.int64),
        reserved=np.full(1, height, np.int64),
        span_bytes=height,
    )


def recorded_layout(trace: Trace) -> Layout | None:
    """Return where the recording allocator put the blocks, None where addresses were not recorded.

    What it held is not known: the ranges that blocks touch are shown, from the beginning to the end.
    """
    if trace.address is None:
        return None
    lifetimes = trace.lifetimes()
    address = trace.address[lifetimes.start]
    nothing = np.zeros(0, np.int64)
    return _compact(
        RECORDED,
        np.arange(trace.allocations, dtype=np.int64),
        address,
        lifetimes.size,
        held=(nothing, nothing, nothing, nothing),
        steps=(nothing, nothing),
    )


class _Watch:
    """A `ReplayTarget` between a trace and another one: notes what comes back."""

    def __init__(self, trace: Trace, target: LayoutTarget) -> None:
        self._target = target
        self.name, self.device = target.name, target.device
        self._events = trace.events
        # The loop leaves out the frees of requests that failed: the watch has to know which event it sees.
        self._numbers = trace.allocation_numbers().tolist()
        self._allocates = (trace.op == ALLOCATE).tolist()
        self._failed: set[int] = set()
        self._event = 0
        self._rows: list[tuple[int, int, int]] = []  # number, address, bytes
        self._reserved = 0
        self._steps: list[tuple[int, int]] = []
        self._held: dict[Range, int] = {}  # to the event of its beginning
        self._ended: list[tuple[int, int, Range]] = []

    @property
    def peak_reserved_bytes(self) -> int:
        return self._target.peak_reserved_bytes

    @property
    def driver_seconds(self) -> float:
        return self._target.driver_seconds

    @property
    def driver_calls(self) -> Mapping[str, int]:
        return self._target.driver_calls

    def reserved_bytes(self) -> int:
        return self._target.reserved_bytes()

    def stream(self, number: int) -> Any:
        return self._target.stream(number)

    def malloc(self, nbytes: int, stream: Any) -> int:
        number = self._next(allocates=True)
        try:
            pointer = self._target.malloc(nbytes, stream)
        except MemoryError:
            self._failed.add(number)
            self._look()
            raise
        left = nbytes
        for piece in self._target.pieces(pointer) or (Range(pointer, nbytes),):
            self._rows.append((number, piece.start, min(piece.size, left)))
            left -= min(piece.size, left)
        self._look()
        return pointer

    def free(self, pointer: int, stream: Any) -> None:
        self._next(allocates=False)
        self._target.free(pointer, stream)
        self._look()

    def _next(self, *, allocates: bool) -> int:
        """Go on to the event that this call plays, and return the number of its allocation."""
        numbers, allocations, failed = self._numbers, self._allocates, self._failed
        event = self._event
        while not allocations[event] and numbers[event] in failed:
            event += 1
        assert allocations[event] == allocates
        self._event = event + 1
        number: int = numbers[event]
        return number

    def _look(self) -> None:
        """See whether the memory changed in the call for the event before `_event`."""
        reserved = self._target.reserved_bytes()
        if reserved == self._reserved:
            return
        self._reserved = reserved
        now = self._event - 1
        self._steps.append((now, reserved))
        memory = set(_joined(self._target.memory()))
        for gone in self._held.keys() - memory:
            self._ended.append((self._held.pop(gone), now, gone))
        for new in memory - self._held.keys():
            self._held[new] = now

    def layout(self) -> Layout:
        """Return what was seen."""
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, 3)
        ended = [*self._ended, *((start, self._events, one) for one, start in self._held.items())]
        held = np.array([(start, end, *one) for start, end, one in ended], np.int64).reshape(-1, 4)
        steps = np.array(self._steps, dtype=np.int64).reshape(-1, 2)
        return _compact(
            self.name,
            *rows.T,
            held=tuple(held[np.argsort(held[:, 0], kind="stable")].T),
            steps=tuple(steps.T),
        )


def _joined(ranges: list[Range]) -> list[Range]:
    """Return ranges that touch as one."""
    joined: list[Range] = []
    for one in ranges:
        if joined and joined[-1].end == one.start:
            joined[-1] = Range(joined[-1].start, joined[-1].size + one.size)
        else:
            joined.append(one)
    return joined


def _compact(
    allocator: str,
    number: Int64s,
    address: Int64s,
    size: Int64s,
    *,
    held: tuple[Int64s, ...],
    steps: tuple[Int64s, ...],
) -> Layout:
    """Return the layout with the address ranges that were ever used put one behind the other."""
    held_start, held_end, held_address, held_size = held
    begin, end = covered_runs(np.concatenate([address, held_address]), np.concatenate([size, held_size]))
    base = np.concatenate([[0], np.cumsum(end - begin)])

    def moved(addresses: Int64s) -> Int64s:
        run = np.searchsorted(begin, addresses, side="right") - 1
        result: Int64s = addresses - begin[run] + base[run] if len(begin) else addresses
        return result

    return Layout(
        allocator=allocator,
        number=number,
        offset=moved(address),
        size=size,
        held_start=held_start,
        held_end=held_end,
        held_offset=moved(held_address),
        held_size=held_size,
        change=steps[0],
        reserved=steps[1],
        span_bytes=int(base[-1]),
    )


def covered_runs(address: Int64s, size: Int64s) -> tuple[Int64s, Int64s]:
    """Return begin and end of the runs that ranges cover together; ranges that touch are one. O(n log n).

    Examples
    --------
    >>> begin, end = covered_runs(np.array([0, 50, 10]), np.array([10, 5, 20]))
    >>> begin.tolist(), end.tolist()
    ([0, 50], [30, 55])
    """
    order = np.argsort(address, kind="stable")
    begin, reach = address[order], np.maximum.accumulate((address + size)[order])
    if not len(begin):
        return begin, reach
    breaks = np.flatnonzero(begin[1:] > reach[:-1])
    return begin[np.append(0, breaks + 1)], reach[np.append(breaks, len(reach) - 1)]
