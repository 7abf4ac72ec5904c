"""A pool on its devices: which they are, its life, steps, and giving memory back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

from smartpool.buffer import Buffer
from smartpool.config import SmartPoolConfig
from smartpool.copying import not_copied
from smartpool.errors import (
    BackgroundError,
    DeviceNotFoundError,
    DriverError,
    InvalidRequestError,
    MemoryCorruptionError,
    SmartPoolError,
)
from smartpool.forks import renewed
from smartpool.log import LOGGER
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.telemetry.statistics import MemorySnapshot, OptimizationOutcome
from smartpool.pool.upkeep.background import NEVER, Background
from smartpool.pool.upkeep.mapper import Mapper
from smartpool.pool.upkeep.pressure import PressureCallbacks
from smartpool.scopes import scoped
from smartpool.units import format_size
from smartpool.values import as_integer, shown

__all__ = ["DevicePool"]


class DevicePool:
    """Managers under one configuration, one a device, and the background optimiser over them.

    Parameters
    ----------
    managers
        The devices, at least one. They are closed with the pool.
    config
        How the pool behaves.
    """

    def __init__(self, managers: tuple[AdvancedMemoryPoolManager, ...], config: SmartPoolConfig) -> None:
        self.config = config
        self.managers = managers
        self._manager = managers[0]
        self._allocations: dict[int, Buffer] = {}  # what the pool itself holds, by number
        self._optimizations = self._memory_freed_bytes = 0
        self._counting = renewed(self, "_counting", threading.RLock)
        self._closed = False
        self._background = Background(self._background_pass, config.optimization_interval)
        self._pressure_callbacks = PressureCallbacks(config.memory_pressure_threshold)
        self._mapper = Mapper(managers)
        self._mapping = Background(self._mapper.background_pass, NEVER, name="smartpool-mapper")

    __reduce_ex__ = not_copied

    def __repr__(self) -> str:
        devices = ", ".join(manager.driver.name for manager in self.managers)
        if any(manager.disowned for manager in self.managers):
            return f"<SmartPool on {devices}: the parent process's, not this one's>"
        if self._closed:
            return f"<SmartPool on {devices}: closed>"
        live = sum(manager.live_bytes for manager in self.managers)
        reserved = sum(manager.reserved_bytes for manager in self.managers)
        return f"<SmartPool on {devices}: {format_size(live)} live, {format_size(reserved)} reserved>"

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    # ------------------------------------------------------------------ steps

    @scoped
    def step(self, name: str = "step", *, wait_for_plan: bool = False) -> Iterator[None]:
        """Mark one repetition of something that repeats itself: a block, or each call of what it decorates.

        The first repetition is recorded and planned, on another thread unless it is small; later ones are
        served from the plan, by index: no search, no driver call, and no memory beyond what is held.
        Requests of the thread that entered take part, on each stream by a plan of its own, and those of
        threads that take turns with it. What does not match is counted and served as always.

        Parameters
        ----------
        name
            Steps of different kinds, such as training and evaluation, have plans of their own.
        wait_for_plan
            Wait for the plan of an earlier repetition if the planner is still at work.

        Raises
        ------
        StepError
            When a step is under way already.

        Examples
        --------
        >>> import smartpool
        >>> with smartpool.SmartPool("model:1GiB") as pool:
        ...     for _ in range(3):
        ...         with pool.step(wait_for_plan=True):
        ...             pool.free(pool.malloc(1000))
        ...     pool.statistics.devices[0].steps.hits
        2
        """
        if not isinstance(name, str):
            raise InvalidRequestError(
                f"name: expected the name of a kind of step, such as 'training', got {name!r}; "
                "steps of one name share a plan"
            )
        with ExitStack() as ended:
            for manager in self.managers:
                manager.begin_step(name, wait_for_plan=wait_for_plan)
                ended.callback(manager.end_step)
            yield

    # ------------------------------------------------------------------ life

    def trim(self, keep_bytes: int = 0, *, wait: bool = False, captures: bool = False) -> int:
        """Give idle memory back until each device holds at most `keep_bytes`; return the bytes freed.

        With `wait`, what the device may still touch is waited for. With `captures`, what is held for graphs
        that were captured outside of `capture` goes, too: they must not be launched any more.
        """
        self._require_open()
        return sum(manager.trim(keep_bytes, wait=wait, captures=captures) for manager in self.managers)

    def check(self) -> None:
        """Prove every invariant of every device; `InvariantError` when one is broken."""
        for manager in self.managers:
            manager.check()

    def close(self) -> None:
        """Refuse requests from now on. Memory goes back once nothing is live. Idempotent.

        Raises
        ------
        DriverError
            When a device did not take its memory back. The other devices are closed; call it again.
        MemoryCorruptionError
            In debug mode, when a block was overwritten. All devices are closed.
        """
        if not self._closed:
            self._closed = True
            self._background.stop()
            self._mapping.stop()
            allocations, self._allocations = self._allocations, {}
            allocations.clear()
        failures: list[SmartPoolError] = []
        for manager in self.managers:  # each of them, and again if one failed before
            try:
                manager.close()
            except (DriverError, MemoryCorruptionError) as error:
                failures.append(error)
        if failures:
            first, *others = failures
            for other in others:
                first.add_note(f"and: {other}")
            raise first

    def optimize_memory(self) -> OptimizationOutcome:
        """Empty the bins, join free ranges, and give idle memory back to the devices.

        No block is moved and no byte is copied: pointers stay what they are. Memory that a device may
        still be using is left for the next time.

        Raises
        ------
        BackgroundError
            When the background optimiser failed since the last call; its error is the cause.
        PoolClosedError
            When the pool was closed.
        """
        self._require_open()
        failed = self._background.take_error()
        if failed is not None:
            raise BackgroundError("the background optimiser failed; see the cause") from failed
        outcome = self._optimize(self.managers)
        self._count(outcome.memory_freed_bytes)
        return outcome

    def _background_pass(self) -> None:
        """Do what is due: called by the background thread.

        Pressure callbacks are asked first. Under pressure a device gives back all that is idle;
        fragmented beyond the threshold, what nobody needed since the last pass; else what has aged.
        """
        for index, manager in enumerate(self.managers):
            self._pressure_callbacks.look(index, manager.snapshot())
        due = [manager for manager in self.managers if self._under_pressure(manager.snapshot())]
        if due and not self._closed:
            outcome = self._optimize(due)
            if outcome.memory_freed_bytes:
                self._count(outcome.memory_freed_bytes)
                devices, freed = ", ".join(outcome.devices), format_size(outcome.memory_freed_bytes)
                LOGGER.info("%s gave %s back under memory pressure", devices, freed)
        for manager in self.managers:
            freed_bytes = manager.keep_up(time.monotonic())
            if freed_bytes:
                self._count(freed_bytes)
                LOGGER.info("%s gave %s back that idled", manager.driver.name, format_size(freed_bytes))
                self._map_ahead()

    def _under_pressure(self, now: MemorySnapshot) -> bool:
        idle = now.reserved_bytes > now.live_bytes
        return idle and now.pressure >= self.config.memory_pressure_threshold

    def _optimize(
        self, managers: tuple[AdvancedMemoryPoolManager, ...] | list[AdvancedMemoryPoolManager]
    ) -> OptimizationOutcome:
        before = max(manager.fragmentation().overall for manager in managers)
        freed = sum(manager.trim() for manager in managers)
        after = max(manager.fragmentation().overall for manager in managers)
        return OptimizationOutcome(
            fragmentation_before=before,
            fragmentation_after=after,
            memory_freed_bytes=freed,
            devices=tuple(manager.driver.name for manager in managers),
        )

    def _count(self, freed_bytes: int) -> None:
        """Count an optimization and what it gave back; several threads may do so at once."""
        with self._counting:
            self._optimizations += 1
            self._memory_freed_bytes += freed_bytes

    # ------------------------------------------------------------------ devices

    def _number_of(self, device_id: object) -> int:
        """Return the number of one of this pool's devices as a plain integer."""
        number = as_integer(device_id)
        if number is None or not 0 <= number < len(self.managers):
            raise DeviceNotFoundError(
                f"device_id: expected an integer from 0 to {len(self.managers) - 1}, a device of this pool, "
                f"got {shown(device_id)}; name the device when the pool is made"
            )
        return number

    def _manager_of(self, device_id: object) -> AdvancedMemoryPoolManager:
        return self.managers[self._number_of(device_id)]

    def _require_ours(self) -> None:
        """Raise `PoolClosedError` in a forked child, where the pool is the parent's."""
        for manager in self.managers:
            if manager.disowned:
                raise manager._closed_error()  # noqa: SLF001 - it says of which process it is

    def _require_open(self) -> None:
        self._require_ours()
        if self._closed:
            raise self._manager._closed_error()  # noqa: SLF001

    def _start_background(self) -> None:
        """Run the optimiser. Only a pool that is made in full is given to it."""
        for manager in self.managers:
            manager.on_pressure = self._background.wake
        self._background.start()
        if self.config.expected_bytes is not None:
            self._map_ahead()

    def _map_ahead(self) -> None:
        """Let the mapper look at each growth from now on: something can be foreseen."""
        if self.config.enable_predictive_allocation and not self._closed:
            for manager in self.managers:
                manager.on_growth = self._mapping.wake
            self._mapping.start()
