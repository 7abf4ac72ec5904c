"""The searching path: from a request that nothing serves at once to a gap, growth, and the last resort.

See `smartpool.pool.manager` for the order of the stages, and `docs/elastic.md` for the reasons.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from operator import attrgetter
from sys import getrefcount
from threading import get_ident
from typing import TYPE_CHECKING, Final

from smartpool.errors import (
    CaptureError,
    DriverError,
    DriverOutOfMemoryError,
    OutOfMemoryError,
)
from smartpool.memory.arena import ALIGNMENT, Uses, join_uses
from smartpool.pool.bins import Bin, DeferredFrees, LargeBin, LiveTable, enter
from smartpool.pool.books import BINS, STREAMS, PoolBooks, is_whole, reentered, steady
from smartpool.pool.direct import DirectBin
from smartpool.pool.garbage import GarbageMayHelpError, collection_allowed
from smartpool.pool.heap.slabs import SMALL_SHARE
from smartpool.pool.telemetry.story import TOO_LARGE
from smartpool.pool.tiers import tier_of
from smartpool.request import checked_size
from smartpool.units import align_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smartpool.pool.bins import RequestObserver

__all__ = ["SearchingPool"]

_size_and_stream = attrgetter("nbytes", "stream")

_EVERYTHING: Final = 1 << 62
_ONE_TABLE: Final[list[list[int]]] = [[]]
_ALONE: Final = getrefcount(_ONE_TABLE[0])  # references to what one table has and nobody else


class SearchingPool(PoolBooks):
    """Books that can find, make and give back room. `AdvancedMemoryPoolManager` is the whole."""

    # ------------------------------------------------------------------ search

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
            bin_ = bins.setdefault(nbytes, self._new_bin(nbytes, stream))
        return bin_.home

    def _new_bin(self, nbytes: int, stream: int) -> Bin:
        size = align_up(nbytes, ALIGNMENT) or ALIGNMENT
        if size < self._policy.slab_limit:
            bin_ = Bin(nbytes, size, stream, tier_of(nbytes), self._touched_small)
        else:
            bin_ = LargeBin(nbytes, size, stream, tier_of(nbytes), self._touched, self._deferred_of(stream))
        bin_.arena = self._heap.arena_for(size)
        return bin_

    def _deferred_of(self, stream: int) -> DeferredFrees:
        return self._deferred.get(stream) or self._deferred.setdefault(stream, DeferredFrees(stream))

    def _search(self, nbytes: int, stream: object, alignment: int = ALIGNMENT) -> int:
        if nbytes.__class__ is not int or nbytes < 0:
            nbytes = checked_size(nbytes)
        handle = self._home if stream is None else self.driver.stream(stream)
        if alignment > ALIGNMENT or handle != self._home or len(self._bins) > self._bins_limit:
            return self._search_anyhow(nbytes, handle, alignment)
        return self._refill(self._bin(nbytes, handle))

    def _search_anyhow(self, nbytes: int, handle: int, alignment: int) -> int:
        """Serve a request of whatever kind, in whatever state."""
        if handle != self._home and (capture := self.driver.is_capturing(handle)):
            if self.on_capture is None:
                raise CaptureError(
                    f"expected a stream that is not being captured, got {handle:#x}: a bare pool does not "
                    "know what to do then; make a SmartPool"
                )
            return self.on_capture(self, nbytes, handle, capture, max(alignment, ALIGNMENT))
        try:
            with self._writing():
                return self._place_request(nbytes, handle, alignment)
        except GarbageMayHelpError:
            pass  # what is raised from here on is not about this
        return self._search_without_garbage(nbytes, handle, alignment)

    def _place_request(self, nbytes: int, handle: int, alignment: int) -> int:
        if self._closed:
            raise self._closed_error()
        if handle != self._home and not self._several_streams:
            self._begin_several_streams()
        bin_ = self._bin(nbytes, handle)
        if len(self._bins_of[handle]) > self._bins_limit:
            self._forget_bins()
        if self._steps.attentive and alignment <= ALIGNMENT:
            if self.late_frees is not None:
                self.late_frees()  # what is due may be among them
            pointer = self._steps.serve(bin_, self) or 0
            if pointer:
                return pointer
        if self._pooling:
            pointer = self._find_place(bin_, max(alignment, ALIGNMENT))
        else:
            bin_, pointer = self._allocate_directly(bin_, max(alignment, ALIGNMENT))
        enter(self._live, pointer, bin_)
        return pointer

    def _refill(self, bin_: Bin) -> int:
        """Serve a request whose bin is empty: the usual one, after all that could be checked was."""
        if self._closed or self._steps.attentive or not self._pooling:
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
                        self._live[pointer] = bin_
                        return pointer
                except BaseException:  # as `enter`, which to call may be too deep
                    dict.pop(self._live, pointer, None)
                    self._home_deferred.append(pointer)
                    raise
                self._home_deferred.append(pointer)
        try:
            with self._lock:  # `_writing`, written out: a microsecond less
                if self._busy:
                    raise reentered()
                try:
                    self._busy = True
                    if self._torn:
                        self._mend()
                    if self._closed:
                        raise self._closed_error()  # noqa: TRY301 - and not a function more on this path
                    arena = bin_.arena
                    if (
                        bin_.__class__ is not LargeBin
                        or arena is None
                        or len(self._bins_of) > 1
                        or self.late_frees
                    ):
                        bin_ = bin_.home  # where it stood for another until a moment ago
                        pointer = self._find_place(bin_, ALIGNMENT)
                    else:  # `_find_place` written out, for one stream
                        self._searches += 1
                        deferred = self._home_deferred
                        if arena.live_bytes > self.high_water_bytes:  # noqa: PLR1730 - `max` takes thrice the time
                            self.high_water_bytes = arena.live_bytes  # it only rises between two of these
                        found = arena.serve(bin_.size, deferred, self._heap.free_elsewhere)
                        pointer = self._grow(bin_, ALIGNMENT) if found is None else found
                        self._latest[0], self._latest_nbytes = pointer, bin_.nbytes
                    enter(self._live, pointer, bin_)
                    return pointer  # noqa: TRY300
                except BaseException as error:
                    self._torn = True
                    self._torn = self._mending or not is_whole(error)
                    raise
                finally:
                    self._busy = False
        except GarbageMayHelpError:
            pass
        return self._search_without_garbage(bin_.nbytes, bin_.stream, ALIGNMENT)

    def _search_without_garbage(self, nbytes: int, handle: int, alignment: int) -> int:
        """Collect garbage, which may hold memory, and search once more. Holds no lock."""
        here, before = get_ident(), self.live_bytes
        gc.collect()
        if self.late_frees is not None:
            with self._writing():
                self.late_frees()
        self._collected[here] = max(0, before - self.live_bytes)
        try:
            return self._search(nbytes, handle, alignment)
        finally:
            del self._collected[here]

    def _find_place(self, bin_: Bin, alignment: int) -> int:
        if self.late_frees is not None:
            self.late_frees()
        if len(self._bins_of) > self._streams_limit:
            self._forget_streams()
        if bin_ and alignment == ALIGNMENT:
            try:
                return bin_.pop()  # freed meanwhile, or requested through a face without a quick path
            except IndexError:
                pass
        self._searches += 1
        if bin_.touched is not self._touched_small:
            self._join_deferred()
        pointer = self._heap.allocate(bin_.size, alignment, bin_.stream)
        if pointer is None and bin_.touched is self._touched_small and self._touched_small:
            # What may spare the heap from growing. One slab more is cheaper still.
            if not self._heap.spare_slab():
                self._empty_bins(self._touched_small)
            pointer = self._heap.allocate(bin_.size, alignment, bin_.stream)
        return self._grow(bin_, alignment) if pointer is None else pointer

    # ------------------------------------------------------------------ growth

    def _grow(self, bin_: Bin, alignment: int) -> int:
        if max(bin_.size, alignment) > self._memory.cap_bytes:
            raise self._out_of_memory(bin_, TOO_LARGE, alignment)
        self._flush_for(bin_)
        pointer = self._take_from_plans(bin_, alignment)
        if pointer is not None:
            return pointer
        self._grows += 1
        try:
            pointer = self._heap.extend(bin_.size, alignment, bin_.stream, self._home_uses())
        except DriverOutOfMemoryError:
            pointer = None  # what is raised from here on is not about this
        if pointer is None:
            pointer = self._extend_under_pressure(bin_, alignment)
        self._peak_live_bytes = max(self._peak_live_bytes, self._heap.live_bytes)
        limit = self.config.memory_pressure_threshold * self._memory.cap_bytes
        if self.on_pressure is not None and self._memory.reserved_bytes > limit:
            self.on_pressure()
        if self.on_growth is not None:
            self.on_growth()
        return pointer

    def _take_from_plans(self, bin_: Bin, alignment: int) -> int | None:
        """Find a place without growing while a plan holds memory: beside its region, or else in that."""
        if not self._steps.held:
            return None
        pointer = self._place_idle(bin_.size, alignment, bin_.stream)
        if pointer is None:
            self._steps.leave(self)
            pointer = self._place_idle(bin_.size, alignment, bin_.stream)
        return pointer

    def _place_idle(self, size: int, alignment: int, stream: int) -> int | None:
        try:
            return self._heap.place_idle(size, alignment, stream, self._home_uses())
        except DriverOutOfMemoryError:
            return None  # even a second mapping takes some

    def _extend_under_pressure(self, bin_: Bin, alignment: int) -> int:
        """Give back what idles and try again, as long as a callback says and shows that it freed some."""
        held: int | None = None
        while True:
            self._steps.leave(self)
            self._touch_every_bin()
            self._flush()
            if bin_.size <= self._obtainable_bytes():
                self._release_idle(_EVERYTHING, wait=True)
            try:
                return self._heap.extend(bin_.size, alignment, bin_.stream, self._home_uses())
            except DriverOutOfMemoryError as error:
                progress = held is None or self._heap.live_bytes < held
                held = self._heap.live_bytes
                freed = self._was_freed_meanwhile()
                if not freed and self._garbage_may_help(error.code):
                    raise GarbageMayHelpError from error
                try:
                    again = progress and (freed or self._ask_for_room(bin_.nbytes))
                except Exception as theirs:  # the program's own mistake, which is not to hide the story
                    # A driver's failure says by its chain whether the books are whole.
                    if self._closed or self._torn or theirs.__cause__ or isinstance(theirs, DriverError):
                        raise
                    raise theirs from self._out_of_memory(bin_, error.code)
                if not again:
                    raise self._out_of_memory(bin_, error.code, alignment) from error
                if self._closed:
                    raise self._closed_error() from error

    def _obtainable_bytes(self) -> int:
        """Return what a request could get at most, if every free byte were in the right place."""
        free = min(self.driver.memory_info().free, self._memory.room_bytes)
        return free + self._memory.reserved_bytes - self._heap.live_bytes  # unwanted chunks are reserved, too

    def _was_freed_meanwhile(self) -> bool:
        """Return whether another thread, or a destructor, freed a large block since the last flush."""
        return any(self._deferred.values()) or bool(self._touched)

    def _garbage_may_help(self, code: str) -> bool:
        """Return whether a collection is due: before callbacks are asked, and once a request."""
        return not (
            code == TOO_LARGE
            or get_ident() in self._collected
            or self.beside_capture
            or not collection_allowed()
        )

    def _ask_for_room(self, nbytes: int) -> bool:
        """Return whether a callback freed something. The books are whole here: it may do anything."""
        self._busy = False
        try:
            return any(callback(nbytes) for callback in list(self.out_of_memory_callbacks))
        finally:
            self._busy = True

    def _release_idle(self, limit_bytes: int, *, wait: bool, exact: bool = False) -> None:
        self._heap.release_idle(limit_bytes, self._home_uses(), wait=wait, exact=exact)
        self._memory.release_unwanted()

    # ------------------------------------------------------------------ bins and streams

    def _flush(self) -> None:
        if self.late_frees is not None:
            self.late_frees()
        if self._steps.held:
            self._steps.sweep(self)
        self._join_deferred()
        self._empty_bins(self._touched_small)

    def _flush_for(self, bin_: Bin) -> None:
        """Empty the bins whose blocks could make room for one of `bin_`.

        For a large request those of small ones can only if slabs go back, so they stay as long as slabs
        are a small share of all that is reserved.
        """
        if bin_.touched is self._touched_small or (
            self._heap.small_bytes > SMALL_SHARE * self._memory.reserved_bytes
        ):
            self._flush()
            return
        if self.late_frees is not None:
            self.late_frees()
        self._join_deferred()

    def _join_deferred(self) -> None:
        """Join large blocks that were freed with their neighbors."""
        if self._gauge.live_bytes > self.high_water_bytes:  # noqa: PLR1730 - `max` takes three times as long
            self.high_water_bytes = self._gauge.live_bytes  # it only rises between two of these
        if len(self._bins_of) > 1 and not self._several_streams:
            self._begin_several_streams()
        if self._touched:  # blocks with a bin of their own, which several streams used
            self._empty_bins(self._touched)
        size = self._policy.slab_limit
        if not self._several_streams:
            if self._home_deferred:
                self._heap.free_all((self._home_deferred,), size, None)
            return
        for stream, deferred in list(self._deferred.items()):
            if deferred:
                self._heap.free_all((deferred,), size, self._clock.mark([stream]))
                self._clock.joined(stream)

    def _empty_bins(self, touched: set[Bin]) -> None:
        self._flushes += 1
        groups: list[Bin] = []
        try:
            while touched:
                bin_ = touched.pop()
                groups.append(bin_)
                bin_.quiet = True
            groups = sorted(groups, key=_size_and_stream)  # a set gives them out in another order each time
            # Behind the look at what was touched: a free on a new stream enters the stream before its block.
            if len(self._bins_of) > 1 and not self._several_streams:
                self._begin_several_streams()
            if self._several_streams:
                self._free_by_stream(groups)
            elif groups:
                self._heap.free_all(groups, groups[0].size, None)
        except BaseException:
            touched.update(groups)
            raise

    def _free_by_stream(self, groups: list[Bin]) -> None:
        """End the blocks in `groups`, each with the uses that its bin's streams leave behind."""
        marks: dict[int, Uses] = {}
        for bin_ in groups:
            self._heap.free_all([bin_], bin_.size, self._uses_after(bin_, marks))
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
        used = set(steady(self._live))
        for bins in list(self._bins_of.values()):
            for nbytes, bin_ in list(bins.items()):
                if not bin_ and bin_ not in used:
                    del bins[nbytes]
        self._bins_limit = max(BINS, *(2 * len(bins) for bins in list(self._bins_of.values())))

    def _forget_streams(self) -> None:
        """Take out what is kept of streams that hold nothing: a program may make one for each of its tasks.

        O(live blocks + streams), and at least as many new streams as remain pass before the next time.
        """
        self._empty_bins(self._touched_small)
        live = set(steady(self._live))
        used = {self._home, *(bin_.stream for bin_ in live), *(one for bin_ in live for one in bin_.others)}
        for stream in list(self._bins_of)[:-1]:  # one stays: that there were several is to be seen
            if stream not in used and not any(list(self._bins_of[stream].values())):
                del self._bins_of[stream]
        for stream in [*self._deferred]:
            # A free on its way has the list, or the bin that has it.
            unknown = stream not in self._bins_of and getrefcount(self._deferred[stream]) == _ALONE
            if unknown and not self._deferred[stream]:
                del self._deferred[stream]
        self._clock.forget(kept=self._bins_of.keys() | self._deferred.keys())
        self._streams_limit = max(STREAMS, 2 * len(self._bins_of))

    def _begin_several_streams(self) -> None:
        """From now on gaps carry their uses; those that are there were used on the first stream."""
        uses = self._clock.mark([self._home])
        self._heap.mark(uses)
        self._several_streams = True  # last: a gap without uses could be touched by anyone

    def _home_uses(self) -> Uses:
        """Return what gaps without uses of their own stand for."""
        return None if self._several_streams else self._clock.mark([self._home])

    # ------------------------------------------------------------------ planned steps

    if TYPE_CHECKING:  # `smartpool.pool.telemetry.watched` has them

        def add_observer(self, observer: RequestObserver) -> None:
            """Tell an observer of every request and free."""

        def remove_observer(self, observer: RequestObserver) -> None:
            """Tell it no more."""

        def _out_of_memory(self, bin_: Bin, code: str, alignment: int = ALIGNMENT) -> OutOfMemoryError:
            """Return the error of a request that failed, and tell everybody who asked for it."""

    @property
    def live_table(self) -> LiveTable:
        """The table of live blocks."""
        return self._live

    def bins_of(self, stream: int) -> dict[int, Bin]:
        """Return the table of bins of a stream."""
        return self._bins_of.setdefault(stream, {})

    def bin_of(self, nbytes: int, stream: int) -> Bin:
        """Return the bin of a request size on a stream, whatever stands for it in the table."""
        return self._bin(nbytes, stream)

    def acquire_region(self, size: int, stream: int) -> int | None:
        """Return the address of a block for a plan's region, of what is free; None if that is too little."""
        if stream != self._home and not self._several_streams:
            self._begin_several_streams()
        self._flush()
        return self._place_idle(size, ALIGNMENT, stream)

    def room_bytes(self) -> tuple[int, int]:
        """Return the bytes of the largest region that can be made of what is free, and of the rest."""
        region = self._heap.room_bytes()
        return region, self._heap.extent_bytes - self._heap.live_bytes - region

    def split_region(self, address: int, sizes: Sequence[int]) -> None:
        """Turn the block of a region into several, which end one by one."""
        self._heap.split(address, sizes)

    def release_region(self, region: list[int], size: int, streams: tuple[int, ...]) -> None:
        """Take back what `acquire_region` gave, out of the list `region`; `streams` may still touch it."""
        if len(self._bins_of) > 1 and not self._several_streams:
            self._begin_several_streams()
        uses = self._clock.mark(streams) if self._several_streams else None
        self._heap.free_all([region], size, uses)

    def order_behind(self, streams: tuple[int, ...], stream: int) -> None:
        """Order later work on `stream` behind all work queued so far on `streams`."""
        self._clock.wait(self._clock.stamps(streams), stream)

    # ------------------------------------------------------------------ pooling switched off

    def _allocate_directly(self, bin_: Bin, alignment: int) -> tuple[Bin, int]:
        """Serve a request by a raw segment of its own (`enable_advanced_pooling=False`)."""
        size = bin_.size + alignment - ALIGNMENT
        if len(self._bins_of) > self._streams_limit:
            self._forget_streams()
        self._free_doomed(wait=size > self._memory.room_bytes)
        try:
            try:
                segment = self._memory.allocate_segment(size)
            except DriverOutOfMemoryError:
                self._free_doomed(wait=True)
                segment = self._memory.allocate_segment(size)
        except DriverOutOfMemoryError as error:
            code = TOO_LARGE if size > self._memory.cap_bytes else error.code
            if self._garbage_may_help(code):
                raise GarbageMayHelpError from error
            raise self._out_of_memory(bin_, code, alignment) from error
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

    def _mend(self) -> None:
        self._free_doomed(wait=False)  # one may be gone, and its address is not to be met again
        super()._mend()

    def _free_doomed(self, *, wait: bool) -> None:
        """Give raw segments back that the device has done with. What fails is tried again later."""
        for _ in range(len(self._doomed)):
            segment, uses = self._doomed[0]
            if wait:
                self._clock.synchronize(uses)
            if self._clock.idle(uses):
                self._memory.free_segment(segment)
                self._doomed.popleft()  # last: what was broken off in between is tried again
            else:
                self._doomed.rotate(-1)
