"""Pooling switched off: every request is a raw allocation of its own, every free a raw free."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from smartpool.errors import REQUEST_TOO_LARGE, DriverError, DriverOutOfMemoryError
from smartpool.heap.arena import ALIGNMENT, Uses
from smartpool.pool.bins import LoneBin
from smartpool.pool.garbage import GarbageMayHelpError
from smartpool.units import align_up

if TYPE_CHECKING:
    from smartpool.pool.bins import Bin
    from smartpool.pool.slow_path import SlowPath

__all__ = ["DirectBin", "PendingFrees", "allocate_directly"]


class PendingFrees:
    """Raw allocations that are free and that the device may still touch."""

    def __init__(self) -> None:
        self.frees: deque[tuple[int, Uses]] = deque()

    def release(self, pool: SlowPath, *, wait: bool) -> None:
        """Give back what the device has done with. What fails is tried again later."""
        frees = self.frees
        for _ in range(len(frees)):
            segment, uses = frees[0]
            if wait:
                pool.clock.synchronize(uses)
            if pool.clock.idle(uses):
                pool.memory.free_segment(segment)
                frees.popleft()  # last: what was broken off in between is tried again
            else:
                frees.rotate(-1)


class DirectBin(LoneBin):
    """The bin of one raw allocation: what is put into it goes straight back to the device.

    Parameters
    ----------
    like
        The bin of such requests.
    segment
        Address of the raw allocation; a block of large alignment begins behind it.
    pool
        Whose it is.
    """

    __slots__ = ("_pool", "segment")

    def __init__(self, like: Bin, segment: int, pool: SlowPath) -> None:
        super().__init__(like)
        self.segment = segment
        self._pool = pool

    def own(self) -> Bin:
        """Return another bin for the block, to be told of further streams."""
        own = DirectBin(self, self.segment, self._pool)
        own.others = self.others
        return own

    def append(self, pointer: int) -> None:  # noqa: ARG002 - a bin's method
        """Free the allocation, once its streams have done with it."""
        pool = self._pool
        # The free may come from a destructor, in the middle of anything, so it waits for nothing.
        pool.pending.frees.append((self.segment, pool.clock.mark((self.stream, *self.others))))
        if pool.section.lock.acquire(blocking=False):
            try:
                if not pool.section.entered:
                    # What fails stays pending: a free does not fail.
                    with suppress(DriverError), pool.writing():
                        pool.pending.release(pool, wait=False)
            finally:
                pool.section.lock.release()


def allocate_directly(pool: SlowPath, bin_: Bin, alignment: int) -> tuple[Bin, int]:
    """Serve a request by a raw allocation of its own; return its bin and its address. Under the lock."""
    size = bin_.size + alignment - ALIGNMENT
    pool.forget_unused_streams()
    pool.pending.release(pool, wait=size > pool.memory.room_bytes)
    try:
        try:
            segment = pool.memory.allocate_segment(size)
        except DriverOutOfMemoryError:
            pool.pending.release(pool, wait=True)
            segment = pool.memory.allocate_segment(size)
    except DriverOutOfMemoryError as error:
        code = REQUEST_TOO_LARGE if size > pool.memory.cap_bytes else error.code
        if pool.garbage_may_help(code):
            raise GarbageMayHelpError from error
        raise pool.out_of_memory(bin_, code, alignment) from error
    return DirectBin(bin_, segment, pool), align_up(segment, alignment)
