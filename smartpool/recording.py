"""The recording of a pool, and the reduction of fragmentation that is measured from it.

A recording keeps what the journal of requests hands it (`smartpool.pool.telemetry.journal`); numbering
allocations and streams, and dropping what began before, waits until a trace is asked for.
`smartpool.trace.Recorder` is for allocators that have no journal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import chain
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from smartpool.forks import renewed
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.telemetry.hooks import Hooks, MapEvent
from smartpool.pool.telemetry.journal import FIELDS, FREED
from smartpool.pool.telemetry.statistics import Reduction

if TYPE_CHECKING:
    from smartpool.trace.trace import Trace

__all__ = ["MOST_EVENTS", "DeviceRecording", "PoolRecording"]

MOST_EVENTS: Final = 10_000_000
"""Events that are kept; later ones are ignored, and the trace says so. One takes some 100 bytes."""

Event = tuple[int, Any, Any, int]
"""An address, the block's bin, its label or `FREED`, and nanoseconds."""


class DeviceRecording:
    """Every event of one device from now on.

    Parameters
    ----------
    manager
        The device.
    limit
        Events that are kept, rounded up to whole batches.
    """

    def __init__(self, manager: AdvancedMemoryPoolManager, *, limit: int = MOST_EVENTS) -> None:
        self._manager = manager
        self._since = perf_counter_ns()
        self._kept = _Kept(limit * FIELDS, manager.reserved_bytes)
        self._hooks = Hooks(())
        self._hooks.on_map(self._kept.mapped)
        manager.use_hooks(self._hooks)
        self._before = manager.add_reader(self._kept.read)  # what was live: address to bin

    def __len__(self) -> int:
        """Return the number of events that are kept."""
        self._manager.settle()
        return len(self._kept)

    @property
    def device(self) -> str:
        """The device's name."""
        return self._manager.driver.name

    @property
    def overflowed(self) -> bool:
        """Whether events were ignored because the limit was reached."""
        return self._kept.overflowed

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that the pool held on the device since the recording began."""
        return self._kept.peak_reserved_bytes

    def stop(self) -> None:
        """Keep nothing more."""
        self._manager.remove_reader(self._kept.read)
        self._manager.drop_hooks(self._hooks)

    def events(self, *, whole: bool = False) -> Iterator[Event]:
        """Yield what was recorded so far; `whole` with what was live before, as if requested then."""
        self._manager.settle()
        for pointer, bin_ in self._before.items() if whole else ():
            yield pointer, bin_, None, self._since
        columns = chain.from_iterable(self._kept.batches.copy())
        for event in zip(columns, columns, columns, columns, strict=True):
            if event[0] >= 0:  # neither the begin nor the end of a scope
                yield event

    def trace(self) -> Trace:
        """Return everything recorded so far as a trace; the recording goes on. O(n), 1 us an event.

        Where tags or stacks were tracked, the trace has them as `site`: a line a frame, the innermost
        first, and the tag as the last line.
        """
        return _trace_of((self,))

    def measured(self) -> tuple[Trace, int, int]:
        """Return what the measured reduction is made of.

        That is the trace with what was live before, the events in it that were recorded, and
        `peak_reserved_bytes`.
        """
        trace = _trace_of((self,), whole=True)
        before = sum(bin_.nbytes > 0 for bin_ in self._before.values())  # a trace has no empty requests
        return trace, max(0, len(trace) - before), self.peak_reserved_bytes


class _Kept:
    """What the journal hands over. Knows no manager: a pool that nobody holds is to go at once."""

    __slots__ = ("_left", "batches", "overflowed", "peak_reserved_bytes")

    def __init__(self, limit: int, reserved_bytes: int) -> None:
        self.batches: list[list[Any]] = []  # as they come: joining them would be a third of the price
        self.overflowed = False
        self.peak_reserved_bytes = reserved_bytes
        self._left = limit

    def __len__(self) -> int:
        return sum(map(len, self.batches)) // FIELDS

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


class PoolRecording:
    """Recordings of a pool's devices, all on or all off.

    Parameters
    ----------
    managers
        The devices.

    Attributes
    ----------
    reduction
        The reduction that was measured last; None before.
    """

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...]) -> None:
        self._managers = managers
        self._recordings: tuple[DeviceRecording, ...] = ()
        self._lock = renewed(self, "_lock", threading.RLock)
        self._measured: tuple[int, ...] = ()  # the events of each device that `reduction` is for
        self.reduction: Reduction | None = None

    def start(self) -> None:
        """Record from now on; a recording that is on goes on."""
        with self._lock:
            if not self._recordings:
                self._recordings = tuple(DeviceRecording(manager) for manager in self._managers)
                self._measured = ()

    def stop(self) -> None:
        """Record no more, and forget what was recorded; what was measured of it stays."""
        with self._lock:
            recordings, self._recordings = self._recordings, ()
        for recording in recordings:
            recording.stop()

    def trace(self, device_id: int | None = None) -> Trace | None:
        """Return what was recorded so far, on a device or on all, or None when no recording is on."""
        recordings = self._recordings
        if not recordings:
            return None
        return _trace_of(recordings if device_id is None else (recordings[device_id],))

    def measure(self) -> Reduction | None:
        """Compare the devices with the caching baseline, once for each state of the recording.

        When nothing is recorded it is what was measured last. O(events log events) when something new is.
        """
        recordings = self._recordings
        events = tuple(map(len, recordings))
        if any(events) and events != self._measured:
            from smartpool.trace.reduction import measured_reduction  # noqa: PLC0415 - brings the baselines

            self.reduction = measured_reduction(each.measured() for each in recordings) or self.reduction
            self._measured = events
        return self.reduction


def _trace_of(recordings: Sequence[DeviceRecording], *, whole: bool = False) -> Trace:
    """Return the events of some devices as one trace, by their time; each device has streams of its own."""
    from smartpool.trace.builder import TraceBuilder  # noqa: PLC0415 - keeps a pool light to open

    devices = [recording.device for recording in recordings]
    builder = TraceBuilder(name := f"recording of {', '.join(devices)}", ticks_per_us=1000)
    alone = len(recordings) == 1
    streams = (_numbered(number, one.events(whole=whole)) for number, one in enumerate(recordings))
    for (pointer, bin_, label, time), number in merge(*streams, key=_time):
        place, stream = (pointer, bin_.stream) if alone else ((number, pointer), (number, bin_.stream))
        if label is FREED:
            builder.free(place, stream=stream, time=time)
        else:
            site = None if label is None else label.described
            builder.allocate(place, bin_.nbytes, stream=stream, time=time, site=site)
    complete = not any(recording.overflowed for recording in recordings)
    meta = {"recorder": "smartpool", "complete": complete}
    return builder.build(name, meta if alone else {**meta, "devices": devices})


def _numbered(number: int, events: Iterator[Event]) -> Iterator[tuple[Event, int]]:
    return ((event, number) for event in events)


def _time(numbered: tuple[Event, int]) -> int:
    return numbered[0][3]
