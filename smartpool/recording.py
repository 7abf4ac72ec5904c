"""The recording of a pool, and the reduction of fragmentation that is measured from it.

A recording keeps what the journal of requests hands it (`smartpool.pool.telemetry.journal`); numbering
allocations and streams, and dropping what began before, waits until a trace is asked for.
`smartpool.trace.Recorder` is for allocators that have no journal.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.telemetry.journal import FIELDS, FREED
from smartpool.pool.telemetry.statistics import Reduction

if TYPE_CHECKING:
    from smartpool.trace.trace import Trace

__all__ = ["MOST_EVENTS", "DeviceRecording", "PoolRecording"]

MOST_EVENTS: Final = 10_000_000
"""Events that are kept; later ones are ignored, and the trace says so. One takes some 100 bytes."""


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
        self._kept = _Kept(limit * FIELDS)
        manager.add_reader(self._kept.read)

    def __len__(self) -> int:
        """Return the number of events that are kept."""
        self._manager.settle()
        return len(self._kept)

    @property
    def overflowed(self) -> bool:
        """Whether events were ignored because the limit was reached."""
        return self._kept.overflowed

    def stop(self) -> None:
        """Keep nothing more."""
        self._manager.remove_reader(self._kept.read)

    def trace(self) -> Trace:
        """Return everything recorded so far as a trace; the recording goes on. O(n), 1 us an event.

        Where tags or stacks were tracked, the trace has them as `site`: a line a frame, the innermost
        first, and the tag as the last line.
        """
        from smartpool.trace.builder import TraceBuilder  # noqa: PLC0415 - keeps a pool light to open

        self._manager.settle()
        name = f"recording of {self._manager.driver.name}"
        builder = TraceBuilder(name, ticks_per_us=1000)
        columns = chain.from_iterable(self._kept.batches.copy())
        for pointer, bin_, label, time in zip(columns, columns, columns, columns, strict=True):
            if pointer < 0:
                continue  # a scope begins or ends
            if label is FREED:
                builder.free(pointer, stream=bin_.stream, time=time)
            else:
                builder.allocate(pointer, bin_.nbytes, stream=bin_.stream, time=time, site=label.described)
        return builder.build(name, {"recorder": "smartpool", "complete": not self.overflowed})


class _Kept:
    """What the journal hands over. Knows no manager: a pool that nobody holds is to go at once."""

    __slots__ = ("_left", "batches", "overflowed")

    def __init__(self, limit: int) -> None:
        self.batches: list[list[Any]] = []  # as they come: joining them would be a third of the price
        self.overflowed = False
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


class PoolRecording:
    """Recordings of a pool's devices, all on or all off.

    Parameters
    ----------
    managers
        The devices.
    """

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...]) -> None:
        self._managers = managers
        self._recordings: tuple[DeviceRecording, ...] = ()
        self._reduction: tuple[int, Reduction] | None = None  # the events that it is for, and the figure

    def start(self) -> None:
        """Record from now on; a recording that is on goes on."""
        if not self._recordings:
            self._recordings = tuple(DeviceRecording(manager) for manager in self._managers)

    def stop(self) -> None:
        """Record no more, and forget what was recorded."""
        for recording in self._recordings:
            recording.stop()
        self._recordings = ()
        self._reduction = None

    def trace(self, device_id: int) -> Trace | None:
        """Return what was recorded so far on a device, or None when no recording is on."""
        return self._recordings[device_id].trace() if self._recordings else None

    def reduction(self) -> Reduction | None:
        """Compare the first device with the caching baseline, once for each state of its recording.

        None while nothing was recorded. O(events log events) when something new was.
        """
        events = len(self._recordings[0]) if self._recordings else 0
        if not events:
            return None
        if self._reduction is None or self._reduction[0] != events:
            from smartpool.trace.reduction import measured_reduction  # noqa: PLC0415 - brings the baselines

            trace = self._recordings[0].trace()
            if not len(trace):
                return None
            self._reduction = (events, measured_reduction(trace, self._managers[0].peak_reserved_bytes))
        return self._reduction[1]
