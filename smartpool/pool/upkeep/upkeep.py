"""What a pool does for itself between requests: it gives back, and maps ahead.

It runs under the pool's lock, on a thread that is not in a hurry.
"""

from __future__ import annotations

from typing import Final

from smartpool.config import SmartPoolConfig
from smartpool.driver.protocol import Driver
from smartpool.errors import DriverOutOfMemoryError
from smartpool.pool.heap.elastic import ElasticHeap
from smartpool.pool.steps.stepping import StepStatistics
from smartpool.pool.telemetry.watched import WatchedPool
from smartpool.pool.upkeep.aging import IdleAge
from smartpool.pool.upkeep.ahead import Forecast
from smartpool.units import parse_size

__all__ = ["UpkeepPool"]

_LEAST_SHARE: Final = 1 / 4
"""Of what is held. Giving less back saves little, and leaves too little room (`docs/elastic.md`)."""


class UpkeepPool(WatchedPool):
    """A pool that looks after itself. `AdvancedMemoryPoolManager` is the whole.

    Attributes
    ----------
    forecast
        What the pool will need, as far as it can be known.
    """

    def __init__(self, driver: Driver, config: SmartPoolConfig | None = None) -> None:
        super().__init__(driver, config)
        interval, age = self.config.optimization_interval, self.config.idle_age
        self._idle_age = IdleAge(interval if age is None else age)
        self._hurry = 1.0 if age is None else min(1.0, interval / age)
        self._steps_then: StepStatistics | None = None
        self._steps_changed = 0.0
        self._high_since = 0  # the most in use since memory was given back
        expected = self.config.expected_bytes
        self.forecast = Forecast(0 if expected is None else min(parse_size(expected), self._memory.cap_bytes))

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
        with self._writing():
            if self._released or self.beside_capture:
                return 0
            overall = self._fragmentation(self.live_bytes).overall
            fragmented = overall > self.config.fragmentation_threshold
            hurry = self._hurry if fragmented else 1.0
            used = max(self.high_water_bytes, self._gauge.live_bytes)
            self._high_since = max(self._high_since, used)
            idle = max(0, self._gauge.extent_bytes - used)
            if self._steps_rest(now, hurry * self._idle_age.seconds):
                self._steps.leave(self)
            self._flush()
            self.high_water_bytes = self._gauge.live_bytes
            held = self._memory.reserved_bytes
            aged = self._idle_age.observe(now, idle_bytes=idle, reserved_bytes=held, hurry=hurry)
            if not aged or aged < _LEAST_SHARE * held or not (fragmented or self.config.idle_age):
                return 0
            extent = self._gauge.extent_bytes
            self._free_doomed(wait=False)
            self._release_idle(aged, wait=False, exact=True)
            left = self._memory.reserved_bytes
            self._idle_age.gave_back(now, held - left, left)
            if left < held:
                live = self._gauge.live_bytes
                self.forecast.gave_back(extent_before=extent, high_water=self._high_since, live_bytes=live)
                self._high_since = live
            return held - left

    def map_ahead(self) -> int:
        """Map one chunk that will be needed, if there is one to be foreseen; return its bytes.

        For a thread other than the callers': they wait for a chunk at most.
        """
        heap: object = self._heap
        if not isinstance(heap, ElasticHeap):
            return 0
        with self._writing():
            if self._closed or self.beside_capture:
                return 0
            in_use = self._gauge.live_bytes - self._steps.planned_bytes  # a plan's memory may idle
            wanted = self.forecast.ahead(max(0, in_use), self._gauge.extent_bytes)
            try:
                mapped = heap.map_ahead(wanted)
            except DriverOutOfMemoryError:
                return 0  # somebody else has it: who really needs memory will ask again
            self.forecast.mapped(mapped)
            return mapped

    def _steps_rest(self, now: float, seconds: float) -> bool:
        """Return whether no step was under way for so long."""
        steps = self._steps.statistics
        if steps != self._steps_then:
            self._steps_then, self._steps_changed = steps, now
        return not self._steps.active and now - self._steps_changed >= seconds
