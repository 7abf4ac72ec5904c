"""A pool that can be watched: tracked, recorded, observed, and shown by address.

Who watches decides the class of the table of live blocks (`smartpool.pool.journal`); while nobody
does, it is the plain one, and requests pay nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from smartpool.config import SmartPoolConfig
from smartpool.driver.protocol import Driver
from smartpool.pool.bins import LiveTable, RequestObserver
from smartpool.pool.direct import DirectBin
from smartpool.pool.journal import Journal, JournalTable, ObservedTable, Reader
from smartpool.pool.labels import Label, StackLabels, current_label
from smartpool.pool.memory_map import Layout, MemoryMap, make_map
from smartpool.pool.searching import SearchingPool
from smartpool.pool.statistics import MemorySnapshot
from smartpool.pool.tracking import ENTERED, LEFT, Scope, Tracker

__all__ = ["WatchedPool"]

_NO_LABELS: Final[dict[int, Label]] = {}


class WatchedPool(SearchingPool):
    """What a pool shows of itself. `AdvancedMemoryPoolManager` is the whole."""

    def __init__(self, driver: Driver, config: SmartPoolConfig | None = None) -> None:
        super().__init__(driver, config)
        self._journal = self._live.journal = Journal()
        self._observer: RequestObserver | None = None
        self.tracker: Tracker | None = None

    # ------------------------------------------------------------------ who watches

    def observe(self, observer: RequestObserver | None) -> None:
        """Tell `observer` of every request and free from now on, at once; None ends it."""
        with self._lock:
            others = tuple(one for one in self._journal.observers if one is not self._observer)
            self._observer = observer
            self._journal.observers = others if observer is None else (*others, observer)
            self._choose_table()

    def add_observer(self, observer: RequestObserver) -> None:
        """Tell `observer`, beside others, of every request and free from now on."""
        with self._lock:
            self._journal.observers = (*self._journal.observers, observer)
            self._choose_table()

    def remove_observer(self, observer: RequestObserver) -> None:
        """Tell `observer` no more."""
        with self._lock:
            self._journal.observers = tuple(one for one in self._journal.observers if one is not observer)
            self._choose_table()

    def add_reader(self, reader: Reader) -> None:
        """Hand `reader` every event from now on, in batches."""
        with self._lock:
            self._journal.settle()
            self._journal.readers = (*self._journal.readers, reader)
            self._choose_table()

    def remove_reader(self, reader: Reader) -> None:
        """Hand `reader` what was written until now, and nothing more."""
        with self._lock:
            self._journal.settle()
            self._journal.readers = tuple(one for one in self._journal.readers if one != reader)
            self._choose_table()

    def settle(self) -> None:
        """Hand the readers everything that was written until now."""
        self._journal.settle()

    def start_tracking(self, *, stack_depth: int = 0) -> None:
        """Keep statistics of every request by tier, stream, tag and scope from now on.

        With a `stack_depth`, the Python stack of each request is recorded, up to so many frames.
        What is on already goes on.
        """
        with self._lock:
            if stack_depth:
                self._journal.label = StackLabels(stack_depth).here
            if self.tracker is not None or self._closed:
                return
            tracker = Tracker(self._journal)
            with self._journal.settled():
                self._journal.readers = (*self._journal.readers, tracker.read)
                self._choose_table()
                live = self._live.copy()
                tracker.start(live, self._journal.events.copy())
            self.tracker = tracker

    def enter_scope(self, name: str) -> Scope:
        """Begin a scope of statistics; tracking begins with it if it is not on."""
        self.start_tracking()
        scope = Scope(name)
        self._journal.mark(scope, ENTERED)
        return scope

    def leave_scope(self, scope: Scope) -> None:
        """End a scope."""
        self._journal.mark(scope, LEFT)

    def stop_tracking(self) -> None:
        """Keep statistics no more, and forget them."""
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            self.remove_reader(tracker.read)
            self._journal.label = current_label

    def _snapshot(self) -> MemorySnapshot:
        shown = super()._snapshot()
        return shown if self.tracker is None else replace(shown, tracked=self.tracker.tracked())

    def _choose_table(self) -> None:
        if self._closed:
            return
        if self._journal.observers:
            self._live.__class__ = ObservedTable
        else:
            self._live.__class__ = JournalTable if self._journal.readers else LiveTable

    # ------------------------------------------------------------------ by address

    def memory_map(self) -> MemoryMap:
        """Return what every byte that the pool holds is, by address. O(n log n).

        The pool's lock is held while dictionaries are copied, no longer.
        """
        with self._writing():
            if self.late_frees is not None:
                self.late_frees()
            live = self._live.copy()
            layout = self._heap.layout() if self._pooling else self._direct_layout()
            regions = self._regions()
            reserved, cap = self._memory.reserved_bytes, self._memory.cap_bytes
        facts: dict[str, Any] = {
            "device": self.driver.name,
            "granularity_bytes": self.driver.granularity,
            "reserved_bytes": reserved,
            "cap_bytes": cap,
        }
        return make_map(layout, live, regions=regions, labels=self.labels(), **facts)

    def labels(self) -> dict[int, Label]:
        """Return the labels of the live blocks that have one, by address; none while nobody tracks."""
        return _NO_LABELS if self.tracker is None else self.tracker.labels()

    def _direct_layout(self) -> Layout:
        """Return the raw allocations of a pool without pooling: each is a chunk with one block in it."""
        segments = self._memory.segments()
        shown = {
            bin_.segment: (pointer, 0)
            for pointer, bin_ in self._live.copy().items()
            if isinstance(bin_, DirectBin)
        }
        return Layout(blocks=segments, gaps={}, chunks=segments, shown=shown)
