"""Placing a block in a gap that a stream may touch, at once if there is one, else behind a wait."""

from __future__ import annotations

from itertools import islice
from typing import Final

from smartpool.heap.arena import Arena
from smartpool.heap.stream_order import StreamClock
from smartpool.units import align_up

__all__ = ["place_for_stream"]

_CANDIDATES: Final = 8


def place_for_stream(arena: Arena, clock: StreamClock, size: int, alignment: int, stream: int) -> int | None:
    """Place a block by first fit for use on `stream` and return its start; None when no gap fits.

    Among the first few that fit, a gap without a pending use of another stream is preferred; otherwise
    the stream waits, on the device, for the uses of the first.
    """
    if not arena.uses:
        return arena.allocate(size, alignment)
    gap = arena.find(size, alignment)
    if gap is None:
        return None
    uses = arena.uses_of(gap)
    if uses and not clock.ready(uses, stream):
        for other in islice(arena.fitting(size), _CANDIDATES):
            fits = align_up(other.start, alignment) + size <= other.end
            if fits and clock.ready(arena.uses_of(other), stream):
                gap = other
                break
        else:
            clock.wait(uses, stream)
    return arena.place(gap, size, alignment)
