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

Stages 1 and the frees are here, the others in `smartpool.pool.slow_path`.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

from smartpool.config import SmartPoolConfig
from smartpool.copying import not_copied
from smartpool.driver.protocol import Driver
from smartpool.errors import CaptureError, SmartPoolError
from smartpool.forks import call_in_children
from smartpool.heap.arena import Range
from smartpool.pool import ending
from smartpool.pool.bins import SHARED_BINS, Bin, LiveTable
from smartpool.pool.slow_path import SlowPath
from smartpool.request import checked_alignment, checked_size
from smartpool.units import format_size

__all__ = ["DevicePool"]


class DevicePool:
    """Memory of one device: requests, frees, and giving memory back. Thread-safe and stream-aware.

    `AdvancedMemoryPoolManager` is one with everything attached.

    Parameters
    ----------
    driver
        The device. The pool closes it when it is closed itself and nothing is live any more.
    config
        How the pool behaves.

    Attributes
    ----------
    slow_path
        The pool's state, for what attaches to it.
    """

    def __init__(self, driver: Driver, config: SmartPoolConfig | None = None) -> None:
        self.slow_path = slow_path = SlowPath(driver, config)
        self.driver, self.config = driver, slow_path.config
        self._bins, self._bins_of, self._live = slow_path.bins, slow_path.bins_of, slow_path.live
        if self.config.sleep_tags:  # every request is to be looked at: tables that stay empty
            self._bins, self._bins_of = {}, {}
        self._search, self._refill = slow_path.search, slow_path.refill
        call_in_children(self, operator.methodcaller("disown"))

    __reduce_ex__ = not_copied

    def __repr__(self) -> str:
        kind = type(self).__name__
        pool = self.slow_path
        if pool.disowned:
            return f"<{kind} on {self.driver.name}: the parent process's, not this one's>"
        state = "closed, " if pool.closed else ""
        return (
            f"<{kind} on {self.driver.name}: {state}{len(self._live)} live blocks, "
            f"{format_size(pool.memory.reserved_bytes)} reserved>"
        )

    def __enter__(self) -> Self:
        if self.slow_path.closed:
            raise self.slow_path.closed_error()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if finalizing() or "_refill" not in self.__dict__ or self.slow_path.released:  # or not made in full
            return
        try:
            ending.drop(self.slow_path)
        except SmartPoolError as error:
            ending.warn_of(self.slow_path, error)

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
            raise self.bad_pointer(pointer) from None
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
        with self.slow_path.section.lock:
            bin_ = self.slow_path.live_bin(pointer)
            if handle == bin_.stream or handle in bin_.others:
                return
            self.slow_path.bins_of.setdefault(handle, {})
            if bin_.used_elsewhere(pointer, handle):
                return
            own = bin_.own()
            own.others = (*bin_.others, handle)
            try:
                # A free takes no lock: it comes before this line or behind it, as nothing in it runs Python
                # or ends a call before the last. Not a request: observers are not told.
                if self._live[pointer] is bin_: dict.__setitem__(self._live, pointer, own)  # fmt: skip # noqa: E701
            except KeyError:
                raise self.bad_pointer(pointer) from None

    def stream_of(self, pointer: int) -> int:
        """Return the stream that the live block at `pointer` was requested for."""
        return self.slow_path.live_bin(pointer).stream

    def require_awake(self, pointer: int) -> None:
        """Raise `AsleepError` when the memory at `pointer` sleeps."""
        if self.slow_path.apart is not None:
            self.slow_path.apart.require_awake(pointer)

    def order_after(self, pointer: int, stream: int) -> None:
        """Let `stream` use the live block behind all work queued so far on the block's own stream."""
        own, stream = self.stream_of(pointer), self.driver.stream(stream)
        if own == stream:
            return
        if self.slow_path.capture is not None:
            # Order within the captured streams is the program's; across the border there is none.
            if self.driver.is_capturing(own):
                raise exported_beside_capture(own, stream)
            with self.driver.beside_capture():
                self._order(pointer, own, stream)
        else:
            self._order(pointer, own, stream)

    def _order(self, pointer: int, own: int, stream: int) -> None:
        if self.driver.is_capturing(stream):
            raise exported_beside_capture(own, stream)
        with self.working():
            clock = self.slow_path.clock
            clock.wait(clock.stamp(own), stream)
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
        elsewhere = False
        try:
            address = operator.index(pointer)  # what goes into a bin must be a plain integer
            if handle is not None:
                bin_ = self._live[address]
                self.slow_path.bins_of.setdefault(handle, {})  # before the block: see `_empty_bins`
                # A planned step learns of it before the block is free.
                elsewhere = bin_.stream != handle and not bin_.used_elsewhere(address, handle)
            bin_ = self._live.pop(address)
        except (KeyError, TypeError):
            raise self.bad_pointer(pointer) from None
        if elsewhere and handle is not None:
            bin_ = bin_.home
            if bin_.others or bin_.__class__ not in SHARED_BINS:
                bin_.others = tuple({*bin_.others, handle} - {bin_.stream})  # ours alone since it was popped
            else:
                bin_ = self.slow_path.bin_of(bin_.nbytes, handle)
        bin_.put(address)

    def disown(self) -> None:
        """Leave all memory to the parent: called in the child after a fork, where the pool is of no use."""
        ending.disown(self.slow_path)

    # ------------------------------------------------------------------ questions

    @property
    def disowned(self) -> bool:
        """Whether this is a forked child, and the pool the parent's."""
        return self.slow_path.disowned

    @property
    def closed(self) -> bool:
        """Whether requests are refused."""
        return self.slow_path.closed

    @property
    def capturing(self) -> bool:
        """Whether a stream is being captured into a graph: then nothing is given back, and nothing waits."""
        return self.slow_path.capture is not None

    @property
    def reserved_bytes(self) -> int:
        """Physical bytes that the pool holds."""
        return self.slow_path.memory.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that `reserved_bytes` ever was."""
        return self.slow_path.memory.peak_reserved_bytes

    @property
    def available_bytes(self) -> int:
        """What a request could get at most: free on the device, and idle in the pool, under the cap."""
        pool = self.slow_path
        if pool.disowned:
            raise pool.closed_error()
        with self.working():
            idle = pool.memory.reserved_bytes - pool.live_bytes
            return min(self.driver.memory_info().free, pool.memory.room_bytes) + idle

    def owns(self, pointer: int) -> bool:
        """Return whether `pointer` is a live block of this pool. O(1)."""
        try:
            return pointer in self._live
        except TypeError:  # nothing that can be looked up is none
            return False

    @property
    def live_bytes(self) -> int:
        """Bytes in live blocks, as requested. O(live blocks)."""
        return self.slow_path.live_bytes

    def bad_pointer(self, pointer: object) -> SmartPoolError:
        """Return the error of an address that is no live block's: freed already, or never ours."""
        return self.slow_path.bad_pointer(pointer)

    def live_blocks(self) -> dict[int, int]:
        """Return address to requested bytes, for every live block. O(live blocks)."""
        return {pointer: bin_.nbytes for pointer, bin_ in self._live.copy().items()}

    def memory(self) -> list[Range]:
        """Return where the pool's physical memory is, each piece of it once, by address."""
        with self.working():
            return sorted(self.slow_path.heap.memory())

    def pieces_of(self, pointer: int) -> tuple[Range, ...]:
        """Return the memory under a block: several ranges for one that is stitched together."""
        try:
            address = operator.index(pointer)
        except TypeError:
            raise self.bad_pointer(pointer) from None
        with self.working():
            return self.slow_path.heap.pieces(address)

    def check(self) -> None:
        """Prove the invariants; `InvariantError` when one is broken. Other threads must be still."""
        with self.working():
            self.slow_path.check()

    def working(self) -> AbstractContextManager[None]:
        """Hold the lock for a call of the driver, so that nothing on this thread makes another meanwhile.

        A request that a destructor or a signal handler makes there is refused.
        """
        return self.slow_path.writing()

    @property
    def quick_path(self) -> tuple[dict[int, Bin], LiveTable]:
        """The bins of the default stream and the live table, for faces that write `malloc` out."""
        return self._bins, self._live

    # ------------------------------------------------------------------ giving memory back

    def flush(self) -> None:
        """Join what was freed with its neighbors in the arenas: large blocks, and all that is in bins.

        O(k (n / 128 + 128)) for k freed blocks beside n gaps. Requests and frees of other threads go on
        meanwhile.
        """
        with self.working():
            if not self.slow_path.released:
                self.slow_path.flush()

    def trim(self, keep_bytes: int = 0, *, wait: bool = False) -> int:
        """Give idle memory back to the device until at most `keep_bytes` are reserved.

        Returns the bytes given back; nothing goes beside a capture. Without `wait`, memory that the device
        may still touch is left for the next time. `InvalidSizeError` when `keep_bytes` is no size.
        """
        keep_bytes = checked_size(keep_bytes)
        pool = self.slow_path
        if pool.capture is not None:
            return 0
        before = pool.memory.reserved_bytes
        with self.working():
            if pool.released:
                return 0
            pool.pending.release(pool, wait=wait)
            pool.ask_for_way()
            pool.touch_every_bin()
            pool.flush()
            pool.release_idle(max(0, pool.memory.reserved_bytes - keep_bytes), wait=wait)
            return before - pool.memory.reserved_bytes

    def close(self) -> None:
        """Refuse requests from now on, and give the memory back once nothing is live. Idempotent.

        Waits for the device. Blocks that are live stay valid; the last `free` gives everything back, when
        the device is done with it. When a driver call fails on the way, what was not given back yet stays
        on the books, and `close` can be repeated.
        """
        ending.refuse_requests(self.slow_path)
        ending.release_if_over(self.slow_path)


def exported_beside_capture(own: int, stream: int) -> CaptureError:
    """Return the error of an export from one stream to another of which one is being captured."""
    return CaptureError(
        f"expected an export on the stream of the buffer, {own}, beside a capture, got {stream}: "
        "a graph cannot wait for work outside of it; export before the capture, or with stream=-1"
    )
