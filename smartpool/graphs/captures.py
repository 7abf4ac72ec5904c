"""Memory that graphs have baked in: what a pool does beside a stream capture, and afterwards.

Problem: a graph replays the addresses that its work was captured with. So memory that was requested
on a captured stream must stay the graph's until the graph is gone, however often it is freed. And
while a capture is under way most of what a pool does ruins it: asking an event, waiting for an event
of work outside, recording one in the captured stream, raw allocation, any wait of the host.
Method: before the capture all that was freed becomes gaps, the device is waited for, and every event is
seen to be done: then no gap asks for a wait, and what is left to be done, virtual-memory calls, is allowed.
Until the end no free becomes a gap, so no new use of one comes up. Requests of a captured stream are
served from *regions*, blocks of the heap that belong to the graph's memory, each stream's with an arena
of its own; freed, they join with their neighbors there, for later requests of the same capture or of a
further one into the same memory. When the memory is closed the device is waited for, and the regions go
back as nothing in them is live any more.

A pool pays for none of this before it first meets a graph. For the length of a capture its slow path sends
requests here (`SlowPath.capture`). They find no bins but the default stream's, which is never captured, so
they all come that way.
Bound: one question to the driver for each searching request beside a capture, O(log n) as ever.
Rejected: lists of freed blocks by size instead of an arena (a smaller request could not use a larger
block); asking the driver on the quick path (a call for each request, graphs or not).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from smartpool.errors import CaptureError, UnsupportedError
from smartpool.heap.arena import ALIGNMENT
from smartpool.pool.bins import Bin, enter
from smartpool.pool.slow_path import SlowPath
from smartpool.request import checked_size

if TYPE_CHECKING:
    from smartpool.graphs.memory import FoundMemory, HeldMemory

__all__ = ["Capture", "Graphs"]


class Graphs:
    """The graphs that hold memory of one pool. It is handed the pool, and does not hold it.

    Attributes
    ----------
    memories
        Those that have regions, or may still get some.
    found
        Those of them whose captures were not announced, by the capture's id.
    unsettled
        Whether a memory was closed beside a capture, so that the device is still to be waited for.
    told_of_found
        Whether a capture that was not announced was met, and said.
    capture
        The one that is under way.
    owed
        Blocks of the heap that became free beside a capture: address, size, streams that used them.
    """

    held: Final = ()  # nothing that it could give before its time

    def __init__(self) -> None:
        self.memories: list[HeldMemory] = []
        self.found: dict[int, FoundMemory] = {}
        self.unsettled = self.told_of_found = False
        self.capture: Capture | None = None
        self.owed: list[tuple[list[int], int, tuple[int, ...]]] = []

    def begin_capture(self, pool: SlowPath, memory: HeldMemory, stream: int | None) -> None:
        """Make ready for a capture that begins after this call."""
        with pool.writing():
            self._refuse_unless_ready(pool, memory, stream)
            _make_idle(pool)
            if memory not in self.memories:
                self.memories.append(memory)
            capture = Capture(memory, stream, self.owed, pool)
            self.capture = pool.capture = capture
            pool.look_again()
            pool.bins_of.update({key: {} for key in capture.hidden})

    def end_capture(self, pool: SlowPath) -> None:
        """Go back to the ordinary ways: the capture is over, well or badly."""
        with pool.writing():
            if self.capture is not None:
                self.capture.show_bins(pool)
                self.capture = pool.capture = None
                pool.look_again()
            self.collect(pool)

    def collect(self, pool: SlowPath) -> None:
        """Take back what closed memories need no more; beside a capture, later. In the critical section."""
        if self.capture is not None:
            return
        while self.owed:
            pool.release_region(*self.owed[-1])
            self.owed.pop()
        if self.unsettled:
            pool.driver.synchronize()
            self.unsettled = False
        for memory in list(self.memories):
            memory.collect()
            if not memory.closed:
                continue
            uses = pool.clock.stamps(memory.late_users())
            for start, size in memory.leave():
                memory.give_back(start, size, uses)
            if not memory.regions():
                self.memories.remove(memory)

    def close_found(self) -> None:
        """Take the memory of captures that were not announced: their graphs are not launched any more."""
        while self.found:
            self.found[next(iter(self.found))].close()
            del self.found[next(iter(self.found))]

    def _refuse_unless_ready(self, pool: SlowPath, memory: HeldMemory, stream: int | None) -> None:
        if pool.closed:
            raise pool.closed_error()
        if pool.capture is not None:
            raise CaptureError(
                "expected no capture under way on this device, one is; captures of one device take turns"
            )
        if memory.closed or not memory.is_of(self):
            raise CaptureError(f"expected open graph memory of {pool.driver.name}, got {memory!r}")
        if not pool.pooling:
            raise UnsupportedError("graphs need a pool that keeps memory: leave enable_advanced_pooling on")
        for each in pool.attached:
            each.before_capture()
        if stream is None:
            return
        if stream == pool.home:
            raise CaptureError(
                "expected a stream of its own, got the default stream, which cannot be captured"
            )
        if pool.driver.is_capturing(stream):
            raise CaptureError(
                "expected a stream that is not being captured yet: the pool waits for the device first; "
                "begin the capture inside of pool.capture(stream)"
            )

    # ------------------------------------------------------------------ as `Attachment`

    def give_way(self, pool: SlowPath) -> None:
        """Nothing, likewise."""

    def before_flush(self, pool: SlowPath) -> None:
        """Give back what closed memories need no more."""
        if self.owed or any(memory.closed for memory in self.memories):
            self.collect(pool)

    def before_capture(self) -> None:
        """Nothing: whether one is under way the pool knows."""

    def regions(self) -> list[tuple[int, int]]:
        """Return address and bytes of the blocks of the heap that are held."""
        owed = [(region[0], size) for region, size, _ in self.owed if region]
        return owed + [region for memory in self.memories if memory.in_heap for region in memory.regions()]

    def keeps_open(self) -> bool:
        """Whether a capture is under way, or a graph may still be launched."""
        return self.capture is not None or any(not memory.closed for memory in self.memories)

    def recover(self, pool: SlowPath) -> None:
        """Make the arenas of all memories anew."""
        for memory in self.memories:
            memory.mend(pool.heap)

    def check(self, pool: SlowPath) -> None:
        """Prove the invariants of all memories."""
        for memory in self.memories:
            memory.check(pool.live)

    def close(self) -> None:
        """Serve nothing: requests are refused before they come here."""


class Capture:
    """One capture that is under way.

    Attributes
    ----------
    memory
        Where requests of captured streams are served from.
    hidden
        The bins of all streams but the default one, by stream and size.
    """

    def __init__(
        self,
        memory: HeldMemory,
        stream: int | None,
        owed: list[tuple[list[int], int, tuple[int, ...]]],
        pool: SlowPath,
    ) -> None:
        self.memory = memory
        self.hidden = {key: bins for key, bins in pool.bins_of.items() if key != pool.home}
        self._stream = stream
        self._owed = owed

    def request(self, pool: SlowPath, nbytes: int, stream: object, alignment: int) -> int:
        """Serve a request, of a captured stream from the graph's memory. Holds no lock."""
        nbytes = checked_size(nbytes)
        with pool.driver.beside_capture(), pool.writing():
            if pool.capture is self:
                return self._serve(pool, nbytes, stream, max(alignment, ALIGNMENT))
        return pool.search(nbytes, stream, alignment)  # the capture ended while this waited for the lock

    def _serve(self, pool: SlowPath, nbytes: int, stream: object, alignment: int) -> int:
        handle = pool.home if stream is None else pool.driver.stream(stream)
        if pool.closed:
            raise pool.closed_error()
        if handle != pool.home and (handle == self._stream or pool.driver.is_capturing(handle)):
            return self.memory.take(nbytes, handle, alignment, partial(_take_region, pool))
        bin_ = pool.bin_of(nbytes, handle)
        pointer = _take_equal(pool, bin_, alignment) or pool.find_place(bin_, alignment)
        enter(pool.live, pointer, bin_)
        return pointer

    def bin_of(self, pool: SlowPath, nbytes: int, stream: int) -> Bin:
        """Return the bin of a request size on another stream than the default one."""
        pool.bins_of.setdefault(stream, {})
        bins = self.hidden.setdefault(stream, {})
        bin_ = bins.get(nbytes)
        return bins.setdefault(nbytes, pool.new_bin(nbytes, stream)) if bin_ is None else bin_

    def bins(self) -> list[Bin]:
        """Return the bins that are hidden from requests."""
        return [bin_ for bins in list(self.hidden.values()) for bin_ in list(bins.values())]

    def owe(self, region: int, size: int, streams: tuple[int, ...]) -> None:
        """Keep a block of the heap that became free, until the capture ends."""
        self._owed.append(([region], size, streams))

    def show_bins(self, pool: SlowPath) -> None:
        """Give the hidden bins back to requests."""
        for stream, bins in self.hidden.items():
            if not pool.closed:
                pool.bins_of[stream].update(bins)
                continue
            for bin_ in bins.values():  # for the flush: requests are refused
                bin_.touched.add(bin_)


def _take_equal(pool: SlowPath, bin_: Bin, alignment: int) -> int:
    """Return a large block of the same size that was freed on the same stream, or 0. O(blocks freed since).

    Beside a capture such blocks are not joined with their neighbors, and each request would grow.
    """
    deferred = pool.deferred.get(bin_.stream, ()) if bin_.touched is pool.touched else ()
    for pointer in list(deferred):
        if pool.heap.block_size(pointer) == bin_.size and not pointer % alignment:
            deferred.remove(pointer)  # type: ignore[union-attr]  # other threads add to it, and take nothing
            return pointer
    return 0


def _take_region(pool: SlowPath, size: int, stream: int, alignment: int) -> int:
    """Return a block of the heap for a graph's memory."""
    return pool.find_place(pool.new_bin(size, stream), alignment)


def _make_idle(pool: SlowPath) -> None:
    """Empty the bins and see all work done, so that no gap asks for a wait."""
    if not pool.several_streams:
        pool.begin_several_streams()
    pool.ask_for_way()
    pool.flush()
    pool.clock.settle()
