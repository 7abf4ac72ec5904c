"""Watching: what was requested and freed, in order, while somebody wants to know.

A `Watch` is an observer of the table of live blocks (`smartpool.pool.bins`): it costs nothing until
it is put on, 0.5 us a request and free while it is, and it ends by itself when its log is full.
Whoever reads the log turns it into sequences, one a stream, on a thread of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Final

from smartpool.pool.steps.plans import OUTLIVED, Sequence

__all__ = ["LogEntry", "Watch", "busiest_thread", "sequences"]

_REACH: Final = 1 << 13  # a step may end with thousands of frees

LogEntry = int | tuple[int, int, int, int]
"""A free: the address. A request: address, bytes, stream, thread. Tuples, for the price of each."""


class Watch:
    """Writes down requests and frees until there are `limit`. Any thread may be watched.

    Parameters
    ----------
    limit
        Requests and frees after which it has seen enough.
    enough
        Called with the watch when it has; called again at every request until the watch is ended.
    late_frees
        The pool's: gives back what was put aside, so that it is seen before the next request.

    Attributes
    ----------
    log
        What happened so far.
    """

    def __init__(
        self, limit: int, enough: Callable[[Watch], None], late_frees: Callable[[], None] | None = None
    ) -> None:
        self.log: list[LogEntry] = []
        self._limit = limit
        self._enough = enough
        self._late_frees = late_frees

    def allocated(self, pointer: int, nbytes: int, stream: int) -> None:
        """Note a request."""
        if self._late_frees is not None:
            self._late_frees()
        log = self.log
        if len(log) < self._limit:
            log.append((pointer, nbytes, stream, get_ident()))
        else:
            self._enough(self)

    def freed(self, pointer: int, stream: int) -> None:  # noqa: ARG002 - an observer's method
        """Note a free."""
        if len(self.log) < 2 * self._limit:
            self.log.append(pointer)

    @property
    def full(self) -> bool:
        """Whether it has seen enough."""
        return len(self.log) >= self._limit

    def latest(self, stream: int, count: int, *, thread: int | None = None) -> list[int]:
        """Return the sizes of the last `count` requests on a stream, of a thread, as far as seen lately."""
        found: list[int] = []
        for entry in reversed(self.log[-_REACH:]):
            if isinstance(entry, int) or entry[2] != stream or thread not in {None, entry[3]}:
                continue
            found.append(entry[1])
            if len(found) == count:
                break
        return found[::-1]


def sequences(log: Iterable[LogEntry], *, thread: int | None = None) -> dict[int, Sequence]:
    """Return the requests in a log by stream; with `thread`, those of that thread alone.

    Examples
    --------
    >>> log = [(512, 100, 0, 1), (1024, 70, 0, 1), 512, (512, 100, 0, 1)]
    >>> sequences(log)[0]
    Sequence(nbytes=(100, 70, 100), freed_before=(2, -1, -1), shared=False)
    """
    nbytes: dict[int, list[int]] = {}
    freed: dict[int, list[int]] = {}
    threads: dict[int, set[int]] = {}
    live: dict[int, tuple[int, int]] = {}
    for entry in log:
        if isinstance(entry, int):
            found = live.pop(entry, None)
            if found is not None:
                stream, number = found
                freed[stream][number] = len(nbytes[stream])
            continue
        pointer, size, stream, ident = entry
        if thread is not None and ident != thread:
            continue
        sizes = nbytes.setdefault(stream, [])
        live[pointer] = (stream, len(sizes))
        sizes.append(size)
        freed.setdefault(stream, []).append(OUTLIVED)
        threads.setdefault(stream, set()).add(ident)
    return {
        stream: Sequence(tuple(sizes), tuple(freed[stream]), len(threads[stream]) > 1)
        for stream, sizes in nbytes.items()
    }


def busiest_thread(log: Iterable[LogEntry]) -> int:
    """Return the thread that made most of the requests."""
    counts = Counter(entry[3] for entry in log if not isinstance(entry, int))
    return counts.most_common(1)[0][0]
