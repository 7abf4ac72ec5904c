"""The books of a pool: what they consist of, what they say, and the proof that they agree.

Four structures belong to the quick path: the bins of each stream, their lists of deferred frees, the
table of live blocks, and the sets of bins that were touched since they were last emptied. They are never
replaced, only changed, by steps that are atomic. Everything else is written under the lock, by one call at
a time (`_writing`): what runs in the middle of such a call on the same thread, a destructor or a signal
handler, may free and may take from a bin, and is refused where it would write.

Invariants, proved by `check()`: every block of the heap is live, or freed into exactly one bin or list;
live and cached blocks are disjoint and have the size that their bin says; reserved bytes are
within the cap; and the invariants of heap, chunks and memory.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from smartpool.config import SmartPoolConfig
from smartpool.driver.protocol import Driver, check_driver
from smartpool.errors import (
    ConfigurationError,
    DoubleFreeError,
    DriverError,
    InvariantError,
    PoolClosedError,
    ReentrantCallError,
    SmartPoolError,
    UnknownPointerError,
)
from smartpool.forks import call_in_children, renewed
from smartpool.interpreters import require_main_interpreter
from smartpool.memory.arena import Range, Uses
from smartpool.pool.bins import Bin, DeferredFrees, DisownedTable, LiveTable
from smartpool.pool.direct import DirectBin
from smartpool.pool.graphs.held import HeldBin
from smartpool.pool.heap.device_memory import DeviceMemory
from smartpool.pool.heap.elastic import ElasticHeap
from smartpool.pool.heap.policy import policy_of
from smartpool.pool.heap.protocol import Heap
from smartpool.pool.heap.segments import SegmentHeap
from smartpool.pool.steps.faces import StepBin
from smartpool.pool.steps.stepping import Steps
from smartpool.pool.streams import StreamClock
from smartpool.pool.telemetry.fragmentation import Fragmentation, interval_fragmentation, share_wasted
from smartpool.pool.telemetry.statistics import MemorySnapshot, by_stream, by_tier
from smartpool.pool.tiers import tier_of
from smartpool.units import format_size

__all__ = ["BINS", "STREAMS", "PoolBooks", "is_whole", "reentered", "steady"]

STREAMS: Final = 64
"""Streams, before what is kept of those that hold nothing is forgotten."""
BINS: Final = 1 << 16
"""Bins of one stream, about 20 MB, before those that nobody uses are forgotten."""


class PoolBooks:
    """State of one device's pool, and all questions about it. `AdvancedMemoryPoolManager` is the whole.

    Attributes
    ----------
    beside_capture
        Whether a stream is being captured into a graph: then nothing is given back, and nothing collected.
    """

    beside_capture = False

    def __init__(self, driver: Driver, config: SmartPoolConfig | None = None) -> None:
        require_main_interpreter()
        check_driver(driver)
        self.driver = driver
        self.config = SmartPoolConfig.of(config)
        if self.config.shareable:
            driver.share_chunks()
        info = driver.memory_info()
        self._used_before = info.total - info.free
        limited = self.config.cap(info.total) < info.total
        self._memory = DeviceMemory(driver, self._checked_cap(info.total), limited=limited)
        self._clock = StreamClock(driver)
        self._home = driver.default_stream
        self._lock = renewed(self, "_lock", threading.RLock)
        self._busy = False  # whether the books are being written: never true twice on one thread
        self._torn = False  # whether writing them was broken off in the middle
        self._mending = False
        self._closed = False
        self._disowned = False
        self.on_pressure: Callable[[], None] | None = None
        self.on_growth: Callable[[], None] | None = None
        self.on_capture: Callable[[Any, int, int, int, int], int] | None = None
        self.out_of_memory_callbacks: list[Callable[[int], bool]] = []
        self.late_frees: Callable[[], None] | None = None
        self._collected: dict[int, int] = {}  # thread that tries again -> bytes that garbage held
        self._several_streams = False
        # The quick path's three structures. They are never replaced, only changed: callers may
        # hold bound methods, and other threads are in the middle of them at any time.
        self._bins: dict[int, Bin] = {}
        self._live = LiveTable()
        self._touched: set[Bin] = set()
        self._touched_small: set[Bin] = set()  # of requests below the policy's slab limit
        self._bins_of: dict[int, dict[int, Bin]] = {self._home: self._bins}
        self._bins_limit = BINS
        self._streams_limit = STREAMS
        self._home_deferred = DeferredFrees(self._home)
        self._deferred = {self._home: self._home_deferred}  # by stream
        self._latest_nbytes, self._latest = -1, [0]  # request and address of the large block placed last
        self._doomed: deque[tuple[int, Uses]] = deque()  # raw allocations to be given back (pooling off)
        self._peak_live_bytes = 0
        self._searches = self._flushes = self._grows = 0
        self._policy = policy_of(self.config.policy)
        self._pooling = self.config.enable_advanced_pooling
        self._heap = self._make_heap()
        self._gauge = self._heap.gauge
        self.high_water_bytes = 0
        call_in_children(self, operator.methodcaller("disown"))
        predicts = self.config.enable_predictive_allocation and self._pooling
        self._steps = Steps(enabled=predicts)
        self._released = False  # last: a pool that was not made in full has nothing to give back

    def _make_heap(self) -> Heap:
        if self.driver.granularity:
            return ElasticHeap(self._memory, self._clock, self._policy, self.config.prices)
        return SegmentHeap(self._memory, self._clock)

    def _checked_cap(self, device_bytes: int) -> int:
        """Return the limit in whole chunks."""
        cap, granularity = self.config.cap(device_bytes), self.driver.granularity or 1
        if self.config.max_bytes is not None and cap < granularity:
            raise ConfigurationError(
                "max_bytes",
                f"expected at least {format_size(granularity)}, the smallest piece of memory "
                f"that {self.driver.name} gives, got {self.config.max_bytes!r}, {cap} bytes",
            )
        return cap // granularity * granularity

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock and write the books; refuse to begin in the middle of this thread's own writing."""
        with self._lock:
            if self._busy:
                raise reentered()
            try:
                self._busy = True
                if self._torn:
                    self._mend()
                yield
            except BaseException as error:
                self._torn = True  # first, since the question may be interrupted, too
                self._torn = self._mending or not is_whole(error)
                raise
            finally:
                self._busy = False

    def working(self) -> AbstractContextManager[None]:
        """Hold the lock for a call of the driver, so that nothing on this thread makes another meanwhile.

        A request that a destructor or a signal handler makes there is refused.
        """
        return self._writing()

    def _mend(self) -> None:
        """Make the books anew after a call that was broken off: see `Heap.mend`."""
        self._mending = True  # until it is done: what fails here is to be done again
        if self._disowned:  # and never is: what they say is the parent's
            raise self._closed_error()
        self._heap.mend(self._clock.mark_all(self._bins_of) if self._several_streams else None)
        self._steps.mend(self._heap.block_size)
        self._touch_every_bin()
        self._torn = self._mending = False

    def _touch_every_bin(self) -> None:
        """Let the next flush see all that is cached: a free that was broken off may not have said so."""
        for bin_ in self._every_bin():
            if bin_:
                bin_.touched.add(bin_)

    def disown(self) -> None:
        """Leave all memory to the parent: called in the child after a fork, where the pool is of no use.

        Requests are refused, frees are accepted and do nothing, and no driver is called any more.
        """
        self._disowned = self._closed = self._released = self._torn = True
        for bins in self._bins_of.values():
            bins.clear()
        self._touched.clear()
        self._touched_small.clear()
        for deferred in self._deferred.values():
            deferred.clear()
        self._doomed.clear()
        self._live.__class__ = DisownedTable

    # ------------------------------------------------------------------ questions

    @property
    def disowned(self) -> bool:
        """Whether this is a forked child, and the pool the parent's."""
        return self._disowned

    @property
    def reserved_bytes(self) -> int:
        """Physical bytes that the pool holds."""
        return self._memory.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that `reserved_bytes` ever was."""
        return self._memory.peak_reserved_bytes

    @property
    def available_bytes(self) -> int:
        """What a request could get at most: free on the device, and idle in the pool, under the cap."""
        if self._disowned:
            raise self._closed_error()
        with self.working():
            idle = self._memory.reserved_bytes - self.live_bytes
            return min(self.driver.memory_info().free, self._memory.room_bytes) + idle

    def owns(self, pointer: int) -> bool:
        """Return whether `pointer` is a live block of this pool. O(1)."""
        try:
            return pointer in self._live
        except TypeError:  # nothing that can be looked up is none
            return False

    @property
    def live_bytes(self) -> int:
        """Bytes in live blocks, as requested. O(live blocks)."""
        return sum(bin_.nbytes * count for bin_, count in Counter(steady(self._live)).items())

    def live_blocks(self) -> dict[int, int]:
        """Return address to requested bytes, for every live block. O(live blocks)."""
        return {pointer: bin_.nbytes for pointer, bin_ in self._live.copy().items()}

    def memory(self) -> list[Range]:
        """Return where the pool's physical memory is, each piece of it once, by address."""
        with self._writing():
            return sorted(self._heap.memory())

    def pieces_of(self, pointer: int) -> tuple[Range, ...]:
        """Return the memory under a block: several ranges for one that is stitched together."""
        try:
            address = operator.index(pointer)
        except TypeError:
            raise self._bad_pointer(pointer) from None
        with self._writing():
            return self._heap.pieces(address)

    def fragmentation(self) -> Fragmentation:
        """Return the live metric by its three parts. O(live blocks + gaps)."""
        with self._writing():
            return self._fragmentation(self.live_bytes)

    def _fragmentation(self, live_bytes: int) -> Fragmentation:
        info = self.driver.memory_info()
        ranges, extent = self._heap.free_ranges(), self._heap.extent_bytes
        enabled = self.config.enable_interval_coloring
        return Fragmentation(
            interval_graph=interval_fragmentation(ranges, extent) if enabled else 0.0,
            pool=share_wasted(live_bytes, self._memory.reserved_bytes),
            gpu=share_wasted(live_bytes, info.total - info.free - self._used_before),
        )

    def snapshot(self) -> MemorySnapshot:
        """Return everything that is known about this device's memory now. O(live blocks + gaps)."""
        with self._writing():
            return self._snapshot()

    def _snapshot(self) -> MemorySnapshot:
        if self.late_frees is not None:
            self.late_frees()
        live = Counter(steady(self._live)).items()  # by bin: one pass over the blocks, in C
        cached = [(bin_, len(bin_)) for bin_ in [*self._every_bin(), *self._deferred_bins()]]
        live_bytes = sum(bin_.nbytes * count for bin_, count in live)
        self._peak_live_bytes = max(self._peak_live_bytes, live_bytes)
        info = self.driver.memory_info()
        return MemorySnapshot(
            device=self.driver.name,
            live_bytes=live_bytes,
            live_blocks=sum(count for _, count in live),
            block_bytes=sum(bin_.size * count for bin_, count in live),
            cached_bytes=sum(bin_.size * count for bin_, count in cached),
            gap_bytes=sum(self._heap.free_ranges()),
            reserved_bytes=self._memory.reserved_bytes,
            peak_reserved_bytes=self._memory.peak_reserved_bytes,
            peak_live_bytes=self._peak_live_bytes,
            largest_free_bytes=self._heap.largest_gap_bytes,
            cap_bytes=self._memory.cap_bytes,
            device_free_bytes=info.free,
            device_total_bytes=info.total,
            searches=self._searches,
            flushes=self._flushes,
            grows=self._grows,
            waits=self._clock.waits,
            steps=self._steps.statistics,
            driver_calls=dict(self.driver.calls),
            driver_seconds=self.driver.seconds,
            tiers=by_tier(live, cached),
            streams=by_stream(live, cached),
            fragmentation=self._fragmentation(live_bytes),
        )

    def _every_bin(self) -> list[Bin]:
        """Return all bins, those of single blocks included (`record_stream`)."""
        bins = {bin_.home for bins in list(self._bins_of.values()) for bin_ in list(bins.values())}
        return list(bins | self._touched | self._touched_small)

    def _deferred_bins(self) -> list[Bin]:
        """Return a bin for each block that was freed and is not joined yet, for counting."""
        bins = []
        for stream, deferred in list(self._deferred.items()):
            for pointer in deferred.copy():
                size = self._heap.block_size(pointer) or 0
                bins.append(Bin(size, size, stream, tier_of(size), set()))
                bins[-1].append(pointer)
        return bins

    def _regions(self) -> list[tuple[int, int]]:
        """Return address and bytes of the blocks of the heap that have blocks of others inside."""
        return self._steps.regions()

    def check(self) -> None:
        """Prove the invariants; `InvariantError` when one is broken. Other threads must be still."""
        with self._writing():
            self._heap.check()
            self._steps.check()
            apart = (DirectBin, StepBin, HeldBin)  # blocks that are not the heap's
            live = {p: bin_.size for p, bin_ in self._live.items() if not isinstance(bin_, apart)}
            live |= dict(self._regions())
            cached = [(pointer, bin_.size) for bin_ in self._every_bin() for pointer in bin_]
            cached += [(p, self._heap.block_size(p) or 0) for freed in self._deferred.values() for p in freed]
            blocks = sorted(tuple(block) for block in self._heap.blocks())
            if sorted([*live.items(), *cached]) != blocks:
                raise InvariantError(f"live {live} and cached {cached} are not the blocks {blocks}")
            held = self._memory.reserved_bytes
            if held > self._memory.cap_bytes:
                raise InvariantError(f"reserved {held} exceeds the cap {self._memory.cap_bytes}")

    # ------------------------------------------------------------------ errors

    def _live_bin(self, pointer: int) -> Bin:
        """Return the bin of a live block."""
        try:
            return self._live[pointer]
        except (KeyError, TypeError):
            raise self._bad_pointer(pointer) from None

    def _bad_pointer(self, pointer: object) -> SmartPoolError:
        try:
            address = operator.index(pointer)  # type: ignore[arg-type]
        except TypeError:
            return UnknownPointerError(
                f"expected an address that malloc returned, got {pointer!r} of type "
                f"{type(pointer).__name__}; free blocks by their address, and a Buffer by Buffer.free"
            )
        with self._lock:
            if self._heap.block_size(address) is not None or self._heap.is_gap(address):
                return DoubleFreeError(
                    f"expected the address of a live block, got {address:#x}, which is free already; "
                    "free every block once"
                )
            return UnknownPointerError(
                f"expected the address of a live block of this pool on {self.driver.name}, got {address:#x}; "
                "free it with the allocator that returned it, and by the address that it returned"
            )

    def _closed_error(self) -> PoolClosedError:
        if self._disowned:
            return PoolClosedError(
                f"expected a pool of this process, this one on {self.driver.name} was opened before a fork "
                "and belongs to the parent; open a pool in the child, or start processes by 'spawn'"
            )
        return PoolClosedError(
            f"expected an open pool, this one on {self.driver.name} was closed; make another"
        )


def reentered() -> ReentrantCallError:
    """Return the error of a request in the middle of the same thread's own."""
    return ReentrantCallError(
        "expected no request in the middle of this thread's own request: a destructor, a weak reference's "
        "callback or a signal handler made one while the pool was searching; do it from outside of those"
    )


def is_whole(error: BaseException) -> bool:
    """Return whether a call that ended with `error` left the books whole: it refused, or undid its steps.

    What else comes out of the middle of a call is an interrupt, a failure of the host, or a bug; and
    when a driver call failed in undoing the steps of a call that was broken off, that hides behind it.
    """
    behind: BaseException | None = error
    while isinstance(behind, DriverError):
        behind = behind.__cause__ or behind.__context__
    return behind is None or (isinstance(behind, SmartPoolError) and not isinstance(behind, InvariantError))


def steady(live: LiveTable) -> list[Bin]:
    """Return the bins of the live blocks while other threads go on."""
    while True:
        try:
            return list(live.values())
        except RuntimeError:  # changed while it was copied: once more
            continue
