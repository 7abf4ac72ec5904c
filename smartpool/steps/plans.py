"""From the requests of one repetition to the plan by which the next is served.

A `Watch` writes down what is requested and freed: an observer of the table of live blocks
(`smartpool.pool.bins`), which costs 0.5 us a request and free while it is on, and nothing else. `sequences`
reads what it wrote as a `Sequence` a stream: what was requested, in order, and between which requests each
was freed, integers alone and no addresses. `make_plan` colors that with the planner.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import get_ident
from typing import Final, NamedTuple

from smartpool.heap.arena import ALIGNMENT
from smartpool.pool.attachments import RequestFront
from smartpool.units import align_up

__all__ = ["OUTLIVED", "LogEntry", "Sequence", "StepPlan", "Watch", "make_plan", "sequences"]

OUTLIVED: Final = -1

LogEntry = int | tuple[int, int, int, int]
"""A free: the address. A request: address, bytes, stream, thread. Tuples, for the price of each."""


class Watch:
    """Writes down requests and frees until there are `limit`. Any thread may be watched.

    Parameters
    ----------
    limit
        Requests and frees after which it has seen enough.
    front
        The pool's: gives back what was put aside, so that it is seen before the next request.

    Attributes
    ----------
    log
        What happened so far.
    """

    def __init__(self, limit: int, front: RequestFront | None = None) -> None:
        self.log: list[LogEntry] = []
        self._limit = limit
        self._front = front

    def allocated(self, pointer: int, nbytes: int, stream: int) -> None:
        """Note a request."""
        if self._front is not None:
            self._front.drain()
        if len(self.log) < self._limit:
            self.log.append((pointer, nbytes, stream, get_ident()))

    def freed(self, pointer: int, stream: int) -> None:  # noqa: ARG002 - an observer's method
        """Note a free."""
        if len(self.log) < 2 * self._limit:
            self.log.append(pointer)

    @property
    def full(self) -> bool:
        """Whether it has seen enough."""
        return len(self.log) >= self._limit


@dataclass(frozen=True, slots=True)
class Sequence:
    """The requests of one stream in one repetition, in order.

    Attributes
    ----------
    nbytes
        Bytes of each request.
    freed_before
        The request before which each was freed, counted from the first; `OUTLIVED` when it was not.
    shared
        Whether several threads took part, one after the other.
    """

    nbytes: tuple[int, ...]
    freed_before: tuple[int, ...]
    shared: bool = False

    def __len__(self) -> int:
        return len(self.nbytes)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Where the requests of a step go, relative to the region.

    Attributes
    ----------
    sequence
        The requests.
    offsets
        Offset of each in the region; -1 for requests that are left to the heap.
    due
        For each request, and for the end, the requests that are freed before it, by the plan.
    height
        Bytes of the region.
    """

    sequence: Sequence
    offsets: tuple[int, ...]
    due: tuple[tuple[int, ...], ...]
    height: int


def sequences(log: Iterable[LogEntry], *, thread: int | None = None) -> dict[int, Sequence]:
    """Return the requests in a log by stream; with `thread`, those of that thread alone.

    Examples
    --------
    >>> log = [(512, 100, 0, 1), (1024, 70, 0, 1), 512, (512, 100, 0, 1)]
    >>> sequences(log)[0]
    Sequence(nbytes=(100, 70, 100), freed_before=(2, -1, -1), shared=False)
    """
    nbytes: dict[int, list[int]] = {}
    freed: dict[int, list[int]] = {}
    threads: dict[int, set[int]] = {}
    live: dict[int, tuple[int, int]] = {}
    for entry in log:
        if isinstance(entry, int):
            found = live.pop(entry, None)
            if found is not None:
                stream, number = found
                freed[stream][number] = len(nbytes[stream])
            continue
        pointer, size, stream, ident = entry
        if thread is not None and ident != thread:
            continue
        sizes = nbytes.setdefault(stream, [])
        live[pointer] = (stream, len(sizes))
        sizes.append(size)
        freed.setdefault(stream, []).append(OUTLIVED)
        threads.setdefault(stream, set()).add(ident)
    return {
        stream: Sequence(tuple(sizes), tuple(freed[stream]), len(threads[stream]) > 1)
        for stream, sizes in nbytes.items()
    }


def make_plan(
    sequence: Sequence, *, seconds: float = 5.0, room_bytes: int | None = None, piece_bytes: int = 0
) -> StepPlan:
    """Color the intervals of a repetition. Seconds for large ones: call it off the pool's lock.

    What outlives the repetition is left to the heap.

    Parameters
    ----------
    sequence
        The repetition.
    seconds
        How long the planner may look for a lower region.
    room_bytes, piece_bytes
        What the region may have, where it cannot have all that is requested at a time; and how large the
        requests may be that are left to the heap for that.
    """
    from smartpool.planner import plan  # noqa: PLC0415 - and with it NumPy, only where steps are planned

    count = len(sequence)
    lives = {
        number: _Life(number, max(freed, number + 1), align_up(max(nbytes, 1), ALIGNMENT))
        for number, (nbytes, freed) in enumerate(zip(sequence.nbytes, sequence.freed_before, strict=True))
        if freed != OUTLIVED
    }
    if room_bytes is not None:
        _leave_out(lives, count, room_bytes, piece_bytes)
    offsets = [-1] * count
    due: list[list[int]] = [[] for _ in range(count + 1)]
    height = 0
    if lives:
        starts, ends, sizes = zip(*lives.values(), strict=True)
        colored = plan(starts, ends, sizes, alignment=ALIGNMENT, time_limit=seconds)
        height = int(colored.height)
        for (number, life), offset in zip(lives.items(), colored.offsets.tolist(), strict=True):
            offsets[number] = offset
            due[life.end].append(number)
    return StepPlan(sequence, tuple(offsets), tuple(map(tuple, due)), height)


class _Life(NamedTuple):
    """From which request on a block is live, before which it is freed, and its bytes."""

    start: int
    end: int
    size: int


def _leave_out(lives: dict[int, _Life], count: int, room_bytes: int, piece_bytes: int) -> None:
    """Take requests out until the load fits: few, so the longest of those live where it is highest."""
    import numpy as np  # noqa: PLC0415

    change = np.zeros(count + 1, dtype=np.int64)
    for life in lives.values():
        change[life.start] += life.size
        change[life.end] -= life.size
    load = np.cumsum(change)
    while load.max() > room_bytes:
        peak = int(load.argmax())
        excess = int(load[peak]) - room_bytes
        there = [n for n, one in lives.items() if one.start <= peak < one.end and one.size <= piece_bytes]
        if not there:
            return  # the region stays too high, and is refused
        number = max(there, key=lambda n: (lives[n].end - lives[n].start) * min(lives[n].size, excess))
        life = lives.pop(number)
        load[life.start : life.end] -= life.size
