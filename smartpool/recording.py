"""The recording of a pool, and the reduction of fragmentation that is measured from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.statistics import Reduction

if TYPE_CHECKING:
    from smartpool.trace.recorder import Recorder
    from smartpool.trace.trace import Trace

__all__ = ["PoolRecording"]


class PoolRecording:
    """Recorders of a pool's devices, all on or all off.

    Parameters
    ----------
    managers
        The devices.
    """

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...]) -> None:
        self._managers = managers
        self._recorders: tuple[Recorder, ...] = ()
        self._reduction: tuple[int, Reduction] | None = None  # the events that it is for, and the figure

    def start(self) -> None:
        """Record from now on; a recording that is on goes on."""
        if not self._recorders:
            from smartpool.trace.recorder import Recorder  # noqa: PLC0415 - keeps a pool light to open

            self._recorders = tuple(Recorder() for _ in self._managers)
            for manager, recorder in zip(self._managers, self._recorders, strict=True):
                manager.observe(recorder)

    def stop(self) -> None:
        """Record no more, and forget what was recorded."""
        for manager in self._managers:
            manager.observe(None)
        self._recorders = ()
        self._reduction = None

    def trace(self, device_id: int) -> Trace | None:
        """Return what was recorded so far on a device, or None when no recording is on."""
        if not self._recorders:
            return None
        name = self._managers[device_id].driver.name
        return self._recorders[device_id].trace(name=f"recording of {name}")

    def reduction(self) -> Reduction | None:
        """Compare the first device with the caching baseline, once for each state of its recording.

        None while nothing was recorded. O(events log events) when something new was.
        """
        if not self._recorders or not len(self._recorders[0]):
            return None
        events = len(self._recorders[0])
        if self._reduction is None or self._reduction[0] != events:
            from smartpool.trace.reduction import measured_reduction  # noqa: PLC0415 - brings the baselines

            trace = self.trace(0)
            if trace is None or not len(trace):
                return None
            self._reduction = (events, measured_reduction(trace, self._managers[0].peak_reserved_bytes))
        return self._reduction[1]
