"""What a pool does for itself between requests: it gives back, and maps ahead.

It runs under the pool's lock, on a thread that is not in a hurry.
"""

from __future__ import annotations

from typing import Final

from smartpool.errors import DriverOutOfMemoryError
from smartpool.heap.elastic import ElasticHeap
from smartpool.heap.profile import HeapProfile, Restoring
from smartpool.maintenance.aging import IdleDecay
from smartpool.maintenance.ahead import Forecast
from smartpool.pool.slow_path import SlowPath
from smartpool.steps.stepping import Steps, StepStatistics
from smartpool.telemetry.fragmentation import fragmentation_of
from smartpool.units import parse_size

__all__ = ["Maintenance"]

_LEAST_SHARE: Final = 1 / 4
"""Of what is held. Giving less back saves little, and leaves too little room (`docs/elastic.md`)."""


class Maintenance:
    """Attached to a pool.

    Parameters
    ----------
    pool
        What is looked after.
    steps
        Its planned steps, whose memory may idle.

    Attributes
    ----------
    forecast
        What the pool will need, as far as it can be known.
    """

    def __init__(self, pool: SlowPath, steps: Steps) -> None:
        self._pool = pool
        self._steps = steps
        interval, age = pool.config.optimization_interval, pool.config.idle_age
        self._idle_age = IdleDecay(interval if age is None else age)
        self._hurry = 1.0 if age is None else min(1.0, interval / age)
        self._steps_then: StepStatistics | None = None
        self._steps_changed = 0.0
        self._high_since = 0  # the most in use since memory was given back
        expected = pool.config.expected_bytes
        self._restoring: Restoring | None = None
        self.forecast = Forecast(0 if expected is None else min(parse_size(expected), pool.memory.cap_bytes))

    def keep_up(self, now: float) -> int:
        """Give back what nobody needed for `idle_age`; return the bytes.

        Where fragmentation exceeds the threshold, the time between two passes is long enough. The
        bins are emptied, so that memory that nobody asks for again is seen to idle. Memory that the
        device may still touch is left for the next time.

        Parameters
        ----------
        now
            Seconds on a clock that never goes back.
        """
        pool = self._pool
        with pool.writing():
            if pool.released or pool.capture is not None:
                return 0
            overall = fragmentation_of(pool, pool.live_bytes).overall
            fragmented = overall > pool.config.fragmentation_threshold
            hurry = self._hurry if fragmented else 1.0
            used = max(pool.high_water_bytes, pool.gauge.live_bytes)
            self._high_since = max(self._high_since, used)
            idle = max(0, pool.gauge.extent_bytes - used)
            if self._steps_rest(now, hurry * self._idle_age.seconds):
                pool.ask_for_way()
            pool.flush()
            pool.high_water_bytes = pool.gauge.live_bytes
            held = pool.memory.reserved_bytes
            aged = self._idle_age.observe(now, idle_bytes=idle, reserved_bytes=held, hurry=hurry)
            if not aged or aged < _LEAST_SHARE * held or not (fragmented or pool.config.idle_age):
                return 0
            extent = pool.gauge.extent_bytes
            pool.pending.release(pool, wait=False)
            pool.release_idle(aged, wait=False, exact=True)
            left = pool.memory.reserved_bytes
            self._idle_age.gave_back(now, held - left, left)
            if left < held:
                live = pool.gauge.live_bytes
                self.forecast.gave_back(extent_before=extent, high_water=self._high_since, live_bytes=live)
                self._high_since = live
            return held - left

    def map_ahead(self) -> int:
        """Map one chunk that will be needed, if there is one to be foreseen; return its bytes.

        For a thread other than the callers': they wait for a chunk at most.
        """
        pool = self._pool
        heap: object = pool.heap
        if not isinstance(heap, ElasticHeap):
            return 0
        with pool.writing():
            if pool.closed or pool.capture is not None or pool.asleep:
                return 0
            if self._restoring is not None:
                try:
                    restored = heap.restore(self._restoring)
                except DriverOutOfMemoryError:
                    restored = 0
                if restored:
                    return restored
                self._restoring = None
            in_use = pool.gauge.live_bytes - self._steps.planned_bytes  # a plan's memory may idle
            wanted = self.forecast.ahead(max(0, in_use), pool.gauge.extent_bytes)
            try:
                mapped = heap.map_ahead(wanted)
            except DriverOutOfMemoryError:
                return 0  # somebody else has it: who really needs memory will ask again
            self.forecast.mapped(mapped)
            return mapped

    def learned(self) -> HeapProfile:
        """Return what the heap has learned."""
        heap: object = self._pool.heap
        with self._pool.writing():
            return heap.learned() if isinstance(heap, ElasticHeap) else HeapProfile(0)

    def restore(self, profile: HeapProfile) -> None:
        """Let `map_ahead` make what `profile` says, before anything else."""
        self._restoring = Restoring(profile)

    def _steps_rest(self, now: float, seconds: float) -> bool:
        """Return whether no step was under way for so long."""
        steps = self._steps.statistics
        if steps != self._steps_then:
            self._steps_then, self._steps_changed = steps, now
        return not self._steps.active and now - self._steps_changed >= seconds
