"""The recording of a pool, and the reduction of fragmentation that is measured from it.

A recording keeps what the journal of requests hands it (`smartpool.telemetry.journal`); numbering
allocations and streams, and dropping what began before, waits until a trace is asked for.
`smartpool.trace.Recorder` is for allocators that have no journal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from time import perf_counter_ns
from typing import Any, Final

from smartpool.driver.model import ModelDriver
from smartpool.forks import renewed
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.telemetry.hooks import Hooks, MapEvent
from smartpool.telemetry.journal import FIELDS, FREED
from smartpool.telemetry.statistics import Reduction
from smartpool.trace.baselines import make_baseline
from smartpool.trace.recorder import Event, trace_of
from smartpool.trace.replay import replay
from smartpool.trace.runs import share_idle
from smartpool.trace.trace import Trace
from smartpool.units import TiB

__all__ = ["MOST_EVENTS", "PoolRecording"]

MOST_EVENTS: Final = 10_000_000
"""Of a device; later events are ignored, and the trace says so. One takes some 100 bytes."""


class PoolRecording:
    """Recordings of a pool's devices, all on or all off.

    Parameters
    ----------
    managers
        The devices.
    limit
        Events that are kept of each, rounded up to whole batches.

    Attributes
    ----------
    reduction
        The reduction that was measured last; None before.
    """

    def __init__(self, managers: Sequence[AdvancedMemoryPoolManager], *, limit: int = MOST_EVENTS) -> None:
        self._managers = managers
        self._limit = limit
        self._recordings: tuple[_DeviceRecording, ...] = ()
        self._lock = renewed(self, "_lock", threading.RLock)
        self._measured: tuple[int, ...] = ()  # the events of each device that `reduction` is for
        self.reduction: Reduction | None = None

    def start(self) -> None:
        """Record from now on; a recording that is on goes on."""
        with self._lock:
            if not self._recordings:
                self._recordings = tuple(_DeviceRecording(one, self._limit) for one in self._managers)
                self._measured = ()

    def stop(self) -> None:
        """Record no more, and forget what was recorded; what was measured of it stays."""
        with self._lock:
            recordings, self._recordings = self._recordings, ()
        for recording in recordings:
            recording.stop()

    def trace(self, device_id: int | None = None) -> Trace | None:
        """Return what was recorded so far, on a device or on all, or None when no recording is on.

        O(n log devices), 1 us an event. Where tags or stacks were tracked, the trace has them as `site`: a
        line a frame, the innermost first, and the tag as the last line.
        """
        recordings = self._recordings
        if not recordings:
            return None
        return _trace_of(recordings if device_id is None else (recordings[device_id],))

    def measure(self) -> Reduction | None:
        """Compare the devices with the model of PyTorch's caching allocator, by the sums of their peaks.

        Once for each state of the recording: when nothing new is recorded it is what was measured last. Some
        3 us an event.
        """
        recordings = self._recordings
        counts = tuple(map(len, recordings))
        if any(counts) and counts != self._measured:
            self.reduction = _measured(recordings) or self.reduction
            self._measured = counts
        return self.reduction


class _DeviceRecording:
    """Every event of one device from now on."""

    def __init__(self, manager: AdvancedMemoryPoolManager, limit: int) -> None:
        self.manager = manager
        self.since = perf_counter_ns()
        self.kept = _Kept(limit * FIELDS, manager.reserved_bytes)
        self._hooks = Hooks(())
        self._hooks.on_map(self.kept.mapped)
        manager.telemetry.use_hooks(self._hooks)
        self.before = manager.telemetry.add_reader(self.kept.read)  # what was live: address to bin

    def __len__(self) -> int:
        self.manager.telemetry.settle()
        return sum(map(len, self.kept.batches)) // FIELDS

    def stop(self) -> None:
        self.manager.telemetry.remove_reader(self.kept.read)
        self.manager.telemetry.drop_hooks(self._hooks)

    def events(self, *, whole: bool) -> Iterator[Event]:
        """Yield what was recorded so far; `whole` with what was live before, as if requested then."""
        self.manager.telemetry.settle()
        for pointer, bin_ in self.before.items() if whole else ():
            yield self.since, pointer, bin_.nbytes, bin_.stream, None
        columns = chain.from_iterable(self.kept.batches.copy())
        for pointer, bin_, label, time in zip(columns, columns, columns, columns, strict=True):
            if pointer < 0:  # the begin or the end of a scope
                continue
            if label is FREED:
                yield time, pointer, None, bin_.stream, None
            else:
                yield time, pointer, bin_.nbytes, bin_.stream, None if label is None else label.described


class _Kept:
    """What the journal hands over. Knows no manager: a pool that nobody holds is to go at once."""

    __slots__ = ("_left", "batches", "overflowed", "peak_reserved_bytes")

    def __init__(self, limit: int, reserved_bytes: int) -> None:
        self.batches: list[list[Any]] = []  # as they come: joining them would be a third of the price
        self.overflowed = False
        self.peak_reserved_bytes = reserved_bytes
        self._left = limit

    def read(self, batch: list[Any]) -> None:
        """Keep a batch; see `Journal.readers`."""
        if self._left > 0:
            self.batches.append(batch)
            self._left -= len(batch)
        else:
            self.overflowed = True

    def mapped(self, event: MapEvent) -> None:
        """Learn that the pool took memory."""
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, event.reserved_bytes)


def _trace_of(recordings: Sequence[_DeviceRecording], *, whole: bool = False) -> Trace:
    devices = [recording.manager.driver.name for recording in recordings]
    return trace_of(
        f"recording of {', '.join(devices)}",
        [recording.events(whole=whole) for recording in recordings],
        complete=not any(recording.kept.overflowed for recording in recordings),
        **({} if len(devices) == 1 else {"devices": devices}),
    )


def _measured(recordings: Sequence[_DeviceRecording]) -> Reduction | None:
    """Replay what was recorded, with what was live before; None when no trace has an event."""
    events = live = held = baseline_held = 0
    for recording in recordings:
        trace = _trace_of((recording,), whole=True)
        count = len(trace) - sum(bin_.nbytes > 0 for bin_ in recording.before.values())
        if count > 0:
            events += count
            live += trace.peak_live_bytes
            held += recording.kept.peak_reserved_bytes
            baseline_held += replay(
                trace, make_baseline("pytorch", ModelDriver(64 * TiB))
            ).peak_reserved_bytes
    if not events:
        return None
    shares = (max(0.0, share_idle(live, most, failed=False) or 0.0) for most in (held, baseline_held))
    fragmentation, baseline_fragmentation = shares
    return Reduction(
        events=events, fragmentation=fragmentation, baseline_fragmentation=baseline_fragmentation
    )
