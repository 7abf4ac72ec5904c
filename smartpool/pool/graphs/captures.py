# ruff: noqa: SLF001 - this module is a part of the pool
"""Memory that graphs have baked in: what a pool does beside a stream capture, and afterwards.

Problem: a graph replays the addresses that its work was captured with. So memory that was requested
on a captured stream must stay the graph's until the graph is gone, however often it is freed. And
while a capture is under way most of what a pool does ruins it: asking an event, waiting for an event
of work outside, recording one in the captured stream, raw allocation, any wait of the host.
Method: before the capture all that was freed becomes gaps, the device is waited for, and every event is
seen to be done: then no gap asks for a wait, and what is left to be done, virtual-memory calls, is allowed.
Until the end no free becomes a gap, so no new use of one comes up. Requests of a captured stream are
served from *regions*, blocks of the heap that belong to the graph's memory, each stream's with an arena
of its own; freed, they join with their neighbours there, for later requests of the same capture or of a
further one into the same memory. When the memory is closed the device is waited for, and the regions go
back as nothing in them is live any more.

A pool pays for none of this before it first meets a graph: it becomes a `GraphPool` then, and a
`CapturingPool` for the length of a capture, by changing its class, which reaches callers that hold
bound methods. Requests find no bins but the default stream's, which is never captured, so they
come through `_search`.
Bound: one question to the driver for each searching request beside a capture, O(log n) as ever.
Rejected: lists of freed blocks by size instead of an arena (a smaller request could not use a larger
block); asking the driver on the quick path (a call for each request, graphs or not).
"""

from __future__ import annotations

from typing import Any, cast

from smartpool.errors import CaptureError, UnsupportedError
from smartpool.memory.arena import ALIGNMENT
from smartpool.pool.bins import Bin, enter
from smartpool.pool.graphs.memory import FoundMemory, GraphMemory
from smartpool.pool.manager import AdvancedMemoryPoolManager, exported_beside_capture
from smartpool.request import checked_size

__all__ = [
    "CapturingPool",
    "GraphMemory",
    "GraphPool",
    "become_graph_pool",
    "begin_capture",
    "end_capture",
    "release_if_over",
]


class GraphPool(AdvancedMemoryPoolManager):
    """A pool of which graphs hold memory.

    Attributes
    ----------
    graphs
        The memories that have regions, or may still get some.
    found
        Those of them whose captures were not announced, by the capture's id.
    unsettled
        Whether a memory was closed beside a capture, so that the device is still to be waited for.
    told_of_found
        Whether a capture that was not announced was met, and said.
    """

    unsettled = told_of_found = False
    graphs: list[GraphMemory]
    found: dict[int, FoundMemory]

    def collect_graphs(self) -> None:
        """Take back what closed memories need no more. Under the lock, while the books are written."""
        if self.unsettled:
            self.driver.synchronize()
            self.unsettled = False
        for memory in list(self.graphs):
            memory.collect()
            if not memory.closed:
                continue
            uses = self._clock.stamps(memory.late_users())
            for start, size in memory.leave():
                memory.give_back(start, size, uses)
            if not memory.regions():
                self.graphs.remove(memory)
        if not self.graphs and type(self) is GraphPool:
            self.__class__ = AdvancedMemoryPoolManager  # type: ignore[assignment]

    def check(self) -> None:
        """Prove the invariants, those of graphs' memory included."""
        AdvancedMemoryPoolManager.check(self)
        with self._writing():
            for memory in self.graphs:
                memory.check(self._live)

    # The base is named below, and not asked for by `super`: another thread may change the class meanwhile.

    def _mend(self) -> None:
        AdvancedMemoryPoolManager._mend(self)
        for memory in self.graphs:
            memory.mend(self._heap)

    def _flush(self) -> None:
        if any(memory.closed for memory in self.graphs):
            self.collect_graphs()
        AdvancedMemoryPoolManager._flush(self)

    def _regions(self) -> list[tuple[int, int]]:
        return [
            *AdvancedMemoryPoolManager._regions(self),
            *(region for memory in self.graphs if memory.in_heap for region in memory.regions()),
        ]

    def close_found(self) -> None:
        """Take the memory of captures that were not announced: their graphs are not launched any more."""
        while self.found:
            self.found[next(iter(self.found))].close()
            del self.found[next(iter(self.found))]

    def close(self) -> None:
        """Close what was found, too: nobody else can."""
        if not self._disowned:
            self.close_found()
        AdvancedMemoryPoolManager.close(self)

    def _release_under_lock(self, *, wait: bool = True) -> bool:
        if any(not memory.closed for memory in self.graphs):
            return True  # the last `close` comes back here
        return AdvancedMemoryPoolManager._release_under_lock(self, wait=wait)


class CapturingPool(GraphPool):
    """A pool beside a capture.

    Attributes
    ----------
    captured_memory
        Where requests of captured streams are served from.
    captured_stream
        The stream whose capture this is, None when it is not known.
    hidden
        The bins of all streams but the default one, by stream and size.
    owed
        Regions of planned steps that became free meanwhile: address, size, and what else goes with it.
    """

    beside_capture = True
    captured_memory: GraphMemory
    captured_stream: int | None
    hidden: dict[int, dict[int, Bin]]
    owed: list[tuple[Any, ...]]

    def collect_graphs(self) -> None:
        """Nothing: what has become free waits for the end of the capture."""

    def _take_region(self, size: int, stream: int, alignment: int) -> int:
        """Return a block of the heap for a graph's memory."""
        return self._find_place(self._new_bin(size, stream), alignment)

    def _search(self, nbytes: int, stream: object, alignment: int = ALIGNMENT) -> int:
        nbytes = checked_size(nbytes)
        alignment = max(alignment, ALIGNMENT)
        with self.driver.beside_capture(), self._writing():
            if self.__class__ is CapturingPool:
                return self._serve(nbytes, stream, alignment)
        return self._search(nbytes, stream, alignment)  # the capture ended while this waited for the lock

    def _serve(self, nbytes: int, stream: object, alignment: int) -> int:
        handle = self._home if stream is None else self.driver.stream(stream)
        if self._closed:
            raise self._closed_error()
        if handle != self._home and (handle == self.captured_stream or self.driver.is_capturing(handle)):
            return self.captured_memory.take(nbytes, handle, alignment, self._take_region)
        bin_ = self._bin(nbytes, handle)
        pointer = self._find_place(bin_, alignment)
        enter(self._live, pointer, bin_)
        return pointer

    def _refill(self, bin_: Bin) -> int:
        return self._search(bin_.nbytes, bin_.stream)

    def _bin(self, nbytes: int, stream: int) -> Bin:
        if stream == self._home:
            return GraphPool._bin(self, nbytes, stream)
        self._bins_of.setdefault(stream, {})
        bins = self.hidden.setdefault(stream, {})
        bin_ = bins.get(nbytes)
        return bins.setdefault(nbytes, self._new_bin(nbytes, stream)) if bin_ is None else bin_

    def _every_bin(self) -> list[Bin]:
        hidden = {bin_ for bins in self.hidden.values() for bin_ in bins.values()}
        return list({*GraphPool._every_bin(self), *hidden})

    def _empty_bins(self, touched: set[Bin]) -> None:
        """Nothing: what is freed beside a capture waits for its end, since events cannot be asked."""

    def _join_deferred(self) -> None:
        """Nothing, likewise."""

    def _forget_streams(self) -> None:
        """Nothing, likewise."""

    def release_region(self, region: list[int], size: int, streams: tuple[int, ...]) -> None:
        """Keep the region of a planned step until the end of the capture."""
        self.owed.append(([region[0]], size, streams))
        region.clear()

    def _regions(self) -> list[tuple[int, int]]:
        return [*GraphPool._regions(self), *((region[0], size) for region, size, _ in self.owed if region)]

    def begin_step(self, name: str, *, wait_for_plan: bool = False) -> None:  # noqa: ARG002
        """Refuse a planned step: it would move the capture's requests into its plan."""
        raise CaptureError(
            f"expected to begin step {name!r} outside of a capture; a graph has its memory planned by itself"
        )

    def order_after(self, pointer: int, stream: int) -> None:
        """Order within the captured streams is the program's; across the border there is none."""
        own, stream = self.stream_of(pointer), self.driver.stream(stream)
        if own != stream and self.driver.is_capturing(own):
            raise exported_beside_capture(own, stream)
        with self.driver.beside_capture():
            GraphPool.order_after(self, pointer, stream)

    def trim(self, keep_bytes: int = 0, *, wait: bool = False, captures: bool = False) -> int:  # noqa: ARG002
        """Give nothing back beside a capture."""
        return 0

    def _release_under_lock(self, *, wait: bool = True) -> bool:  # noqa: ARG002
        return True  # the end of the capture comes back here

    def leave_capture(self) -> None:
        """Become what the pool was before. Under the lock."""
        self.__class__ = GraphPool  # type: ignore[assignment]
        for stream, bins in self.hidden.items():
            if not self._closed:
                self._bins_of[stream].update(bins)
            else:
                for bin_ in bins.values():  # for the flush: requests are refused
                    bin_.touched.add(bin_)
        self.hidden = {}
        while self.owed:
            self.release_region(*self.owed[-1])
            self.owed.pop()
        del self.captured_memory


def begin_capture(manager: AdvancedMemoryPoolManager, memory: GraphMemory, stream: int | None = None) -> None:
    """Make `manager` ready for a capture that begins after this call."""
    if not isinstance(manager, AdvancedMemoryPoolManager):  # `smartpool.pool.debug.debugging` stands in front
        raise UnsupportedError(
            "expected a pool without debug mode for a capture, which forbids looking at blocks; make another"
        )
    pool = cast("GraphPool", manager)
    with pool._writing():
        _refuse_unless_ready(pool, memory, stream)
        _make_idle(pool)
        become_graph_pool(pool)
        if memory not in pool.graphs:
            pool.graphs.append(memory)
        inside = cast("CapturingPool", pool)
        inside.captured_memory, inside.captured_stream, inside.owed = memory, stream, []
        bins_of, home = pool._bins_of, pool._home
        inside.hidden = {key: bins for key, bins in bins_of.items() if key != home}
        inside.__class__ = CapturingPool
        bins_of.update({key: {} for key in inside.hidden})


def become_graph_pool(pool: AdvancedMemoryPoolManager) -> GraphPool:
    """Make `pool` one of which graphs hold memory. Under the lock."""
    made = cast("GraphPool", pool)
    made.graphs, made.found = getattr(pool, "graphs", []), getattr(pool, "found", {})
    if not isinstance(pool, GraphPool):
        made.__class__ = GraphPool
    return made


def end_capture(manager: AdvancedMemoryPoolManager) -> None:
    """Let `manager` go back to its ordinary ways: the capture is over, well or badly."""
    pool = cast("CapturingPool", manager)
    with pool._writing():
        pool.leave_capture()
        pool.collect_graphs()
    release_if_over(pool)


def _refuse_unless_ready(pool: GraphPool, memory: GraphMemory, stream: int | None) -> None:
    if pool._closed:
        raise pool._closed_error()
    if isinstance(pool, CapturingPool):
        raise CaptureError(
            "expected no capture under way on this device, one is; captures of one device take turns"
        )
    if memory.closed or memory._manager is not pool:
        raise CaptureError(f"expected open graph memory of {pool.driver.name}, got {memory!r}")
    if not pool.config.enable_advanced_pooling:
        raise UnsupportedError("graphs need a pool that keeps memory: leave enable_advanced_pooling on")
    if pool._steps.active:
        raise CaptureError("expected no planned step under way when a capture begins; end it first")
    if stream is None:
        return
    if stream == pool.driver.default_stream:
        raise CaptureError("expected a stream of its own, got the default stream, which cannot be captured")
    if pool.driver.is_capturing(stream):
        raise CaptureError(
            "expected a stream that is not being captured yet: the pool waits for the device first; begin "
            "the capture inside of pool.capture(stream)"
        )


def _make_idle(pool: GraphPool) -> None:
    """Empty the bins and see all work done, so that no gap asks for a wait."""
    if not pool._several_streams:
        pool._begin_several_streams()
    pool._steps.leave(pool)
    pool._flush()
    pool._clock.settle()


def release_if_over(pool: AdvancedMemoryPoolManager) -> None:
    """Give everything back when the pool was closed meanwhile and this was the last of it."""
    if pool._closed and not pool._live:
        pool._release_everything()
