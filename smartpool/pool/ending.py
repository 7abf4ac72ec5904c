"""How a pool ends: closed, dropped, or left to the parent of a forked process.

A closed pool refuses requests and goes on with frees; the last one gives the memory back. That one, and the
end of a pool that nobody holds any more, may come from a destructor, in the middle of anything: it waits
neither for a lock nor for the device, but has a thread do so.
"""

from __future__ import annotations

import threading
import time
import warnings
from functools import partial
from typing import Final
from weakref import ref

from smartpool.errors import DriverError
from smartpool.pool.bins import ClosedTable, DisownedTable, EndedTable
from smartpool.pool.slow_path import SlowPath

__all__ = ["disown", "drop", "refuse_requests", "release_if_over", "warn_of"]

_PATIENCE_S: Final = 5.0  # with a request of another thread that was under way when the pool closed


def refuse_requests(pool: SlowPath) -> None:
    """Serve nothing any more."""
    with pool.section.lock:
        if not pool.closed:
            pool.live.on_empty = partial(_release_after_the_last_free, ref(pool))
            pool.live.__class__ = ClosedTable
            pool.plain = False
            if pool.front is not None:
                pool.front.switch(on=False)
            pool.touch_every_bin()
            for each in pool.attached:
                each.close()
            for bins in list(pool.bins_of.values()):
                bins.clear()
            pool.closed = True  # last: a close that was interrupted begins again


def drop(pool: SlowPath) -> None:
    """End a pool that nobody holds: what is live was requested bare, and its address is of no use.

    Or its buffer ends in one cycle with the pool, and its free comes later, to an ended table.
    """
    with pool.writing():
        _end_all_blocks(pool)
    refuse_requests(pool)
    pool.live.__class__ = EndedTable
    _release(pool, wait=False)


def _end_all_blocks(pool: SlowPath) -> None:
    """End the blocks that are live, and those that a broken-off request lost. In the critical section."""
    pool.live.clear()
    pool.capture = None  # no graph is launched any more
    for each in pool.attached:
        each.close()
    pool.attached.clear()
    pool.flush()
    uses = pool.clock.mark(list(pool.bins_of))
    for block in list(pool.heap.blocks()):
        pool.heap.free_all([[block.start]], block.size, uses)
    raw = pool.memory.apart if pool.pooling else pool.memory.segments()
    going = {segment for segment, _ in pool.pending.frees}
    pool.pending.frees.extend((segment, uses) for segment in raw if segment not in going)


def release_if_over(pool: SlowPath) -> None:
    """Give everything back if the pool is closed and nothing is live."""
    if pool.closed and not pool.live:
        _release(pool)


def _release_after_the_last_free(pool: ref[SlowPath]) -> None:
    ended = pool()
    if ended is None:
        return
    try:
        _release(ended, wait=False)
    except DriverError as error:  # the block is free for all that
        warn_of(ended, error)


def warn_of(pool: SlowPath, error: Exception) -> None:
    """Say, where nothing can be raised, that the memory could not be given back."""
    _warn(pool, f"{error}; close() tries again")


def _warn(pool: SlowPath, reason: str) -> None:
    warnings.warn(f"the pool on {pool.driver.name} keeps its memory: {reason}", ResourceWarning, stacklevel=1)


def _release(pool: SlowPath, *, wait: bool = True) -> None:
    """Give everything back; without `wait`, or in the middle of anything, a thread does it."""
    lock = pool.section.lock
    if lock.acquire(blocking=False):
        try:
            if not pool.section.entered and _release_under_lock(pool, wait=wait):
                return
        finally:
            lock.release()
    try:
        threading.Thread(
            target=_release_when_possible, args=(pool,), name="smartpool-closing", daemon=True
        ).start()
    except RuntimeError as error:  # the interpreter is ending, or there are too many threads
        warn_of(pool, error)


def _release_when_possible(pool: SlowPath) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with pool.section.lock:
                if _release_under_lock(pool):
                    return
        except DriverError as error:
            warn_of(pool, error)
            return
        if time.monotonic() > deadline:
            _warn(pool, "a request was interrupted in the middle, and its block may still be in use")
            return
        time.sleep(0.001)


def _release_under_lock(pool: SlowPath, *, wait: bool = True) -> bool:
    """Give everything back; False when a block is neither live nor free yet.

    Then another thread is between the two steps of its request or free; both are soon over. Without
    `wait`, False as well while the device is at work.
    """
    if pool.released or pool.live or any(each.keeps_open() for each in pool.attached):
        return True  # who keeps it open comes back here
    with pool.writing():
        if not (wait or pool.clock.idle(pool.clock.mark_all(pool.bins_of))):
            return False
        pool.pending.release(pool, wait=True)
        pool.ask_for_way()
        pool.flush()
        if pool.heap.live_bytes or (not pool.pooling and pool.memory.reserved_bytes):
            return False
        pool.driver.synchronize()
        for end in pool.endings:
            end()
        pool.heap.close()
        pool.memory.release_unwanted()
        pool.clock.close()
        pool.driver.close()
        pool.released = True
        return True


def disown(pool: SlowPath) -> None:
    """Leave all memory to the parent, after a fork.

    Requests are refused, frees are accepted and do nothing, and no driver is called any more.
    """
    pool.disowned = pool.closed = pool.released = pool.section.torn = True
    pool.plain = False
    for bins in pool.bins_of.values():
        bins.clear()
    pool.touched.clear()
    pool.touched_small.clear()
    for deferred in pool.deferred.values():
        deferred.clear()
    pool.pending.frees.clear()
    pool.live.__class__ = DisownedTable
