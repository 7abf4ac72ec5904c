"""What keeps pools in order between requests: the background optimizer, and giving memory back at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from os import PathLike
from typing import Final

from smartpool.errors import BackgroundError, ConfigurationError, InvalidRequestError
from smartpool.forks import renewed
from smartpool.log import LOGGER
from smartpool.maintenance.background import NEVER, Background
from smartpool.maintenance.pressure import PressureCallback, PressureCallbacks
from smartpool.maintenance.profiles import read_profiles, write_profiles
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.pool_set import PoolSet, not_added
from smartpool.sharing.endings import sweep
from smartpool.telemetry.statistics import MemorySnapshot, OptimizationOutcome
from smartpool.units import format_size

__all__ = ["Maintenance"]

_PAUSE_S: Final = 50e-6
"""Between two chunks mapped ahead: Python's locks are not fair, and requests that wait go first."""


class Maintenance:
    """What is done for the pools of some devices by a thread, and at once when it is asked for.

    Its threads hold it weakly, and it holds the pools: it ends with who has it.

    Parameters
    ----------
    pools
        The pools.

    Attributes
    ----------
    background
        The background optimizer; it runs from `start` to `stop`.
    optimizations, memory_freed_bytes
        How often memory was given back, and how much.
    """

    def __init__(self, pools: PoolSet) -> None:
        self._pools = pools
        self._config = pools.config
        self.background = Background(self.background_pass, pools.config.optimization_interval)
        self.mapping = Background(self.map_ahead, NEVER, name="smartpool-mapper")
        self._pressure_callbacks = PressureCallbacks(pools.config.memory_pressure_threshold)
        self.optimizations = self.memory_freed_bytes = 0
        self._counting = renewed(self, "_counting", threading.RLock)

    def start(self) -> None:
        """Run the optimizer."""
        for manager in self._pools.managers:
            manager.slow_path.on_pressure = self.background.wake
        self.background.start()
        if self._restore() or self._config.expected_bytes is not None:
            self._map_ahead()
            self.mapping.wake()

    def _restore(self) -> bool:
        """Let the mapper begin with what an earlier run has learned; False where there is nothing."""
        managers, path = self._pools.managers, self._config.profile
        if path is None:
            return False
        try:
            profiles = read_profiles(path, [manager.driver.granularity for manager in managers])
        except ConfigurationError:
            self._pools.close()  # nobody else has them yet
            raise
        for manager, profile in zip(managers, profiles, strict=False):
            manager.maintenance.restore(profile)
        return bool(profiles)

    def save_profile(self, path: str | PathLike[str] | None = None) -> None:
        """Write what this run has learned, for `SmartPoolConfig(profile=...)` of the next.

        The file is JSON: the sizes of the chunks, and the free pieces that were shown side by side. A program
        that does the same again finds all of it made before it asks, on a thread of its own.

        Parameters
        ----------
        path
            The file; None for the one that the configuration names.

        Raises
        ------
        ConfigurationError
            Without a path, here or in the configuration.
        OSError
            When the file cannot be written.
        """
        self._pools.require_open()
        path = self._config.profile if path is None else path
        if not isinstance(path, str | PathLike):
            raise ConfigurationError(
                "profile", f"expected a path, here or in the configuration, got {path!r}; name a file"
            )
        write_profiles(path, [manager.maintenance.learned() for manager in self._pools.managers])

    def stop(self) -> None:
        """End the threads. Idempotent."""
        self.background.stop()
        self.mapping.stop()

    def optimize_memory(self) -> OptimizationOutcome:
        """Give idle memory back to the devices, and tell what that did to fragmentation.

        1. What other processes had open, and have closed, is taken back.
        2. On each device, planned steps let go of what they hold ahead, blocks that were freed are joined
           with their neighbors, and chunks in which nothing is live go back to the driver.

        No block is moved and no byte is copied: pointers stay what they are. Memory that a device may still
        be using is left for the next time.

        Raises
        ------
        BackgroundError
            When the background optimizer failed since the last call; its error is the cause.
        PoolClosedError
            When the pool was closed.
        """
        self._pools.require_open()
        failed = self.background.take_error()
        if failed is not None:
            raise BackgroundError("the background optimizer failed; see the cause") from failed
        outcome = self._optimize(self._pools.managers)
        self._count(outcome.memory_freed_bytes)
        return outcome

    def _optimize(self, managers: Sequence[AdvancedMemoryPoolManager]) -> OptimizationOutcome:
        sweep()
        before = max(manager.fragmentation().overall for manager in managers)
        freed = sum(manager.trim() for manager in managers)
        after = max(manager.fragmentation().overall for manager in managers)
        return OptimizationOutcome(
            fragmentation_before=before,
            fragmentation_after=after,
            memory_freed_bytes=freed,
            devices=tuple(manager.driver.name for manager in managers),
        )

    def background_pass(self) -> None:
        """Do what is due: called by the background thread.

        What other processes have closed is taken back, and pressure callbacks are asked. Then a device
        under pressure gives back all that is idle; fragmented beyond the threshold, what nobody needed since
        the last pass; else what has aged.
        """
        sweep()
        for index, manager in enumerate(self._pools.managers):
            self._pressure_callbacks.look(index, manager.snapshot())
        due = [manager for manager in self._pools.managers if self._under_pressure(manager.snapshot())]
        if due and not self._pools.closed:
            outcome = self._optimize(due)
            if outcome.memory_freed_bytes:
                self._count(outcome.memory_freed_bytes)
                devices, freed = ", ".join(outcome.devices), format_size(outcome.memory_freed_bytes)
                LOGGER.info("%s gave %s back under memory pressure", devices, freed)
        for manager in self._pools.managers:
            freed_bytes = manager.maintenance.keep_up(time.monotonic())
            if freed_bytes:
                self._count(freed_bytes)
                LOGGER.info("%s gave %s back that idled", manager.driver.name, format_size(freed_bytes))
                self._map_ahead()

    def _under_pressure(self, now: MemorySnapshot) -> bool:
        idle = now.reserved_bytes > now.live_bytes
        return idle and now.pressure >= self._config.memory_pressure_threshold

    def _count(self, freed_bytes: int) -> None:
        """Count an optimization and what it gave back; several threads may do so at once."""
        with self._counting:
            self.optimizations += 1
            self.memory_freed_bytes += freed_bytes

    def map_ahead(self) -> None:
        """Map all that can be foreseen now: called by the mapper's thread."""
        for manager in self._pools.managers:
            while manager.maintenance.map_ahead():
                time.sleep(_PAUSE_S)

    def _map_ahead(self) -> None:
        """Let the mapper look at each growth from now on: something can be foreseen."""
        if self._config.enable_predictive_allocation and not self._pools.closed:
            for manager in self._pools.managers:
                manager.slow_path.on_growth = self.mapping.wake
            self.mapping.start()

    def add_pressure_callback(self, callback: PressureCallback) -> None:
        """Tell `callback(pressure)` when `memory_pressure_threshold` is exceeded, before memory runs out.

        It is called on the optimizer's thread, soon after the request that exceeded the threshold, once
        until the pressure has fallen below it. It may do anything with the pool, and returns True when it
        freed something; what became idle is given back then.

        Raises
        ------
        ConfigurationError
            Without the background optimizer nobody would call it.
        """
        if not callable(callback):
            raise InvalidRequestError(f"callback: expected a function of a Pressure, got {callback!r}")
        if not self._config.enable_auto_defragmentation:
            raise ConfigurationError(
                "enable_auto_defragmentation",
                "expected True for pressure callbacks, which the background optimizer calls",
            )
        self._pressure_callbacks.add(callback)

    def remove_pressure_callback(self, callback: PressureCallback) -> None:
        """Tell `callback` no more; `InvalidRequestError`, which is a `ValueError`, when it was not added."""
        try:
            self._pressure_callbacks.remove(callback)
        except ValueError:
            raise not_added("add_pressure_callback", callback) from None
