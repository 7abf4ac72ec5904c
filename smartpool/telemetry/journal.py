"""The journal: every request and free, written down at the least cost and read in batches.

Problem: exact peaks by device, tier, stream, tag and scope need every event, in order, and a request
has 0.3 us for it. Counters that a request updates itself cost 0.1 us for each of a dozen figures, and
a lock around them; and a free that a destructor makes in the middle of that would wait for itself.
Method: a request appends four references to one list (block, bin, label, clock), which is one atomic
step. Every `BATCH` events, and when somebody asks, the *readers* are handed what has come together:
statistics in vectorized passes (`smartpool.telemetry.tracking`), a recording by keeping it.
Bound: the list never holds more than a batch and what threads add meanwhile.
Locks: who reads holds the journal, and a destructor may run then that waits for the pool. So nobody who holds
the pool may wait for the journal without end: requests read it when nobody else does, and who asks under the
pool's lock goes without what is being read.

The tables of live blocks that write it are here too. Which class a table has says who watches; see
`smartpool.pool.bins` for why that costs nothing while nobody does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any, Final

from smartpool.forks import held_if_free, renewed
from smartpool.log import LOGGER
from smartpool.pool.bins import Bin, LiveTable, RequestObserver
from smartpool.telemetry.hooks import RequestHooks
from smartpool.telemetry.labels import Label, current_label

__all__ = ["BATCH", "FIELDS", "FOR_EVER", "FREED", "Journal", "JournalTable", "ObservedTable", "Reader"]

BATCH: Final = 4096
"""Events that are read at once: some 2 ms of work for whoever makes the last of them."""

FIELDS: Final = 4
"""Of an event: the block's address, its bin, its label or `FREED`, and nanoseconds."""

FREED: Final = Label("freed")
"""In place of a label: the event is a free."""

FOR_EVER: Final = -1.0
"""A patience; see `Journal.settled`."""

Reader = Callable[[list[Any]], None]
"""Takes a batch: `FIELDS` entries an event, one event behind the other."""

_set = dict.__setitem__
_pop = dict.pop


class Journal:
    """Events that were not read yet, and who is told of them.

    Attributes
    ----------
    events
        The list that requests append to. It is never replaced.
    label
        Called for the label of each request.
    readers
        Handed each batch, in order.
    observers, hooks
        Told of each event at once; hooks learn the block's bin.
    full_at
        Entries of `events` beyond which a request has it read.
    """

    __slots__ = (
        "__weakref__", "_lock", "_reading", "events", "full_at", "hooks", "label", "observers", "readers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.label: Callable[[], Label] = current_label
        self.readers: tuple[Reader, ...] = ()
        self.observers: tuple[RequestObserver, ...] = ()
        self.hooks: tuple[RequestHooks, ...] = ()
        self.full_at = BATCH * FIELDS
        self._lock = renewed(self, "_lock", threading.RLock)
        self._reading = renewed(self, "_reading", bool)

    def __repr__(self) -> str:
        return f"<Journal: {len(self.events) // FIELDS} events for {len(self.readers)} readers>"

    @contextmanager
    def settled(self, patience_s: float = FOR_EVER) -> Iterator[bool]:
        """Have everything read that was written until now, and nothing else while the block runs.

        A request that a destructor makes in the middle of it is written down and read later. What a reader
        raises is logged and not passed on: the caller may be in the middle of a request, or of a free, that
        has nothing to do with it.

        Parameters
        ----------
        patience_s
            How long to wait for another thread that reads. When that was not enough nothing is read, and the
            block is given False.
        """
        with held_if_free(self._lock, patience_s) as mine:
            if mine and not self._reading:
                self._read()
            yield mine

    def _read(self) -> None:
        self._reading = True
        try:
            batch = self.events.copy()
            del self.events[: len(batch)]
            for reader in self.readers if batch else ():
                try:
                    reader(batch)
                except Exception:  # noqa: BLE001 - logged, with its traceback
                    LOGGER.exception("a reader of the journal failed; its figures are wrong from now on")
        finally:
            self._reading = False

    def settle_soon(self) -> None:
        """Have everything read now, or by the thread that is reading already, or by the next request."""
        with self.settled(0):
            pass

    def mark(self, thing: object, label: Label) -> None:
        """Write an event that is neither a request nor a free: `thing` in place of a bin."""
        self.events.extend((-1, thing, label, perf_counter_ns()))


class JournalTable(LiveTable):
    """A live table that writes the journal."""

    __slots__ = ()

    def __setitem__(self, pointer: int, bin_: Bin) -> None:
        journal = self.journal
        label = journal.label()
        _set(self, pointer, bin_)
        events = journal.events
        try:
            events.extend((pointer, bin_, label, perf_counter_ns()))
            if len(events) > journal.full_at:
                journal.settle_soon()
        except BaseException:  # an interrupt: the caller takes the block back
            events.extend((pointer, bin_, FREED, perf_counter_ns()))
            raise

    def pop(self, pointer: int) -> Bin:  # type: ignore[override]  # a default would cost 0.03 us
        """Take a block out and write it down; `KeyError` when there is none."""
        bin_ = _pop(self, pointer)
        self.journal.events.extend((pointer, bin_, FREED, perf_counter_ns()))
        return bin_.closing(self) if self.closed else bin_  # it may have become another kind of table


class ObservedTable(LiveTable):
    """A live table that writes the journal and tells observers of each event at once."""

    __slots__ = ()

    def __setitem__(self, pointer: int, bin_: Bin) -> None:
        journal = self.journal
        label, readers = journal.label(), journal.readers
        _set(self, pointer, bin_)
        try:
            if readers:
                journal.events.extend((pointer, bin_, label, perf_counter_ns()))
                if len(journal.events) > journal.full_at:
                    journal.settle_soon()
            for observer in journal.observers:
                observer.allocated(pointer, bin_.nbytes, bin_.stream)
            for hooks in journal.hooks:
                hooks.allocated(pointer, bin_)
        except BaseException:  # the caller takes the block back
            if readers:
                journal.events.extend((pointer, bin_, FREED, perf_counter_ns()))
            raise

    def pop(self, pointer: int) -> Bin:  # type: ignore[override]
        """Take a block out, write it down, and tell the observers; `KeyError` when there is none."""
        bin_ = _pop(self, pointer)
        journal = self.journal
        try:
            if journal.readers:
                journal.events.extend((pointer, bin_, FREED, perf_counter_ns()))
            for observer in journal.observers:
                observer.freed(pointer, bin_.stream)
            for hooks in journal.hooks:
                hooks.freed(pointer, bin_)
        except BaseException:  # it is free for all that
            bin_.append(pointer)
            if bin_.quiet:
                bin_.quiet = False
                bin_.touched.add(bin_)
            raise
        return bin_.closing(self) if self.closed else bin_
