"""From the requests of one repetition to the plan by which the next is served.

A `Sequence` says what was requested, in order, and between which requests each was freed: integers
alone, no addresses. `make_plan` colours it with the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from smartpool.memory.arena import ALIGNMENT
from smartpool.units import align_up

if TYPE_CHECKING:
    import numpy as np

    Int64s = np.ndarray[Any, np.dtype[np.int64]]

__all__ = ["OUTLIVED", "Sequence", "StepPlan", "load_of", "make_plan"]

OUTLIVED: Final = -1
_PLANNING_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Sequence:
    """The requests of one stream in one repetition, in order.

    Attributes
    ----------
    nbytes
        Bytes of each request.
    freed_before
        The request before which each was freed, counted from the first of this repetition; `OUTLIVED`
        when it was not. Beyond the number of requests: that many requests into the next repetition.
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
    nbytes
        Bytes of each request, in order.
    offsets
        Offset of each in the region; -1 for requests that are left to the heap.
    due
        For each request, and for the end, the requests that are freed before it, by the plan.
    height
        Bytes of the region.
    shared
        Whether several threads take part, one after the other.
    """

    nbytes: tuple[int, ...]
    offsets: tuple[int, ...]
    due: tuple[tuple[int, ...], ...]
    height: int
    shared: bool = False

    @property
    def planned(self) -> int:
        """Requests that have a place in the region."""
        return len(self.offsets) - self.offsets.count(-1)


def make_plan(sequence: Sequence, *, spare_bytes: int = 0, piece_bytes: int = 0) -> StepPlan:
    """Colour the intervals of a repetition. Seconds for large ones: call it off the pool's lock.

    A request that is freed in the next repetition, before its own turn comes again, has its place
    to itself: its lifetime wraps around the end, and few bytes do where a repetition is cut well.
    One that lives for longer is left to the heap.

    Parameters
    ----------
    sequence
        The repetition.
    spare_bytes, piece_bytes
        By how much the region is to be lower than the load, and how large the requests may be that are
        left to the heap for that.
    """
    from smartpool.planner import plan  # noqa: PLC0415 - and with it NumPy, only where steps are planned

    count = len(sequence)
    lives = _lives_of(sequence)
    if spare_bytes > 0:
        _leave_out(lives, count, spare_bytes, piece_bytes)
    offsets = [-1] * count
    due: list[list[int]] = [[] for _ in range(count + 1)]
    height = 0
    if lives:
        starts, ends = [life.start for life in lives.values()], [life.end for life in lives.values()]
        sizes = [life.size for life in lives.values()]
        coloured = plan(starts, ends, sizes, alignment=ALIGNMENT, time_limit=_PLANNING_SECONDS)
        height = int(coloured.height)
        for (number, life), offset in zip(lives.items(), coloured.offsets.tolist(), strict=True):
            offsets[number] = offset
            if not life.wraps:
                due[life.end].append(number)
    return StepPlan(sequence.nbytes, tuple(offsets), tuple(map(tuple, due)), height, sequence.shared)


def load_of(sequence: Sequence) -> int:
    """Return the most bytes that requests of a repetition, which do not outlive it, hold at an instant.

    >>> load_of(Sequence((512, 1024, 512), (2, OUTLIVED, 3)))
    512
    """
    return int(_load_of(_lives_of(sequence), len(sequence)).max())


class _Life:
    """When a request is live, and how large its block is."""

    __slots__ = ("end", "size", "start", "wraps")

    def __init__(self, start: int, end: int, nbytes: int, *, wraps: bool = False) -> None:
        self.start = start
        self.end = end
        self.size = align_up(max(nbytes, 1), ALIGNMENT)
        self.wraps = wraps


def _lives_of(sequence: Sequence) -> dict[int, _Life]:
    """Return when each request that can be planned is live, by its number."""
    count = len(sequence)
    return {
        number: _Life(0, count, nbytes, wraps=True)
        if freed > count
        else _Life(number, max(freed, number + 1), nbytes)
        for number, (nbytes, freed) in enumerate(zip(sequence.nbytes, sequence.freed_before, strict=True))
        if OUTLIVED != freed <= count + number
    }


def _load_of(lives: dict[int, _Life], count: int) -> Int64s:
    """Return the load at each request."""
    import numpy as np  # noqa: PLC0415

    change = np.zeros(count + 1, dtype=np.int64)
    for life in lives.values():
        change[life.start] += life.size
        change[life.end] -= life.size
    return np.cumsum(change)


def _leave_out(lives: dict[int, _Life], count: int, spare_bytes: int, piece_bytes: int) -> None:
    """Take requests out until the load is lower: few, so the longest of those live where it is highest."""
    load = _load_of(lives, count)
    limit = int(load.max()) - spare_bytes
    while load.max() > max(limit, 0):
        peak = int(load.argmax())
        excess = int(load[peak]) - limit
        there = [
            number
            for number, life in lives.items()
            if life.start <= peak < life.end and life.size <= piece_bytes
        ]
        if not there:
            return  # the region stays too high, and is refused
        number = max(
            there, key=lambda one: (lives[one].end - lives[one].start) * min(lives[one].size, excess)
        )
        life = lives.pop(number)
        load[life.start : life.end] -= life.size
