"""Moving blocks: what `smartpool.memory.compaction` plans, done on a device.

Only blocks whose owner said so can be moved: a `Movable` reads its address when it needs it, and is
pinned while somebody uses it. A move is a copy on the block's own stream, so work that was queued
there before reads the old place, and work that is queued later the new one. Other streams that used
the block, and those that may still touch the gap it moves to, are waited for on the device; whoever
takes the old place waits for the copy. The host waits for nothing.

A block on a stream that is being captured into a graph stays: the copy would become a part of the graph.

Failure. A copy that the driver refuses ends the compaction; what was moved before is whole, and so is
the block in question, at its old place.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

from smartpool.driver.protocol import Driver
from smartpool.memory.compaction import Move, Segment, plan_moves
from smartpool.pool.bins import Bin, LiveTable
from smartpool.pool.heap.segments import SegmentHeap
from smartpool.pool.streams import StreamClock

__all__ = ["Compactor", "Movable", "Movables"]


class Movable(Protocol):
    """The owner of a block that may be moved."""

    def begin_move(self) -> int | None:
        """Return the block's address and hold it in place, or None: it is pinned, or gone."""

    def end_move(self, address: int) -> None:
        """Let go of the block, which is at `address` now."""


class Movables:
    """The movable blocks of one pool. They are held weakly: who drops one frees it.

    Attributes
    ----------
    lock
        Held while a block is moved, pinned or freed by its owner.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._all: weakref.WeakSet[Movable] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, movable: Movable) -> None:
        """Enter a block's owner."""
        with self.lock:
            self._all.add(movable)

    def held(self) -> Iterator[tuple[int, Movable]]:
        """Hold every block that is not pinned in place, and yield (address, owner)."""
        with self.lock:
            movables = list(self._all)
        for movable in movables:
            address = movable.begin_move()
            if address is not None:
                yield address, movable


class Compactor:
    """One compaction of a heap of segments. The pool's lock guards it.

    Parameters
    ----------
    driver, clock, heap, live
        The pool's.
    stamp
        Returns the uses that cover the work queued on a stream so far; None while the pool uses
        one stream only.
    """

    def __init__(
        self,
        driver: Driver,
        clock: StreamClock,
        heap: SegmentHeap,
        live: LiveTable,
        stamp: Callable[[int], dict[int, int] | None],
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._heap = heap
        self._live = live
        self._stamp = stamp

    def run(self, movables: Movables) -> int:
        """Move what can be moved, and return the bytes."""
        with movables.lock:
            owners: dict[int, Movable] = {}
            moved = 0
            try:
                owners.update(movables.held())  # in here: whatever was held is let go below
                streams = {bin_.stream for address in owners if (bin_ := self._live.get(address)) is not None}
                captured = {stream for stream in streams if self._driver.is_capturing(stream)}
                free_to_move = frozenset(
                    address
                    for address in owners
                    if (bin_ := self._live.get(address)) is not None
                    and bin_.__class__ is Bin
                    and bin_.stream not in captured
                )
                for move in self._plan(free_to_move):
                    if self._move(move, owners):
                        moved += move.size
            finally:
                _let_go(owners)
        return moved

    def _plan(self, movable: frozenset[int]) -> list[Move]:
        moves: list[Move] = []
        for segments in self._heap.segments():
            parts = [
                Segment(extent, tuple(blocks), movable.intersection(block.start for block in blocks))
                for extent, blocks in segments
            ]
            moves += plan_moves(parts)
        return moves

    def _move(self, move: Move, owners: dict[int, Movable]) -> bool:
        """Copy a block and book it at its new place; False when it was freed meanwhile."""
        bin_ = self._live.get(move.source)
        source, target = self._heap.arena_of(move.source), self._heap.arena_of(move.target)
        gap = None if target is None else target.gap_at(move.target)
        if bin_ is None or source is None or target is None or gap is None or gap.size < move.size:
            return False
        stream = bin_.stream
        self._clock.wait(self._clock.stamps(bin_.others), stream)
        self._clock.wait(target.uses_of(gap), stream)
        if bin_.nbytes:
            self._driver.copy(move.target, move.source, bin_.nbytes, stream)
        uses = self._stamp(stream)
        target.place_at(gap, move.target, move.size)
        self._live[move.target] = bin_  # who watches may raise: then it is in its bin, as one that is free
        # From here on the block is at both places until its owner knows of the new one: what comes in
        # between leaks one of them at worst.
        owners[move.source].end_move(move.target)
        del owners[move.source]
        self._live.pop(move.source)
        source.free(move.source, uses)
        return True


def _let_go(owners: dict[int, Movable], *, again: bool = False) -> None:
    """Let go of the blocks that stayed. An error on its way would keep those alive that it can see.

    After an interrupt the rest follows, with the one that it met once more.
    """
    try:
        while owners:
            address = next(iter(owners))
            owners[address].end_move(address)
            del owners[address]
    finally:
        if owners and not again:
            _let_go(owners, again=True)
