"""The pool of one device: the quick path over bins, the searching path over arenas.

A request goes through up to four stages, each dearer than the one before:

1. *Reuse.* A small request (below 64 KiB) takes a freed block of its own size and stream from a bin: one
   dictionary look-up, one pop, one store. A large one takes the block that was placed last, if that has
   come back alone since. No lock (see `smartpool.pool.bins`).
2. *Gap.* Under the lock, a large request first joins the large blocks that were freed since the last one
   with their neighbors, and then takes the first gap that fits, by address. A small one looks into the
   slabs; when nothing fits there, a slab is added, or the bins of small requests are emptied.
3. *Grow.* The heap maps new chunks, takes a window that it kept, or stitches free memory into a new one.
4. *Last resort.* What idles is given back, the host waits for the device where it must, callbacks are
   asked, and stage 3 is tried again.

A free goes to the bin of the block's own request size, or onto its stream's list of deferred frees,
without a lock, so it may run anywhere: in a destructor that the collector calls in the middle of
stage 3, on any thread.

The books themselves are `smartpool.pool.books`; all but the quick path is `smartpool.pool.searching`.
"""

from __future__ import annotations

import operator
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Final, Self
from weakref import WeakMethod

from smartpool.copying import not_copied
from smartpool.errors import CaptureError, DriverError, SmartPoolError
from smartpool.pool.bins import SHARED_BINS, Bin, ClosedTable, EndedTable, LiveTable
from smartpool.pool.steps.faces import StepBin
from smartpool.pool.upkeep.upkeep import UpkeepPool
from smartpool.request import checked_alignment, checked_size
from smartpool.units import format_size

__all__ = ["AdvancedMemoryPoolManager", "exported_beside_capture"]

_PATIENCE_S: Final = 5.0  # with a request of another thread that was under way when the pool closed


class AdvancedMemoryPoolManager(UpkeepPool):
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

    __reduce_ex__ = not_copied

    def __repr__(self) -> str:
        if self._disowned:
            return f"<AdvancedMemoryPoolManager on {self.driver.name}: the parent process's, not this one's>"
        state = "closed, " if self._closed else ""
        return (
            f"<AdvancedMemoryPoolManager on {self.driver.name}: {state}{len(self._live)} live blocks, "
            f"{format_size(self._memory.reserved_bytes)} reserved>"
        )

    def __enter__(self) -> Self:
        if self._closed:
            raise self._closed_error()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Every buffer holds its manager: what is live still was requested bare, and its address is of no use,
        # or its buffer ends in one cycle with the pool, and its free comes later, to an ended table.
        if finalizing() or getattr(self, "_released", True):  # or it was never made in full
            return
        try:
            self.__class__ = AdvancedMemoryPoolManager  # no graph is launched any more, either
            with self._writing():
                self._end_all_blocks()
            self._refuse_requests()
            self._live.__class__ = EndedTable
            self._release_everything(wait=False)
        except SmartPoolError as error:
            self._warn_of(error)

    # ------------------------------------------------------------------ requests

    def malloc(self, nbytes: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes, aligned to 512, for use on `stream`.

        O(1) for a small size that was freed before; else O(gaps / 128 + 128), and what growing costs.

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
            if bin_ := self._bins.get(nbytes):
                try:
                    pointer = bin_.pop()
                except IndexError:
                    pass  # another thread took it; what is raised from here on is not about this
                else:
                    try:
                        self._live[pointer] = bin_
                    except BaseException:  # as `enter`
                        dict.pop(self._live, pointer, None)
                        bin_.append(pointer)
                        if bin_.quiet:
                            bin_.quiet = False
                            bin_.touched.add(bin_)
                        raise
                    return pointer
            return self._search(nbytes, None) if bin_ is None else self._refill(bin_)
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

    drop = free
    """As `free`, for destructors: a pool in debug mode does nothing there that calls the driver."""

    def malloc_aligned(self, nbytes: int, alignment: int, stream: object = None) -> int:
        """Return the address of `nbytes` bytes aligned to `alignment`, a power of two. O(gaps).

        Raises `InvalidRequestError` when it is none; else as `malloc`.
        """
        return self._search(nbytes, stream, checked_alignment(alignment))

    def record_stream(self, pointer: int, stream: object) -> None:
        """Say that `stream` uses the live block too: once freed, it is reused only behind that work.

        Raises `UnknownPointerError` or `DoubleFreeError` when the block is not live.
        """
        handle = self.driver.stream(stream)
        with self._lock:
            bin_ = self._live_bin(pointer)
            if handle == bin_.stream or handle in bin_.others:
                return
            self._bins_of.setdefault(handle, {})
            if bin_.__class__ is StepBin:
                bin_.step.use_elsewhere(pointer, handle)
                return
            own = bin_.own()
            own.others = (*bin_.others, handle)
            try:
                # A free takes no lock: it comes before this line or behind it, as nothing in it runs Python
                # or ends a call before the last. Not a request: observers are not told.
                if self._live[pointer] is bin_: dict.__setitem__(self._live, pointer, own)  # fmt: skip # noqa: E701
            except KeyError:
                raise self._bad_pointer(pointer) from None

    def stream_of(self, pointer: int) -> int:
        """Return the stream that the live block at `pointer` was requested for."""
        return self._live_bin(pointer).stream

    def order_after(self, pointer: int, stream: int) -> None:
        """Let `stream` use the live block behind all work queued so far on the block's own stream."""
        own, stream = self.stream_of(pointer), self.driver.stream(stream)
        if own == stream:
            return
        if self.driver.is_capturing(stream):
            raise exported_beside_capture(own, stream)
        with self._writing():
            self._clock.wait(self._clock.stamp(own), stream)
            self.record_stream(pointer, stream)

    def _malloc_on(self, nbytes: int, stream: object) -> int:
        if nbytes.__class__ is int and stream.__class__ is int:
            try:
                bin_ = self._bins_of[stream][nbytes]
                pointer = bin_.pop()
            except (KeyError, IndexError):
                pass
            else:
                try:
                    self._live[pointer] = bin_
                except BaseException:  # as `enter`
                    dict.pop(self._live, pointer, None)
                    bin_.append(pointer)
                    if bin_.quiet:
                        bin_.quiet = False
                        bin_.touched.add(bin_)
                    raise
                return pointer
        return self._search(nbytes, stream)

    def _free_on(self, pointer: int, stream: object) -> None:
        handle = None if stream is None else self.driver.stream(stream)
        try:
            address = operator.index(pointer)  # what goes into a bin must be a plain integer
            if handle is not None:
                bin_ = self._live[address]
                self._bins_of.setdefault(handle, {})  # before the block: see `_empty_bins`
                if bin_.__class__ is StepBin and bin_.stream != handle:
                    bin_.step.use_elsewhere(address, handle)  # before it is free
            bin_ = self._live.pop(address)
        except (KeyError, TypeError):
            raise self._bad_pointer(pointer) from None
        if handle is not None and bin_.stream != handle and bin_.__class__ is not StepBin:
            bin_ = bin_.home
            if bin_.others or bin_.__class__ not in SHARED_BINS:
                bin_.others = tuple({*bin_.others, handle} - {bin_.stream})  # ours alone since it was popped
            else:
                bin_ = self._bin(bin_.nbytes, handle)
        bin_.put(address)

    # ------------------------------------------------------------------ planned steps

    def begin_step(self, name: str, *, wait_for_plan: bool = False) -> None:
        """Begin one repetition of the step `name` on this thread; see `SmartPool.step`."""
        if wait_for_plan:
            self._steps.wait_for_plan(name)
        with self._writing():
            if self._closed:
                raise self._closed_error()
            self._steps.begin(name, self)

    def end_step(self) -> None:
        """End the repetition that is under way on this thread."""
        with self._lock:
            planning = self._steps.end(self)
            if not (self._busy or self._torn):  # else the next request does it: an end does not fail
                with self._writing():
                    self._steps.sweep(self)
        if planning is not None:
            planning.run()

    # ------------------------------------------------------------------ giving memory back

    def flush(self) -> None:
        """Join what was freed with its neighbors in the arenas: large blocks, and all that is in bins.

        O(k (n / 128 + 128)) for k freed blocks beside n gaps. Requests and frees of other threads go on
        meanwhile.
        """
        with self._writing():
            if not self._released:
                self._flush()

    def trim(self, keep_bytes: int = 0, *, wait: bool = False, captures: bool = False) -> int:
        """Give idle memory back to the device until at most `keep_bytes` are reserved.

        Returns the bytes given back. Without `wait`, memory that the device may still touch is
        left for the next time. With `captures`, what is held for graphs that were captured outside of
        `SmartPool.capture` goes, too: they must not be launched any more. `InvalidSizeError` when
        `keep_bytes` is no size.
        """
        keep_bytes = checked_size(keep_bytes)
        before = self._memory.reserved_bytes
        if captures:
            self.close_found()
        with self._writing():
            if self._released:
                return 0
            self._free_doomed(wait=wait)
            self._steps.leave(self)
            self._touch_every_bin()
            self._flush()
            self._release_idle(max(0, self._memory.reserved_bytes - keep_bytes), wait=wait)
            return before - self._memory.reserved_bytes

    def close_found(self) -> None:
        """Take back what graphs hold whose captures were not announced: nothing, where there are none."""

    def close(self) -> None:
        """Refuse requests from now on, and give the memory back once nothing is live. Idempotent.

        Waits for the device. Blocks that are live stay valid; the last `free` gives everything back, when
        the device is done with it. When a driver call fails on the way, what was not given back yet stays
        on the books, and `close` can be repeated.
        """
        self._refuse_requests()
        if not self._live:
            self._release_everything()

    def _refuse_requests(self) -> None:
        with self._lock:
            if not self._closed:
                self._live.on_empty = WeakMethod(self._release_after_the_last_free)
                self._live.__class__ = ClosedTable
                self._touch_every_bin()
                self._steps.close()
                for bins in list(self._bins_of.values()):
                    bins.clear()
                self._closed = True  # last: a close that was interrupted begins again

    def _end_all_blocks(self) -> None:
        """End the blocks that are live, and those that a broken-off request lost. Under the lock."""
        self._live.clear()
        self._steps.close()
        self._steps.held.clear()
        self._flush()
        uses = self._clock.mark(list(self._bins_of))
        for block in list(self._heap.blocks()):
            self._heap.free_all([[block.start]], block.size, uses)
        raw = self._memory.apart if self._pooling else self._memory.segments()
        going = {segment for segment, _ in self._doomed}
        self._doomed.extend((segment, uses) for segment in raw if segment not in going)

    def _release_after_the_last_free(self) -> None:
        try:
            self._release_everything(wait=False)
        except DriverError as error:  # the block is free for all that
            self._warn_of(error)

    def _warn_of(self, error: Exception) -> None:
        """Say, where nothing can be raised, that the memory could not be given back."""
        warnings.warn(
            f"{self!r} keeps its memory: {error}; close() tries again", ResourceWarning, stacklevel=1
        )

    def _release_everything(self, *, wait: bool = True) -> None:
        # The last free of a closed pool may come from a destructor, in the middle of anything, so it must
        # wait neither for a lock nor for the device, as the end of a pool must not: a thread does that.
        if self._lock.acquire(blocking=False):
            try:
                if not self._busy and self._release_under_lock(wait=wait):
                    return
            finally:
                self._lock.release()
        try:
            threading.Thread(
                target=self._release_when_possible, name="smartpool-closing", daemon=True
            ).start()
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            self._warn_of(error)

    def _release_when_possible(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with self._lock:
                    if self._release_under_lock():
                        return
            except DriverError as error:
                self._warn_of(error)
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

    def _release_under_lock(self, *, wait: bool = True) -> bool:
        """Give everything back; False when a block is neither live nor free yet.

        Then another thread is between the two steps of its request or free; both are soon over. Without
        `wait`, False as well while the device is at work.
        """
        if self._released or self._live:
            return True
        with self._writing():
            if not (wait or self._clock.idle(self._clock.mark_all(self._bins_of))):
                return False
            self._free_doomed(wait=True)
            self._steps.leave(self)
            self._flush()
            if self._heap.live_bytes or (not self._pooling and self._memory.reserved_bytes):
                return False
            self.driver.synchronize()
            self._heap.close()
            self._memory.release_unwanted()
            self._clock.close()
            self.driver.close()
            self._released = True
            return True

    # ------------------------------------------------------------------ the quick path

    @property
    def quick_path(self) -> tuple[dict[int, Bin], LiveTable]:
        """The bins of the default stream and the live table, for faces that write `malloc` out."""
        return self._bins, self._live


def exported_beside_capture(own: int, stream: int) -> CaptureError:
    """Return the error of an export from one stream to another of which one is being captured."""
    return CaptureError(
        f"expected an export on the stream of the buffer, {own}, beside a capture, got {stream}: "
        "a graph cannot wait for work outside of it; export before the capture, or with stream=-1"
    )
