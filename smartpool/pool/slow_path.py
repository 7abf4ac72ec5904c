"""The slow path: what a request does that no freed block serves at once, and the state that this needs.

See `smartpool.pool.device_pool` for the order of the stages, and `docs/elastic.md` for the reasons.

Four structures belong to the quick path: the bins of each stream, their lists of deferred frees, the
table of live blocks, and the sets of bins that were touched since they were last emptied. They are never
replaced, only changed, by steps that are atomic. Everything else is written in the critical section.

Invariants, proved by `check()`: every block of the heap is live, or freed into exactly one bin or list;
live and cached blocks are disjoint and have the size that their bin says; reserved bytes are
within the cap; and the invariants of heap, chunks and memory.
"""

from __future__ import annotations

import gc
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from sys import getrefcount
from threading import get_ident
from typing import Any, Final
from weakref import WeakMethod

from smartpool.config import SmartPoolConfig
from smartpool.driver.protocol import Driver, check_driver
from smartpool.errors import (
    REQUEST_TOO_LARGE,
    CaptureError,
    ConfigurationError,
    DoubleFreeError,
    DriverError,
    DriverOutOfMemoryError,
    InvariantError,
    OutOfMemoryError,
    PoolClosedError,
    SmartPoolError,
    UnknownPointerError,
)
from smartpool.heap.arena import ALIGNMENT, Uses, join_uses
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.elastic import ElasticHeap
from smartpool.heap.policy import policy_of
from smartpool.heap.protocol import Heap
from smartpool.heap.segments import SegmentHeap
from smartpool.heap.slabs import SMALL_SHARE
from smartpool.heap.stream_order import StreamClock
from smartpool.interpreters import require_main_interpreter
from smartpool.pool.attachments import (
    Attachment,
    CaptureRoute,
    PlacedApart,
    PlannedRequests,
    RequestFront,
)
from smartpool.pool.bins import Bin, DeferredFrees, LargeBin, LiveTable, enter
from smartpool.pool.critical_section import CriticalSection, is_whole, reentered
from smartpool.pool.direct import PendingFrees, allocate_directly
from smartpool.pool.garbage import GarbageMayHelpError, collection_allowed
from smartpool.request import checked_size
from smartpool.tiers import tier_of
from smartpool.units import align_up, format_size

__all__ = ["BINS", "STREAMS", "SlowPath", "steady"]

STREAMS: Final = 64
"""Streams, before what is kept of those that hold nothing is forgotten."""
BINS: Final = 1 << 16
"""Bins of one stream, about 20 MB, before those that nobody uses are forgotten."""

_EVERYTHING: Final = 1 << 62
_size_and_stream = attrgetter("nbytes", "stream")
_ONE_TABLE: Final[list[list[int]]] = [[]]
_ALONE: Final = getrefcount(_ONE_TABLE[0])  # references to what one table has and nobody else


class SlowPath:
    """The state of one device's pool, and how it finds, makes and gives back room.

    Attributes
    ----------
    section
        Guards everything but the four structures of the quick path.
    plain
        Whether a request that finds no block may search at once: the pool is open and keeps memory, no
        planned step wants to see requests, nothing is captured.
    attached
        Who else holds blocks of the heap: planned steps, graphs.
    planned
        Who serves requests from a plan, while such a step is under way.
    capture
        Where requests go while a stream is captured.
    apart
        Who places some requests apart from the others, or keeps this memory asleep.
    endings
        Called when the pool ends, nothing is live and the device is idle.
    on_capture
        Serves a request of a stream whose capture nobody announced: bytes, stream, id, alignment.
    explain
        Makes the error of a request that failed, and tells everybody who asked for it.
    on_growth, on_pressure
        Called when memory was mapped, and when that took it beyond the pressure threshold.
    out_of_memory_callbacks, front
        As in `AdvancedMemoryPoolManager`.
    """

    def __init__(self, driver: Driver, config: SmartPoolConfig | None = None) -> None:
        require_main_interpreter()
        check_driver(driver)
        self.driver = driver
        self.config = SmartPoolConfig.of(config)
        if self.config.shareable:
            driver.share_chunks()
        info = driver.memory_info()
        self.used_before = info.total - info.free
        limited = self.config.cap(info.total) < info.total
        self.memory = DeviceMemory(driver, self._checked_cap(info.total), limited=limited)
        self.clock = StreamClock(driver)
        self.home = driver.default_stream
        self.section = CriticalSection()
        self.closed = self.disowned = False
        self.pooling = self.config.enable_advanced_pooling
        self.plain = self.pooling

        self.attached: list[Attachment] = []
        self.planned: PlannedRequests | None = None
        self.capture: CaptureRoute | None = None
        self.apart: PlacedApart | None = None
        self.endings: list[Callable[[], None]] = []
        self.on_capture: Callable[[SlowPath, int, int, int, int], int] | None = None
        self.explain: WeakMethod[Callable[[Bin, str, int], OutOfMemoryError]] | None = None
        self.on_pressure: Callable[[], None] | None = None
        self.on_growth: Callable[[], None] | None = None
        self.out_of_memory_callbacks: list[Callable[[int], bool]] = []
        self.front: RequestFront | None = None

        # The quick path's structures. They are never replaced, only changed: callers may
        # hold bound methods, and other threads are in the middle of them at any time.
        self.bins: dict[int, Bin] = {}
        self.live = LiveTable()
        self.touched: set[Bin] = set()
        self.touched_small: set[Bin] = set()  # of requests below the policy's slab limit
        self.bins_of: dict[int, dict[int, Bin]] = {self.home: self.bins}
        self._home_deferred = DeferredFrees(self.home)
        self.deferred = {self.home: self._home_deferred}  # by stream
        self._latest_nbytes, self._latest = -1, [0]  # request and address of the large block placed last

        self.several_streams = False
        self.bins_limit = BINS
        self.streams_limit = STREAMS
        self.pending = PendingFrees()  # of raw allocations (pooling off)
        self.collected: dict[int, int] = {}  # thread that tries again -> bytes that garbage held
        self.peak_live_bytes = self.high_water_bytes = 0
        self.searches = self.flushes = self.grows = 0
        self._policy = policy_of(self.config.policy)
        self.heap = self._make_heap()
        self.gauge = self.heap.gauge
        self.released = False  # last: a pool that was not made in full has nothing to give back

    def _make_heap(self) -> Heap:
        if self.driver.granularity:
            return ElasticHeap(self.memory, self.clock, self._policy, self.config.prices)
        return SegmentHeap(self.memory, self.clock)

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

    def look_again(self) -> None:
        """Find out anew whether requests are plain ones. Under the lock."""
        free = self.capture is None and self.planned is None and self.apart is None
        self.plain = self.pooling and not self.closed and free
        if self.front is not None:
            self.front.switch(on=self.plain and self.live.__class__ is LiveTable)

    def writing(self) -> AbstractContextManager[None]:
        """Hold the lock and write the state, recovered if need be; see `CriticalSection`."""
        return self.section.writing(self.recover)

    # ------------------------------------------------------------------ search

    def bin_of(self, nbytes: int, stream: int) -> Bin:
        """Return the bin of a request size on a stream. Atomic steps only: callers may hold no lock.

        A bin that `_forget_bins` takes out of the dictionary meanwhile is as good: what is freed into
        it goes to the arenas with the next flush.
        """
        capture = self.capture
        if capture is not None and stream != self.home:
            return capture.bin_of(self, nbytes, stream)
        bins = self.bins_of.get(stream)
        if bins is None:
            bins = self.bins_of.setdefault(stream, {})
        bin_ = bins.get(nbytes)
        if bin_ is None:
            bin_ = bins.setdefault(nbytes, self.new_bin(nbytes, stream))
        return bin_.home

    def new_bin(self, nbytes: int, stream: int) -> Bin:
        """Return a bin that no table has."""
        size = align_up(nbytes, ALIGNMENT) or ALIGNMENT
        if size < self._policy.slab_limit:
            bin_ = Bin(nbytes, size, stream, tier_of(nbytes), self.touched_small)
        else:
            deferred = self.deferred.get(stream) or self.deferred.setdefault(stream, DeferredFrees(stream))
            bin_ = LargeBin(nbytes, size, stream, tier_of(nbytes), self.touched, deferred)
        bin_.arena = self.heap.arena_for(size)
        return bin_

    def search(self, nbytes: int, stream: object, alignment: int = ALIGNMENT) -> int:
        """Return the address of a block, entered as live. Holds no lock."""
        if self.capture is not None:
            return self.capture.request(self, nbytes, stream, alignment)
        if nbytes.__class__ is not int or nbytes < 0:
            nbytes = checked_size(nbytes)
        handle = self.home if stream is None else self.driver.stream(stream)
        if alignment > ALIGNMENT or handle != self.home or len(self.bins) > self.bins_limit:
            return self._search_anyhow(nbytes, handle, alignment)
        return self.refill(self.bin_of(nbytes, handle))

    def _search_anyhow(self, nbytes: int, handle: int, alignment: int) -> int:
        """Serve a request of whatever kind, in whatever state."""
        if handle != self.home and (capture := self.driver.is_capturing(handle)):
            if self.on_capture is None:
                raise CaptureError(f"expected a stream that is not being captured, got {handle:#x}")
            return self.on_capture(self, nbytes, handle, capture, max(alignment, ALIGNMENT))
        try:
            with self.writing():
                return self.place(nbytes, handle, max(alignment, ALIGNMENT))
        except GarbageMayHelpError:
            pass  # what is raised from here on is not about this
        return self._search_without_garbage(nbytes, handle, alignment)

    def place(self, nbytes: int, handle: int, alignment: int) -> int:
        """Serve a request of whatever kind, in the critical section."""
        if self.closed:
            raise self.closed_error()
        if handle != self.home and not self.several_streams:
            self.begin_several_streams()
        bin_ = self.bin_of(nbytes, handle)
        if len(self.bins_of[handle]) > self.bins_limit:
            self._forget_bins()
        if self.apart is not None:
            pointer = self.apart.serve(nbytes, handle, alignment)
            if pointer is not None:
                return pointer
        if self.planned is not None and alignment <= ALIGNMENT:
            if self.front is not None:
                self.front.drain()  # what is due may be among them
            pointer = self.planned.serve(bin_, self)
            if pointer:
                return pointer
        if self.pooling:
            pointer = self.find_place(bin_, alignment)
        else:
            bin_, pointer = allocate_directly(self, bin_, alignment)
        enter(self.live, pointer, bin_)
        return pointer

    def refill(self, bin_: Bin) -> int:
        """Serve a request whose bin is empty: the usual one, after all that could be checked was."""
        if not self.plain:
            if self.capture is not None:
                return self.capture.request(self, bin_.nbytes, bin_.stream, ALIGNMENT)
            return self._search_anyhow(bin_.nbytes, bin_.stream, ALIGNMENT)
        if bin_.nbytes == self._latest_nbytes and self._home_deferred == self._latest:
            # The block placed last came back, alone, and nothing was joined since: first fit would choose
            # the same place again. Whoever pops it owns it, so this needs no lock.
            try:
                pointer = self._home_deferred.pop()
            except IndexError:
                pass
            else:
                # Another thread may have freed another block meanwhile, and other requests may have placed
                # another one there: who owns it can look.
                try:
                    if bin_.arena is not None and bin_.arena.size_at(pointer) == bin_.size:
                        self.live[pointer] = bin_
                        return pointer
                except BaseException:  # as `enter`, which to call may be too deep
                    dict.pop(self.live, pointer, None)
                    self._home_deferred.append(pointer)
                    raise
                self._home_deferred.append(pointer)
        section = self.section
        if section.entered:
            section.wait_for_turn()
        try:
            with section.lock:  # `CriticalSection.writing`, written out: a microsecond less
                if section.entered:
                    raise reentered()
                try:
                    section.entered = True
                    if section.torn:
                        section.recover(self.recover)
                    if self.closed:
                        raise self.closed_error()  # noqa: TRY301 - and not a function more on this path
                    arena = bin_.arena
                    if (
                        bin_.__class__ is not LargeBin
                        or arena is None
                        or len(self.bins_of) > 1
                        or not self.plain
                    ):
                        bin_ = bin_.home  # where it stood for another until a moment ago
                        pointer = self.find_place(bin_, ALIGNMENT)
                    else:  # `find_place` written out, for one stream
                        if self.front is not None:
                            self.front.drain()
                        self.searches += 1
                        deferred = self._home_deferred
                        if arena.live_bytes > self.high_water_bytes:  # noqa: PLR1730 - `max` takes thrice the time
                            self.high_water_bytes = arena.live_bytes  # it only rises between two of these
                        found = arena.serve(bin_.size, deferred, self.heap.free_elsewhere)
                        pointer = self._grow(bin_, ALIGNMENT) if found is None else found
                        self._latest[0], self._latest_nbytes = pointer, bin_.nbytes
                    enter(self.live, pointer, bin_)
                    return pointer  # noqa: TRY300
                except BaseException as error:
                    section.torn = True
                    section.torn = section.recovering or not is_whole(error)
                    raise
                finally:
                    section.entered = False
        except GarbageMayHelpError:
            pass
        return self._search_without_garbage(bin_.nbytes, bin_.stream, ALIGNMENT)

    def _search_without_garbage(self, nbytes: int, handle: int, alignment: int) -> int:
        """Collect garbage, which may hold memory, and search once more. Holds no lock."""
        here, before = get_ident(), self.live_bytes
        gc.collect()
        if self.front is not None:
            with self.writing():
                self.front.drain(everything=True)
        self.collected[here] = max(0, before - self.live_bytes)
        try:
            return self.search(nbytes, handle, alignment)
        finally:
            del self.collected[here]

    def find_place(self, bin_: Bin, alignment: int) -> int:
        """Return the address of a block of the heap for a request. In the critical section."""
        if self.front is not None:
            self.front.drain()
        self.forget_unused_streams()
        if bin_ and alignment == ALIGNMENT:
            try:
                return bin_.pop()  # freed meanwhile, or requested through a face without a quick path
            except IndexError:
                pass
        self.searches += 1
        small = bin_.touched is self.touched_small
        if not small:
            self.join_deferred()
        pointer = self.heap.allocate(bin_.size, alignment, bin_.stream)
        if pointer is None and small and self.front is not None:
            self.front.drain(everything=True)
        if pointer is None and small and self.touched_small:
            # What may spare the heap from growing. One slab more is cheaper still.
            if not self.heap.spare_slab():
                self.empty_bins(self.touched_small)
            pointer = self.heap.allocate(bin_.size, alignment, bin_.stream)
        return self._grow(bin_, alignment) if pointer is None else pointer

    # ------------------------------------------------------------------ growth

    def _grow(self, bin_: Bin, alignment: int) -> int:
        if max(bin_.size, alignment) > self.memory.cap_bytes:
            raise self.out_of_memory(bin_, REQUEST_TOO_LARGE, alignment)
        self._flush_for(bin_)
        for each in self.attached:
            if each.held:
                pointer = self._take_from_attached(bin_, alignment)
                if pointer is not None:
                    return pointer
        self.grows += 1
        try:
            pointer = self.heap.extend(bin_.size, alignment, bin_.stream)
        except DriverOutOfMemoryError:
            pointer = None  # what is raised from here on is not about this
        if pointer is None:
            pointer = self.extend_under_pressure(bin_, alignment, self.heap.extend)
        self.peak_live_bytes = max(self.peak_live_bytes, self.heap.live_bytes)
        limit = self.config.memory_pressure_threshold * self.memory.cap_bytes
        if self.on_pressure is not None and self.memory.reserved_bytes > limit:
            self.on_pressure()
        if self.on_growth is not None:
            self.on_growth()
        return pointer

    def _take_from_attached(self, bin_: Bin, alignment: int) -> int | None:
        """Find a place without growing while a plan holds memory: beside its region, or else in that."""
        pointer = self._place_idle(bin_.size, alignment, bin_.stream)
        if pointer is None:
            self.ask_for_way()
            pointer = self._place_idle(bin_.size, alignment, bin_.stream)
        return pointer

    def _place_idle(self, size: int, alignment: int, stream: int) -> int | None:
        try:
            return self.heap.place_idle(size, alignment, stream)
        except DriverOutOfMemoryError:
            return None  # even a second mapping takes some

    def extend_under_pressure(self, bin_: Bin, alignment: int, extend: Callable[[int, int, int], int]) -> int:
        """Give back what idles and try again, as long as a callback says and shows that it freed some."""
        held: int | None = None
        while True:
            self.ask_for_way()
            self.touch_every_bin()
            self.flush()
            if bin_.size <= self._obtainable_bytes():
                self.release_idle(_EVERYTHING, wait=True)
            try:
                return extend(bin_.size, alignment, bin_.stream)
            except DriverOutOfMemoryError as error:
                progress = held is None or self.heap.live_bytes < held
                held = self.heap.live_bytes
                freed = any(self.deferred.values()) or bool(self.touched)  # meanwhile, large ones
                if not freed and self.garbage_may_help(error.code):
                    raise GarbageMayHelpError from error
                try:
                    again = progress and (freed or self._ask_for_room(bin_.nbytes))
                except Exception as theirs:  # the program's own mistake, which is not to hide the story
                    # A driver's failure says by its chain whether the state is whole.
                    if (
                        self.closed
                        or self.section.torn
                        or theirs.__cause__
                        or isinstance(theirs, DriverError)
                    ):
                        raise
                    raise theirs from self.out_of_memory(bin_, error.code)
                if not again:
                    raise self.out_of_memory(bin_, error.code, alignment) from error
                if self.closed:
                    raise self.closed_error() from error

    def _obtainable_bytes(self) -> int:
        """Return what a request could get at most, if every free byte were in the right place."""
        free = min(self.driver.memory_info().free, self.memory.room_bytes)
        return free + self.memory.reserved_bytes - self.heap.live_bytes  # unwanted chunks are reserved, too

    def garbage_may_help(self, code: str) -> bool:
        """Return whether a collection is due: before callbacks are asked, and once a request."""
        return not (
            code == REQUEST_TOO_LARGE
            or get_ident() in self.collected
            or self.capture is not None
            or not collection_allowed()
        )

    def _ask_for_room(self, nbytes: int) -> bool:
        """Return whether a callback freed something. The state is whole here: it may do anything."""
        self.section.entered = False
        try:
            return any(callback(nbytes) for callback in list(self.out_of_memory_callbacks))
        finally:  # not in a context manager: interrupted, that would do this when it is collected
            self.section.entered = True

    def out_of_memory(self, bin_: Bin, code: str, alignment: int = ALIGNMENT) -> OutOfMemoryError:
        """Return the error of a request that failed."""
        explain = None if self.explain is None else self.explain()
        if explain is None:  # the pool is on its way to be made, or gone
            return OutOfMemoryError(f"out of memory. Tried to allocate {format_size(bin_.nbytes)} ({code})")
        return explain(bin_, code, alignment)

    def release_idle(self, limit_bytes: int, *, wait: bool, exact: bool = False) -> None:
        """Give idle memory back to the device, up to so many bytes."""
        if self.asleep:
            return
        self.heap.release_idle(limit_bytes, wait=wait, exact=exact)
        self.memory.release_unwanted()

    # ------------------------------------------------------------------ what was freed

    def flush(self) -> None:
        """Join all that was freed with its neighbors. In the critical section."""
        if self.front is not None:
            self.front.drain(everything=True)
        for each in self.attached:
            each.before_flush(self)
        self.join_deferred()
        self.empty_bins(self.touched_small)

    def _flush_for(self, bin_: Bin) -> None:
        """Empty the bins whose blocks could make room for one of `bin_`.

        For a large request those of small ones can only if slabs go back, so they stay as long as slabs
        are a small share of all that is reserved.
        """
        if bin_.touched is self.touched_small or (
            self.heap.small_bytes > SMALL_SHARE * self.memory.reserved_bytes
        ):
            self.flush()
            return
        if self.front is not None:
            self.front.drain(everything=True)
        self.join_deferred()

    def join_deferred(self) -> None:
        """Join large blocks that were freed with their neighbors; beside a capture, later."""
        if self.capture is not None:
            return
        if self.gauge.live_bytes > self.high_water_bytes:  # noqa: PLR1730 - `max` takes three times as long
            self.high_water_bytes = self.gauge.live_bytes  # it only rises between two of these
        if len(self.bins_of) > 1 and not self.several_streams:
            self.begin_several_streams()
        if self.touched:  # blocks with a bin of their own, which several streams used
            self.empty_bins(self.touched)
        size = self._policy.slab_limit
        if not self.several_streams:
            if self._home_deferred:
                self.heap.free_all((self._home_deferred,), size, None)
            return
        for stream, deferred in list(self.deferred.items()):
            if deferred:
                self.heap.free_all((deferred,), size, self.clock.mark([stream]))
                self.clock.joined(stream)

    def empty_bins(self, touched: set[Bin]) -> None:
        """Give the blocks in bins back to the heap; beside a capture later, since events cannot be asked."""
        if self.capture is not None:
            return
        self.flushes += 1
        groups: list[Bin] = []
        try:
            while touched:
                bin_ = touched.pop()
                groups.append(bin_)
                bin_.quiet = True
            groups = sorted(groups, key=_size_and_stream)  # a set gives them out in another order each time
            # Behind the look at what was touched: a free on a new stream enters the stream before its block.
            if len(self.bins_of) > 1 and not self.several_streams:
                self.begin_several_streams()
            if self.several_streams:
                self._free_by_stream(groups)
            elif groups:
                self.heap.free_all(groups, groups[0].size, None)
        except BaseException:
            touched.update(groups)
            raise

    def _free_by_stream(self, groups: list[Bin]) -> None:
        """End the blocks in `groups`, each with the uses that its bin's streams leave behind."""
        marks: dict[int, Uses] = {}
        for bin_ in groups:
            self.heap.free_all([bin_], bin_.size, self._uses_after(bin_, marks))
        # Other threads free meanwhile: only an event recorded behind the last block covers them all.
        for stream in marks:
            self.clock.stamp(stream)

    def _uses_after(self, bin_: Bin, marks: dict[int, Uses]) -> Uses:
        """Return the uses of blocks freed into `bin_`: the event that its streams get after this flush."""
        uses: Uses = None
        for stream in (bin_.stream, *bin_.others):
            if stream not in marks:
                marks[stream] = self.clock.mark([stream])
            uses = join_uses(uses, marks[stream])
        return uses

    def touch_every_bin(self) -> None:
        """Let the next flush see all that is cached: a free that was broken off may not have said so."""
        for bin_ in self.every_bin():
            if bin_:
                bin_.touched.add(bin_)

    def every_bin(self) -> list[Bin]:
        """Return all bins, those of single blocks included (`record_stream`)."""
        bins = {bin_.home for bins in list(self.bins_of.values()) for bin_ in list(bins.values())}
        if self.capture is not None:
            bins.update(self.capture.bins())
        return list(bins | self.touched | self.touched_small)

    def _forget_bins(self) -> None:
        """Take out the bins of sizes that nobody holds: a program may never repeat a size.

        O(live blocks + bins), and at least as many new sizes as bins remain pass before the next time.
        """
        self.flush()
        used = set(steady(self.live))
        for bins in list(self.bins_of.values()):
            for nbytes, bin_ in list(bins.items()):
                if not bin_ and bin_ not in used:
                    del bins[nbytes]
        self.bins_limit = max(BINS, *(2 * len(bins) for bins in list(self.bins_of.values())))

    # ------------------------------------------------------------------ streams

    def forget_unused_streams(self) -> None:
        """Take out what is kept of streams that hold nothing: a program may make one for each of its tasks.

        O(live blocks + streams), and at least as many new streams as remain pass before the next time.
        """
        if len(self.bins_of) <= self.streams_limit or self.capture is not None:
            return
        self.empty_bins(self.touched_small)
        live = set(steady(self.live))
        used = {self.home, *(bin_.stream for bin_ in live), *(one for bin_ in live for one in bin_.others)}
        for stream in list(self.bins_of)[:-1]:  # one stays: that there were several is to be seen
            if stream not in used and not any(list(self.bins_of[stream].values())):
                del self.bins_of[stream]
        for stream in [*self.deferred]:
            # A free on its way has the list, or the bin that has it.
            unknown = stream not in self.bins_of and getrefcount(self.deferred[stream]) == _ALONE
            if unknown and not self.deferred[stream]:
                del self.deferred[stream]
        self.clock.forget(kept=self.bins_of.keys() | self.deferred.keys())
        self.streams_limit = max(STREAMS, 2 * len(self.bins_of))

    def begin_several_streams(self) -> None:
        """From now on gaps carry their uses; those that are there were used on the first stream."""
        uses = self.clock.mark([self.home])
        self.heap.mark(uses)
        # Last: a gap without uses could be touched by anyone.
        self.several_streams = self.clock.several = True

    # ------------------------------------------------------------------ what is attached

    def ask_for_way(self) -> None:
        """Let planned steps give their memory back, as far as nothing is live there."""
        for each in self.attached:
            each.give_way(self)

    def regions(self) -> list[tuple[int, int]]:
        """Return address and bytes of the blocks of the heap that have blocks of others inside."""
        return [region for each in self.attached for region in each.regions()]

    def acquire_region(self, size: int, stream: int) -> int | None:
        """Return the address of a block of `size` bytes, of what is free; None if that is too little."""
        if stream != self.home and not self.several_streams:
            self.begin_several_streams()
        self.flush()
        return self._place_idle(size, ALIGNMENT, stream)

    def room_bytes(self) -> tuple[int, int]:
        """Return the bytes of the largest region that can be made of what is free, and of the rest."""
        region = self.heap.room_bytes()
        return region, self.heap.extent_bytes - self.heap.live_bytes - region

    def split_region(self, address: int, sizes: Sequence[int]) -> None:
        """Turn the block at `address` into blocks of `sizes`, which together are as large, in one step."""
        self.heap.split(address, sizes)

    def release_region(self, region: list[int], size: int, streams: tuple[int, ...]) -> None:
        """Take the block back whose address is in `region`, and empty that; `streams` may still touch it."""
        if self.capture is not None:
            self.capture.owe(region[0], size, streams)
            region.clear()
            return
        if len(self.bins_of) > 1 and not self.several_streams:
            self.begin_several_streams()
        uses = self.clock.mark(streams) if self.several_streams else None
        self.heap.free_all([region], size, uses)

    def order_behind(self, streams: tuple[int, ...], stream: int) -> None:
        """Order later work on `stream` behind all work queued so far on `streams`."""
        self.clock.wait(self.clock.stamps(streams), stream)

    # ------------------------------------------------------------------ recovery, proof

    def recover(self) -> None:
        """Make the state whole after a call that was broken off: see `Heap.mend`."""
        if self.disowned:  # and never is: what it says is the parent's
            raise self.closed_error()
        self.pending.release(self, wait=False)  # one may be gone, and its address is not to be met again
        self.heap.mend(self.clock.mark_all(self.bins_of) if self.several_streams else None)
        for each in self.attached:
            each.recover(self)
        self.touch_every_bin()

    @property
    def asleep(self) -> bool:
        """Whether the memory of the heap was given back, and its addresses kept."""
        return self.apart is not None and self.apart.heap_asleep

    @property
    def live_bytes(self) -> int:
        """Bytes in live blocks, as requested. O(live blocks)."""
        return sum([bin_.nbytes for bin_ in steady(self.live)])

    def check(self) -> None:
        """Prove the invariants. In the critical section."""
        self.heap.check()
        for each in self.attached:
            each.check(self)
        live = {pointer: bin_.size for pointer, bin_ in self.live.items() if bin_.in_heap}
        live |= dict(self.regions())
        cached = [(pointer, bin_.size) for bin_ in self.every_bin() for pointer in bin_]
        cached += [(p, self.heap.block_size(p) or 0) for freed in self.deferred.values() for p in freed]
        blocks = sorted(tuple(block) for block in self.heap.blocks())
        if sorted([*live.items(), *cached]) != blocks:
            raise InvariantError(f"live {live} and cached {cached} are not the blocks {blocks}")
        held = self.memory.reserved_bytes
        if held > self.memory.cap_bytes:
            raise InvariantError(f"reserved {held} exceeds the cap {self.memory.cap_bytes}")

    # ------------------------------------------------------------------ errors

    def live_bin(self, pointer: int) -> Bin:
        """Return the bin of a live block, which is to be used."""
        try:
            bin_ = self.live[pointer]
            if self.apart is not None:
                self.apart.require_awake(pointer)
            return bin_  # noqa: TRY300
        except (KeyError, TypeError):
            raise self.bad_pointer(pointer) from None

    def bad_pointer(self, pointer: object) -> SmartPoolError:
        """Return the error of an address that is no live block's."""
        try:
            address = operator.index(pointer)  # type: ignore[arg-type]
        except TypeError:
            return UnknownPointerError(
                f"expected an address that malloc returned, got {pointer!r} of type "
                f"{type(pointer).__name__}; free blocks by their address, and a Buffer by Buffer.free"
            )
        with self.section.lock:
            if self.heap.block_size(address) is not None or self.heap.is_gap(address):
                return DoubleFreeError(
                    f"expected the address of a live block, got {address:#x}, which is free already; "
                    "free every block once"
                )
            return UnknownPointerError(
                f"expected the address of a live block of this pool on {self.driver.name}, got {address:#x}; "
                "free it with the allocator that returned it, and by the address that it returned"
            )

    def closed_error(self) -> PoolClosedError:
        """Return the error of a request to a pool that was closed, or is the parent process's."""
        if self.disowned:
            return PoolClosedError(
                f"expected a pool of this process, this one on {self.driver.name} was opened before a fork "
                "and belongs to the parent; open a pool in the child, or start processes by 'spawn'"
            )
        return PoolClosedError(
            f"expected an open pool, this one on {self.driver.name} was closed; make another"
        )


def steady(live: dict[int, Any]) -> list[Bin]:
    """Return the bins of the live blocks while other threads go on."""
    while True:
        try:
            return list(live.values())
        except RuntimeError:  # changed while it was copied: once more
            continue
