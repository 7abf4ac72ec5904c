"""The pool of one device: the quick path over bins, the searching path over arenas.

A request goes through up to four stages, each dearer than the one before:

1. *Bin.* A freed block of the same request size and stream: one dictionary look-up, one pop, one
   store. No lock (see `smartpool.pool.bins`).
2. *Gap.* Best fit in the arena of its tier, under the lock.
3. *Flush.* All bins are emptied into the arenas, where blocks join with their neighbours, and the
   search is repeated.
4. *Grow.* The arena maps new or idle chunks. When the device has none left, the host waits for
   retired mappings, gives back what idles elsewhere, and tries once more.

A free goes to the bin of the block's own request size, without a lock, so it may run anywhere: in
a destructor that the collector calls in the middle of stage 4, on any thread.

Invariants, proved by `check()`: every block of the arenas is live, or cached in exactly one bin;
live and cached blocks are disjoint and have the size that their bin says; and the invariants of
arenas, chunks and memory.
"""

from __future__ import annotations

import operator
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self

from smartpool.config import SmartPoolConfig
from smartpool.driver.protocol import Driver
from smartpool.errors import (
    ConfigurationError,
    DoubleFreeError,
    DriverError,
    DriverOutOfMemoryError,
    InvalidRequestError,
    InvariantError,
    OutOfMemoryError,
    PoolClosedError,
    ReentrantCallError,
    RequestTooLargeError,
    SmartPoolError,
    UnknownPointerError,
)
from smartpool.memory.arena import ALIGNMENT, Uses, join_uses
from smartpool.pool.bins import Bin, ClosedTable, DisownedTable, LiveTable, RecordedTable, RequestObserver
from smartpool.pool.device_memory import DeviceMemory
from smartpool.pool.direct import DirectBin
from smartpool.pool.elastic import ElasticHeap
from smartpool.pool.forks import disown_in_children
from smartpool.pool.fragmentation import Fragmentation, interval_fragmentation, share_wasted
from smartpool.pool.heap import Heap
from smartpool.pool.policy import POLICY_OF_NAME
from smartpool.pool.segments import SegmentHeap
from smartpool.pool.statistics import MemorySnapshot, TierSnapshot
from smartpool.pool.stepping import Steps
from smartpool.pool.steps import SlotBin
from smartpool.pool.streams import StreamClock
from smartpool.pool.tiers import Tier, tier_of
from smartpool.request import checked_size
from smartpool.units import align_up, format_size

__all__ = ["AdvancedMemoryPoolManager"]

_EVERYTHING: Final = 1 << 62
_BINS: Final = 1 << 16  # of one stream, about 20 MB, before those that nobody uses are forgotten
_PATIENCE_S: Final = 5.0  # with a request of another thread that was under way when the pool closed


class AdvancedMemoryPoolManager:
    """Memory of one device in four tiers. Thread-safe and stream-aware.

    Parameters
    ----------
    driver
        The device. The manager closes it when it is closed itself and nothing is live any more.
    config
        How the pool behaves.

    Attributes
    ----------
    on_pressure
        Called, under the pool's lock, when growing took reserved memory beyond the pressure
        threshold; it must not block.
    out_of_memory_callbacks
        Asked in turn, with the bytes that are wanted, before a request fails for lack of memory.
        One that freed something returns True, and the request is tried again. They may free and
        trim, and must not allocate from this pool.
    late_frees
        Called before the arenas are searched or looked at: gives back blocks that code which cannot
        call `free` put aside. May be called under the pool's lock; calls `free` and nothing else.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> with AdvancedMemoryPoolManager(open_driver("model:1GiB")) as manager:
    ...     pointer = manager.malloc(1000)
    ...     manager.free(pointer)
    ...     manager.malloc(1000) == pointer
    True
    """

    def __init__(self, driver: Driver, config: SmartPoolConfig | None = None) -> None:
        self.driver = driver
        self.config = config or SmartPoolConfig()
        info = driver.memory_info()
        self._used_before = info.total - info.free
        self._memory = DeviceMemory(driver, self._checked_cap(info.total))
        self._clock = StreamClock(driver)
        self._home = driver.default_stream
        self._lock = threading.RLock()
        self._busy = False  # whether the books are being written: never true twice on one thread
        self._closed = False
        self._released = False
        self._disowned = False
        self.on_pressure: Callable[[], None] | None = None
        self.out_of_memory_callbacks: list[Callable[[int], bool]] = []
        self.late_frees: Callable[[], None] | None = None
        self._several_streams = False
        # The quick path's three structures. They are never replaced, only changed: callers may
        # hold bound methods, and other threads are in the middle of them at any time.
        self._bins: dict[int, Bin] = {}
        self._live = LiveTable()
        self._touched: set[Bin] = set()
        self._touched_small: set[Bin] = set()  # of requests below the policy's slab limit
        self._bins_of: dict[int, dict[int, Bin]] = {self._home: self._bins}
        self._bins_limit = _BINS
        self._doomed: deque[tuple[int, Uses]] = deque()  # raw allocations to be given back (pooling off)
        self._peak_live_bytes = 0
        self._searches = self._flushes = self._grows = 0
        self._policy = POLICY_OF_NAME[self.config.policy]
        self._pooling = self.config.enable_advanced_pooling
        self._heap = self._make_heap()
        disown_in_children(self)
        self._steps = Steps(self._home)
        self._hidden_bins: dict[int, Bin] | None = None

    def __repr__(self) -> str:
        state = "closed, " if self._closed else ""
        return (
            f"<AdvancedMemoryPoolManager on {self.driver.name}: {state}{len(self._live)} live blocks, "
            f"{format_size(self._memory.reserved_bytes)} reserved>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Nothing can be live: every buffer holds its manager. Memory taken by bare `malloc` and never
        # freed goes with the driver, which is dropped here too.
        if not sys.is_finalizing() and not getattr(self, "_released", True) and not self._live:
            self.close()

    # ------------------------------------------------------------------ requests

    def malloc(self, nbytes: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes, aligned to 512, for use on `stream`.

        Amortised O(1) for a size that was freed before, O(log n) otherwise.

        Raises
        ------
        InvalidSizeError
            When `nbytes` is negative or not an integer.
        StreamError
            When `stream` is not a stream of this device.
        OutOfMemoryError
            When the device or the limit cannot hold it (`RequestTooLargeError`: never could).
        PoolClosedError
            When the pool was closed.
        """
        # Floats and booleans that equal a cached size would find its bin: hence the test of the class.
        if stream is None and nbytes.__class__ is int:
            try:
                bin_ = self._bins[nbytes]
                pointer = bin_.pop()
            except IndexError:
                return self._refill(bin_)
            except KeyError:
                return self._search(nbytes, None)
            self._live[pointer] = bin_
            return pointer
        return self._malloc_on(nbytes, stream)

    def free(self, pointer: int, stream: object = None) -> None:
        """End the block at `pointer`; work queued so far on `stream` may still use it.

        Parameters
        ----------
        pointer
            What `malloc` returned.
        stream
            The stream that used the memory last; None for the one it was requested for.

        Raises
        ------
        DoubleFreeError
            When the block was freed already.
        UnknownPointerError
            When the pointer did not come from this pool.
        """
        # Other integers and floats that equal a live address would find it: hence the test of the class.
        if stream is not None or pointer.__class__ is not int:
            self._free_on(pointer, stream)
            return
        try:
            bin_ = self._live.pop(pointer)
        except KeyError:
            raise self._bad_pointer(pointer) from None
        bin_.append(pointer)
        if bin_.quiet:
            bin_.quiet = False
            bin_.touched.add(bin_)

    def malloc_aligned(self, nbytes: int, alignment: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes aligned to `alignment`, a power of two. O(log n).

        Raises `InvalidRequestError` when it is none; else as `malloc`.
        """
        if alignment.__class__ is not int or alignment <= 0 or alignment & (alignment - 1):
            raise InvalidRequestError(f"alignment: expected a power of two, got {alignment!r}")
        return self._search(nbytes, stream, alignment)

    def record_stream(self, pointer: int, stream: object) -> None:
        """Say that `stream` uses the live block too: once freed, it is reused only behind that work.

        Raises `UnknownPointerError` or `DoubleFreeError` when the block is not live.
        """
        handle = self.driver.stream(stream)
        with self._lock:
            bin_ = self._live.get(pointer)
            if bin_ is None:
                raise self._bad_pointer(pointer)
            if handle == bin_.stream or handle in bin_.others:
                return
            self._bins_of.setdefault(handle, {})
            if bin_.__class__ is not Bin:  # it is this block's own already
                bin_.others = (*bin_.others, handle)
                return
            own = Bin(bin_.nbytes, bin_.size, bin_.stream, bin_.tier, bin_.touched)
            own.others = (*bin_.others, handle)
            dict.__setitem__(self._live, pointer, own)  # not a request: observers are not told

    def stream_of(self, pointer: int) -> int:
        """Return the stream that the live block at `pointer` was requested for."""
        bin_ = self._live.get(pointer)
        if bin_ is None:
            raise self._bad_pointer(pointer)
        return bin_.stream

    def order_after(self, pointer: int, stream: int) -> None:
        """Let `stream` use the live block behind all work queued so far on the block's own stream."""
        own = self.stream_of(pointer)
        if own == stream:
            return
        with self._writing():
            self._clock.wait(self._clock.stamp(own), stream)
            self.record_stream(pointer, stream)

    def _malloc_on(self, nbytes: int, stream: object) -> int:
        if nbytes.__class__ is int and stream.__class__ is int:
            try:
                bin_ = self._bins_of[stream][nbytes]
                pointer = bin_.pop()
            except (KeyError, IndexError):
                return self._search(nbytes, stream)
            self._live[pointer] = bin_
            return pointer
        return self._search(nbytes, stream)

    def _free_on(self, pointer: int, stream: object) -> None:
        handle = None if stream is None else self.driver.stream(stream)
        try:
            address = operator.index(pointer)  # what goes into a bin must be a plain integer
            bin_ = self._live.pop(address)
        except (KeyError, TypeError):
            raise self._bad_pointer(pointer) from None
        if handle is not None and bin_.stream != handle:
            if bin_.others or bin_.__class__ is not Bin:
                bin_.others = tuple({*bin_.others, handle} - {bin_.stream})
            else:
                bin_ = self._bin(bin_.nbytes, handle)
        bin_.append(address)
        bin_.quiet = False
        bin_.touched.add(bin_)

    def _bin(self, nbytes: int, stream: int) -> Bin:
        """Return the bin of a request size on a stream. Atomic steps only: callers may hold no lock.

        A bin that `_forget_bins` takes out of the dictionary meanwhile is as good: what is freed into
        it goes to the arenas with the next flush.
        """
        bins = self._bins_of.get(stream)
        if bins is None:
            bins = self._bins_of.setdefault(stream, {})
        bin_ = bins.get(nbytes)
        if bin_ is None:
            size = align_up(nbytes, ALIGNMENT) or ALIGNMENT
            touched = self._touched_small if size < self._policy.slab_limit else self._touched
            bin_ = bins.setdefault(nbytes, Bin(nbytes, size, stream, tier_of(nbytes), touched))
        return bin_

    # ------------------------------------------------------------------ the searching path

    def _search(self, nbytes: int, stream: object, alignment: int = ALIGNMENT) -> int:
        if nbytes.__class__ is not int or nbytes < 0:
            nbytes = checked_size(nbytes)
        handle = self._home if stream is None else self.driver.stream(stream)
        with self._writing():
            if self._closed:
                raise self._closed_error()
            if handle != self._home and not self._several_streams:
                self._begin_several_streams()
            bin_ = self._bin(nbytes, handle)
            if len(self._bins_of[handle]) > self._bins_limit:
                self._forget_bins()
            if self._steps.active and handle == self._home and alignment <= ALIGNMENT:
                return self._serve_in_step(bin_)
            if self._pooling:
                pointer = self._find_place(bin_, max(alignment, ALIGNMENT))
            else:
                bin_, pointer = self._allocate_directly(bin_, max(alignment, ALIGNMENT))
            self._live[pointer] = bin_
            return pointer

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock and write the books; refuse to begin in the middle of this thread's own writing."""
        with self._lock:
            if self._busy:
                raise _reentered()
            try:
                self._busy = True
                yield
            finally:
                self._busy = False

    def _refill(self, bin_: Bin) -> int:
        """Serve a request whose bin is empty. The quick path's own way here: all else was checked."""
        if self._closed or self._steps.active or not self._pooling:
            return self._search(bin_.nbytes, bin_.stream)
        with self._lock:  # `_writing`, written out: a microsecond less
            if self._busy:
                raise _reentered()
            try:
                self._busy = True
                if self._closed:
                    raise self._closed_error()
                pointer = self._find_place(bin_, ALIGNMENT)
                self._live[pointer] = bin_
                return pointer
            finally:
                self._busy = False

    def _find_place(self, bin_: Bin, alignment: int) -> int:
        if self.late_frees is not None:
            self.late_frees()
        if bin_ and alignment == ALIGNMENT:
            try:
                return bin_.pop()  # freed meanwhile, or requested through a face without a quick path
            except IndexError:
                pass
        self._searches += 1
        size, touched = bin_.size, bin_.touched
        allocate = self._heap.allocate
        # While bins hold large blocks, only a snug gap is taken: something freed lately may fit better.
        waste = self._policy.waste if touched and touched is self._touched else None
        pointer = allocate(size, alignment, bin_.stream, waste)
        if pointer is None:
            if touched:
                self._empty_bins(touched)
                pointer = allocate(size, alignment, bin_.stream, None)
            if pointer is None:
                return self._grow(bin_, alignment)
        return pointer

    def _grow(self, bin_: Bin, alignment: int) -> int:
        if max(bin_.size, alignment) > self._memory.cap_bytes:
            raise RequestTooLargeError(
                f"expected at most {self._memory.cap_bytes} bytes ({format_size(self._memory.cap_bytes)}, "
                f"what {self.driver.name} or the pool's limit can ever hold), got {bin_.nbytes} bytes "
                f"({format_size(bin_.nbytes)}); ask for less, or raise max_bytes where it is the limit"
            )
        self._grows += 1
        self._empty_bins(self._touched)
        self._empty_bins(self._touched_small)
        try:
            pointer = self._heap.extend(bin_.size, alignment, bin_.stream, self._home_uses())
        except DriverOutOfMemoryError:
            pointer = self._extend_under_pressure(bin_, alignment)
        self._peak_live_bytes = max(self._peak_live_bytes, self._heap.live_bytes)
        limit = self.config.memory_pressure_threshold * self._memory.cap_bytes
        if self.on_pressure is not None and self._memory.reserved_bytes > limit:
            self.on_pressure()
        return pointer

    # ------------------------------------------------------------------ planned steps

    def begin_step(self, name: str, *, wait_for_plan: bool = False) -> None:
        """Begin one repetition of the step `name` on this thread; see `SmartPool.step`."""
        with self._writing():
            if self._closed:
                raise self._closed_error()
            self._steps.begin(name, self, wait_for_plan=wait_for_plan)
            # Requests of a step come through `_search`: the quick path finds no bins until it ends.
            self._hidden_bins = dict(self._bins)
            self._bins_of[self._home] = self._hidden_bins
            self._bins.clear()

    def end_step(self) -> None:
        """End the repetition that is under way on this thread."""
        with self._lock:
            self._steps.end()
            if self._hidden_bins is not None:
                self._bins.update(self._hidden_bins)
                self._bins_of[self._home] = self._bins
                self._hidden_bins = None

    def _serve_in_step(self, bin_: Bin) -> int:
        slot = self._steps.slot_for(bin_.nbytes)
        if slot is None:
            pointer = self._find_place(bin_, ALIGNMENT)
            self._live[pointer] = self._steps.noted(bin_)
            return pointer
        if slot.others:
            self._clock.wait(self._clock.stamps(slot.others), slot.stream)
            slot.others = ()
        pointer = slot.pop()
        self._live[pointer] = slot
        return pointer

    def acquire_region(self, size: int) -> int:
        """Return the address of a block that is the region of a planned step."""
        return self._find_place(self._region_bin(size), ALIGNMENT)

    def release_region(self, address: int, size: int) -> None:
        """Take back what `acquire_region` gave."""
        uses = self._clock.stamp(self._home) if self._several_streams else None
        self._heap.free_all([address], size, uses)

    def _region_bin(self, size: int) -> Bin:
        return Bin(size, size, self._home, tier_of(size), self._touched)

    def _extend_under_pressure(self, bin_: Bin, alignment: int) -> int:
        """Give back what idles and try again, as long as a callback says that it freed something."""
        while True:
            self._steps.release_idle(self)
            self._flush()
            self._release_idle(_EVERYTHING, wait=True)
            try:
                return self._heap.extend(bin_.size, alignment, bin_.stream, self._home_uses())
            except DriverOutOfMemoryError as error:
                if not self._ask_for_room(bin_.nbytes):
                    raise self._out_of_memory(bin_, error) from error
                if self._closed:
                    raise self._closed_error() from error

    def _ask_for_room(self, nbytes: int) -> bool:
        """Return whether a callback freed something. The books are whole here: it may do anything."""
        self._busy = False
        try:
            return any(callback(nbytes) for callback in list(self.out_of_memory_callbacks))
        finally:
            self._busy = True

    def flush(self) -> None:
        """Empty the bins into the arenas, where free blocks join with their neighbours.

        O(k log n) for k cached blocks. Requests and frees of other threads go on meanwhile.
        """
        with self._writing():
            self._flush()

    def _flush(self) -> None:
        if self.late_frees is not None:
            self.late_frees()
        self._empty_bins(self._touched)
        self._empty_bins(self._touched_small)

    def _empty_bins(self, touched: set[Bin]) -> None:
        if len(self._bins_of) > 1 and not self._several_streams:
            self._begin_several_streams()
        self._flushes += 1
        marks: dict[int, Uses] = {}
        free_all = self._heap.free_all
        while touched:
            bin_ = touched.pop()
            bin_.quiet = True
            try:
                free_all(bin_, bin_.size, self._uses_after(bin_, marks) if self._several_streams else None)
            except BaseException:
                touched.add(bin_)
                raise
        # Other threads free meanwhile: only an event recorded behind the last block covers them all.
        for stream in marks:
            self._clock.stamp(stream)

    def _uses_after(self, bin_: Bin, marks: dict[int, Uses]) -> Uses:
        """Return the uses of blocks freed into `bin_`: the event that its streams get after this flush."""
        uses: Uses = None
        for stream in (bin_.stream, *bin_.others):
            if stream not in marks:
                marks[stream] = self._clock.mark([stream])
            uses = join_uses(uses, marks[stream])
        return uses

    def _forget_bins(self) -> None:
        """Take out the bins of sizes that nobody holds: a program may never repeat a size.

        O(live blocks + bins), and at least as many new sizes as bins remain pass before the next time.
        """
        self._flush()
        used = set(_steady(self._live))
        for bins in list(self._bins_of.values()):
            for nbytes, bin_ in list(bins.items()):
                if not bin_ and bin_ not in used:
                    del bins[nbytes]
        self._bins_limit = max(_BINS, *(2 * len(bins) for bins in list(self._bins_of.values())))

    def _begin_several_streams(self) -> None:
        """From now on gaps carry their uses; those that are there were used on the first stream."""
        self._several_streams = True
        uses = self._clock.mark([self._home])
        self._heap.mark(uses)

    def _home_uses(self) -> Uses:
        """Return what gaps without uses of their own stand for."""
        return None if self._several_streams else self._clock.mark([self._home])

    # ------------------------------------------------------------------ giving memory back

    def trim(self, keep_bytes: int = 0, *, wait: bool = False) -> int:
        """Give idle memory back to the device until at most `keep_bytes` are reserved.

        Returns the bytes given back. Without `wait`, memory that the device may still touch is
        left for the next time.
        """
        with self._writing():
            if self._released:
                return 0
            before = self._memory.reserved_bytes
            self._free_doomed(wait=wait)
            self._steps.release_idle(self)
            self._flush()
            self._release_idle(max(0, self._memory.reserved_bytes - keep_bytes), wait=wait)
            return before - self._memory.reserved_bytes

    def _release_idle(self, limit_bytes: int, *, wait: bool) -> None:
        self._heap.release_idle(limit_bytes, self._home_uses(), wait=wait)
        self._memory.release_unwanted()

    def close(self) -> None:
        """Refuse requests from now on, and give the memory back once nothing is live. Idempotent.

        Blocks that are live stay valid; the last `free` gives everything back. When a driver call
        fails on the way, what was not given back yet stays on the books, and `close` can be repeated.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                for bins in list(self._bins_of.values()):
                    bins.clear()  # what they hold is touched
                self._live.on_empty = self._release_everything
                self._live.__class__ = ClosedTable
        if not self._live:
            self._release_everything()

    def _release_everything(self) -> None:
        # The last free of a closed pool may come from a destructor, in the middle of anything, so
        # it must not wait for a lock: when the lock is taken, a thread does the waiting.
        if self._lock.acquire(blocking=False):
            try:
                if not self._busy and self._release_under_lock():
                    return
            finally:
                self._lock.release()
        threading.Thread(target=self._release_when_possible, name="smartpool-closing", daemon=True).start()

    def _release_when_possible(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with self._lock:
                if self._release_under_lock():
                    return
            if time.monotonic() > deadline:
                warnings.warn(
                    f"{self!r} keeps its memory: a request was interrupted in the middle, and its block "
                    "may still be in use",
                    ResourceWarning,
                    stacklevel=1,
                )
                return
            time.sleep(0.001)

    def _release_under_lock(self) -> bool:
        """Give everything back; False when a block is neither live nor free yet.

        Then another thread is between the two steps of its request or free; both are soon over.
        """
        if self._released or self._live:
            return True
        with self._writing():
            self._free_doomed(wait=True)
            self._steps.release_idle(self)
            self._flush()
            if self._heap.live_bytes:
                return False
            self.driver.synchronize()
            self._heap.close()
            self._memory.release_unwanted()
            self._clock.close()
            self.driver.close()
            self._released = True
            return True

    def disown(self) -> None:
        """Leave all memory to the parent: called in the child after a fork, where the pool is of no use.

        Requests are refused, frees are accepted and do nothing, and no driver is called any more.
        """
        self._lock = threading.RLock()  # a thread that held it does not exist here
        self._disowned = self._closed = self._released = True
        for bins in self._bins_of.values():
            bins.clear()
        self._touched.clear()
        self._touched_small.clear()
        self._doomed.clear()
        self._live.__class__ = DisownedTable

    # ------------------------------------------------------------------ watching

    def observe(self, observer: RequestObserver | None) -> None:
        """Tell `observer` of every request and free from now on; None ends it.

        Costs the quick path nothing while there is none.
        """
        with self._lock:
            if self._closed:
                return
            if observer is not None:
                self._live.observer = observer
            self._live.__class__ = LiveTable if observer is None else RecordedTable

    @property
    def reserved_bytes(self) -> int:
        """Physical bytes that the pool holds."""
        return self._memory.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that `reserved_bytes` ever was."""
        return self._memory.peak_reserved_bytes

    @property
    def quick_path(self) -> tuple[dict[int, Bin], LiveTable]:
        """The bins of the default stream and the live table, for faces that write `malloc` out."""
        return self._bins, self._live

    @property
    def available_bytes(self) -> int:
        """What a request could get at most: free on the device, and idle in the pool, under the cap."""
        idle = self._memory.reserved_bytes - self.live_bytes
        return min(self.driver.memory_info().free, self._memory.room_bytes) + idle

    def owns(self, pointer: int) -> bool:
        """Return whether `pointer` is a live block of this pool. O(1)."""
        return pointer in self._live

    @property
    def live_bytes(self) -> int:
        """Bytes in live blocks, as requested. O(live blocks)."""
        return sum(bin_.nbytes * count for bin_, count in Counter(_steady(self._live)).items())

    def live_blocks(self) -> dict[int, int]:
        """Return address to requested bytes, for every live block. O(live blocks)."""
        return {pointer: bin_.nbytes for pointer, bin_ in self._live.copy().items()}

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
        live = Counter(_steady(self._live)).items()  # by bin: one pass over the blocks, in C
        cached = [(bin_, len(bin_)) for bin_ in self._every_bin()]
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
            tiers=_by_tier(live, cached),
            fragmentation=self._fragmentation(live_bytes),
        )

    def _every_bin(self) -> list[Bin]:
        """Return all bins, those of single blocks included (`record_stream`)."""
        bins = {bin_ for bins in list(self._bins_of.values()) for bin_ in list(bins.values())}
        return list(bins | self._touched | self._touched_small)

    def check(self) -> None:
        """Prove the invariants; `InvariantError` when one is broken. Other threads must be still."""
        with self._writing():
            self._heap.check()
            apart = (DirectBin, SlotBin)  # blocks that are not the heap's
            live = {p: bin_.size for p, bin_ in self._live.items() if not isinstance(bin_, apart)}
            live |= dict(self._steps.regions())
            cached = [(pointer, bin_.size) for bin_ in self._every_bin() for pointer in bin_]
            blocks = sorted(tuple(block) for block in self._heap.blocks())
            if sorted([*live.items(), *cached]) != blocks:
                raise InvariantError(f"live {live} and cached {cached} are not the blocks {blocks}")
            held = self._memory.reserved_bytes
            if held > self._memory.cap_bytes:
                raise InvariantError(f"reserved {held} exceeds the cap {self._memory.cap_bytes}")

    # ------------------------------------------------------------------ errors

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

    def _out_of_memory(self, bin_: Bin, error: DriverOutOfMemoryError) -> OutOfMemoryError:
        now = self._snapshot()
        parts = ", ".join(f"{name} {value:.1%}" for name, value in now.fragmentation.as_dict().items())
        held: Counter[int] = Counter()
        for live, count in Counter(_steady(self._live)).items():
            held[live.nbytes] += live.nbytes * count
        holders = ", ".join(f"{total // max(n, 1)} x {format_size(n)}" for n, total in held.most_common(3))
        return OutOfMemoryError(
            f"cannot allocate {bin_.nbytes} bytes ({format_size(bin_.nbytes)}) on {now.device}: "
            f"{format_size(now.live_bytes)} live in {now.live_blocks} blocks (most: {holders or 'none'}), "
            f"{format_size(now.reserved_bytes)} reserved of {format_size(now.cap_bytes)}, "
            f"largest free range {format_size(now.largest_free_bytes)}, "
            f"{format_size(now.device_free_bytes)} free on the device; fragmentation: {parts}; "
            f"free what is not needed, or raise the limit ({error.code})"
        )

    # ------------------------------------------------------------------ set-up

    def _make_heap(self) -> Heap:
        if self.driver.granularity:
            return ElasticHeap(self._memory, self._clock, self._policy)
        return SegmentHeap(self._memory, self._clock)

    def _allocate_directly(self, bin_: Bin, alignment: int) -> tuple[Bin, int]:
        """Serve a request by a raw segment of its own (`enable_advanced_pooling=False`)."""
        size = bin_.size + alignment - ALIGNMENT
        self._free_doomed(wait=size > self._memory.room_bytes)
        try:
            try:
                segment = self._memory.allocate_segment(size)
            except DriverOutOfMemoryError:
                self._free_doomed(wait=True)
                segment = self._memory.allocate_segment(size)
        except DriverOutOfMemoryError as error:
            if bin_.size > self._memory.cap_bytes:
                raise RequestTooLargeError(str(error)) from error
            raise self._out_of_memory(bin_, error) from error
        return DirectBin(bin_, segment, self._free_directly), align_up(segment, alignment)

    def _free_directly(self, segment: int, streams: tuple[int, ...]) -> None:
        # The free may come from a destructor, in the middle of anything: see `_release_everything`.
        self._doomed.append((segment, self._clock.mark(streams)))
        if self._lock.acquire(blocking=False):
            try:
                if not self._busy:
                    with self._writing(), suppress(DriverError):  # it stays doomed: a free does not fail
                        self._free_doomed(wait=False)
            finally:
                self._lock.release()

    def _free_doomed(self, *, wait: bool) -> None:
        """Give raw segments back that the device has done with. What fails is tried again later."""
        for _ in range(len(self._doomed)):
            segment, uses = self._doomed[0]
            if wait:
                self._clock.synchronize(uses)
            if self._clock.idle(uses):
                self._memory.free_segment(segment)
                self._doomed.popleft()
            else:
                self._doomed.rotate(-1)

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

    def _closed_error(self) -> PoolClosedError:
        if self._disowned:
            return PoolClosedError(
                f"expected a pool of this process, this one on {self.driver.name} was opened before a fork "
                "and belongs to the parent; open a pool in the child, or start processes by 'spawn'"
            )
        return PoolClosedError(
            f"expected an open pool, this one on {self.driver.name} was closed; make another"
        )


def _reentered() -> ReentrantCallError:
    return ReentrantCallError(
        "expected no request in the middle of this thread's own request: a destructor, a weak reference's "
        "callback or a signal handler made one while the pool was searching; do it from outside of those"
    )


def _steady(live: LiveTable) -> list[Bin]:
    """Return the bins of the live blocks while other threads go on."""
    while True:
        try:
            return list(live.values())
        except RuntimeError:  # changed while it was copied: once more
            continue


def _by_tier(live: Iterable[tuple[Bin, int]], cached: Iterable[tuple[Bin, int]]) -> dict[str, TierSnapshot]:
    """Return blocks and bytes by tier, from the number of blocks of each bin."""
    figures = {tier: [0, 0, 0, 0] for tier in Tier}
    for bin_, count in live:
        figure = figures[bin_.tier]
        figure[0] += count
        figure[1] += bin_.nbytes * count
    for bin_, count in cached:
        figure = figures[bin_.tier]
        figure[2] += count
        figure[3] += bin_.size * count
    return {
        tier.value: TierSnapshot(live_blocks=a, live_bytes=b, cached_blocks=c, cached_bytes=d)
        for tier, (a, b, c, d) in figures.items()
    }
