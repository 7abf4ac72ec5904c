"""What a pool shows of itself: tracked, recorded, hooked, by address, and why a request failed.

Who watches decides the class of the table of live blocks (`smartpool.telemetry.journal`); while nobody
does, it is the plain one, and requests pay nothing.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

from smartpool.config import POLICIES
from smartpool.errors import REQUEST_TOO_LARGE, OutOfMemoryError, RequestTooLargeError
from smartpool.files import explain
from smartpool.heap.arena import ALIGNMENT
from smartpool.heap.protocol import Layout
from smartpool.log import LOGGER
from smartpool.pool.bins import Bin, LiveTable, RequestObserver
from smartpool.pool.direct import DirectBin
from smartpool.pool.slow_path import SlowPath
from smartpool.telemetry.hooks import Hooks, RequestHooks, notify_map
from smartpool.telemetry.journal import FOR_EVER, Journal, JournalTable, ObservedTable, Reader
from smartpool.telemetry.labels import Label, StackLabels, current_label
from smartpool.telemetry.memory_map import MemoryMap, make_map
from smartpool.telemetry.out_of_memory import DUMP_VARIABLE, holders, make_report, write_dump
from smartpool.telemetry.statistics import MemorySnapshot, take_snapshot
from smartpool.telemetry.tracked import Tracked
from smartpool.telemetry.tracking import ENTERED, LEFT, Scope, Tracker

if TYPE_CHECKING:
    from smartpool.steps.stepping import Steps

__all__ = ["Telemetry"]

_NO_LABELS: Final[dict[int, Label]] = {}
_REPORT_FRAMES: Final = 64
_PATIENCE_S: Final = 0.5  # of who holds the pool's lock, which another thread may be waiting for meanwhile


class Telemetry:
    """Attached to a pool, which asks it for the errors of requests that fail.

    Parameters
    ----------
    pool
        What is watched.
    steps
        Its planned steps, for their counts.

    Attributes
    ----------
    tracker
        Keeps statistics of every request, once `start_tracking` was called.
    """

    def __init__(self, pool: SlowPath, steps: Steps) -> None:
        self._pool = pool
        self._steps = steps
        self._journal = pool.live.journal = Journal()
        self._hooks: list[Hooks] = []
        self._failures = 0  # requests that failed for lack of memory
        self.tracker: Tracker | None = None
        pool.explain = WeakMethod(self._out_of_memory)
        pool.memory.on_change = partial(notify_map, pool.driver.name, self._hooks)
        if pool.config.track or pool.config.stack_depth:
            self.start_tracking(stack_depth=pool.config.stack_depth)

    # ------------------------------------------------------------------ who watches

    def add_observer(self, observer: RequestObserver) -> None:
        """Tell `observer` of every request and free from now on, at once."""
        with self._pool.section.lock:
            self._journal.observers = (*self._journal.observers, observer)
            self._choose_table()

    def remove_observer(self, observer: RequestObserver) -> None:
        """Tell `observer` no more."""
        with self._pool.section.lock:
            self._journal.observers = tuple(one for one in self._journal.observers if one is not observer)
            self._choose_table()

    def add_reader(self, reader: Reader) -> dict[int, Bin]:
        """Hand `reader` every event from now on, in batches; return address to bin of what is live.

        A request of another thread meanwhile may be in both.
        """
        with self._journal.settled(self._patience_s), self._pool.section.lock:
            self._journal.readers = (*self._journal.readers, reader)
            self._choose_table()
            return self._pool.live.copy()

    def remove_reader(self, reader: Reader) -> None:
        """Hand `reader` what was written until now, and nothing more."""
        with self._journal.settled(self._patience_s), self._pool.section.lock:
            self._journal.readers = tuple(one for one in self._journal.readers if one != reader)
            self._choose_table()

    def settle(self) -> None:
        """Hand the readers everything that was written until now."""
        with self._journal.settled(self._patience_s):
            pass

    @property
    def _patience_s(self) -> float:
        """How long this thread may wait for who reads the journal; see there, under locks."""
        owned = self._pool.section.lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 - of CPython's own lock
        return _PATIENCE_S if owned else FOR_EVER

    def use_hooks(self, hooks: Hooks) -> None:
        """Tell `hooks` when memory is mapped, given back or short; of requests once they ask for that."""
        self._hooks.append(hooks)

    def drop_hooks(self, hooks: Hooks) -> None:
        """Tell `hooks` of memory no more."""
        self._hooks.remove(hooks)

    def hook_requests(self, hooks: Hooks) -> None:
        """Tell `hooks` of requests and frees, or no more."""
        with self._pool.section.lock:
            on = bool(hooks.allocate) or bool(hooks.free)  # under the lock: two threads may change them
            others = tuple(one for one in self._journal.hooks if not one.tells(hooks))
            self._journal.hooks = (*others, RequestHooks(self._pool.driver.name, hooks)) if on else others
            self._choose_table()

    def start_tracking(self, *, stack_depth: int = 0) -> None:
        """Keep statistics of every request by tier, stream, tag and scope from now on.

        With a `stack_depth`, the Python stack of each request is recorded, up to so many frames.
        What is on already goes on.
        """
        with self._journal.settled(self._patience_s), self._pool.section.lock:
            if stack_depth:
                self._journal.label = StackLabels(stack_depth).here
            if self.tracker is not None or self._pool.closed:
                return
            tracker = Tracker(self._journal)
            self._journal.readers = (*self._journal.readers, tracker.read)
            self._choose_table()
            live = self._pool.live.copy()
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

    def snapshot(self) -> MemorySnapshot:
        """Return everything that is known about this device's memory now. O(live blocks + gaps)."""
        tracked = self._tracked()  # before the pool's lock is taken: see `Journal`
        with self._pool.writing():
            return self._snapshot(tracked)

    def _tracked(self) -> Tracked | None:
        tracker = self.tracker  # another thread may end it
        return None if tracker is None else tracker.tracked(self._patience_s)

    def _snapshot(self, tracked: Tracked | None) -> MemorySnapshot:
        shown = take_snapshot(self._pool, self._steps.statistics)
        if tracked is not None:
            self._pool.peak_live_bytes = max(shown.peak_live_bytes, tracked.total.peak_bytes)
        return replace(
            shown,
            tracked=tracked,
            peak_live_bytes=self._pool.peak_live_bytes,
            out_of_memory_errors=self._failures,
        )

    def _choose_table(self) -> None:
        if self._pool.closed:
            return
        if self._journal.observers or self._journal.hooks:
            self._pool.live.__class__ = ObservedTable
        else:
            self._pool.live.__class__ = JournalTable if self._journal.readers else LiveTable
        self._pool.look_again()

    # ------------------------------------------------------------------ by address

    def memory_map(self) -> MemoryMap:
        """Return what every byte that the pool holds is, by address. O(n log n).

        The pool's lock is held while dictionaries are copied, no longer.
        """
        with self._pool.writing():
            if self._pool.front is not None:
                self._pool.front.drain(everything=True)
            make = self._map_maker()
        return make(labels=self.labels())

    def _map_maker(self) -> Callable[..., MemoryMap]:
        """Copy what a map is made of, under the lock, and return the function that makes it."""
        return partial(
            make_map,
            self._pool.heap.layout() if self._pool.pooling else self._direct_layout(),
            self._pool.live.copy(),
            regions=self._pool.regions(),
            device=self._pool.driver.name,
            granularity_bytes=self._pool.driver.granularity,
            reserved_bytes=self._pool.memory.reserved_bytes,
            cap_bytes=self._pool.memory.cap_bytes,
        )

    def labels(self) -> dict[int, Label]:
        """Return the labels of the live blocks that have one, by address; none while nobody tracks."""
        tracker = self.tracker
        return _NO_LABELS if tracker is None else tracker.labels(self._patience_s)

    def _direct_layout(self) -> Layout:
        """Return the raw allocations of a pool without pooling: each is a chunk with one block in it."""
        segments = self._pool.memory.segments()
        shown = {
            bin_.segment: (pointer, 0)
            for pointer, bin_ in self._pool.live.copy().items()
            if isinstance(bin_, DirectBin)
        }
        return Layout(blocks=segments, gaps={}, chunks=segments, shown=shown)

    # ------------------------------------------------------------------ out of memory

    def _out_of_memory(self, bin_: Bin, code: str, alignment: int = ALIGNMENT) -> OutOfMemoryError:
        """Return the error of a request that failed, and tell hooks, log and dump file of it."""
        now = self._snapshot(self._tracked())
        live, labels = self._pool.live.copy(), self.labels()
        report = make_report(
            bin_,
            code,
            now,
            holders(live, labels),
            alignment=alignment,
            limited=self._pool.memory.limited,
            collected_bytes=self._pool.collected.get(threading.get_ident()),
            tightest=self._pool.config.policy in ("tight", POLICIES["tight"]),
            tracked=self.tracker is not None,
        )
        failed = (RequestTooLargeError if code == REQUEST_TOO_LARGE else OutOfMemoryError)(report.message())
        failed.report = report
        self._failures += 1
        folder = self._pool.config.out_of_memory_dump or os.environ.get(DUMP_VARIABLE)
        if folder:
            try:
                shown = self._map_maker()(labels=labels)
                stack = StackLabels(_REPORT_FRAMES).here().site
                failed.dump_path = path = str(write_dump(folder, report, now, shown, stack=stack))
                failed.add_note(f"all of it is in {path}; to read it: smartpool report {shlex.quote(path)}")
            except (OSError, ValueError) as reason:  # text or a number that cannot be written
                failed.add_note(f"the dump that was asked for could not be written: {explain(reason)}")
        LOGGER.warning("%s", "\n".join((str(failed), *getattr(failed, "__notes__", ()))))
        for hooks in self._hooks:
            hooks.out_of_memory(report)
        return failed
