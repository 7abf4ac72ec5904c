"""What a replay can drive, by name: SmartPool itself and the baselines, each on a device of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from smartpool.config import Policy, SmartPoolConfig
from smartpool.driver import Driver, ModelDriver, open_driver
from smartpool.driver.cpu import CpuDriver
from smartpool.errors import ConfigurationError, UnsupportedError
from smartpool.heap.arena import Range
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.scopes import scoped
from smartpool.trace.baselines import BASELINES, make_baseline
from smartpool.trace.layouts import LayoutTarget

__all__ = ["SMARTPOOL", "PoolTarget", "open_device", "open_target", "target_names"]

SMARTPOOL: Final = "smartpool"


class PoolTarget:
    """One device's pool as a replay sees it: a `smartpool.trace.layouts.LayoutTarget`.

    The manager is replayed rather than a `SmartPool` around it, whose `malloc` and `free` are the
    manager's own: no background thread then makes two replays differ.

    Parameters
    ----------
    manager
        A fresh manager on a driver that serves nobody else.
    name
        What it is called in tables.
    """

    def __init__(self, manager: AdvancedMemoryPoolManager, name: str = SMARTPOOL) -> None:
        self.name = name
        self.manager = manager
        # Bound here, so that a replay calls the pool and nothing in between.
        self.malloc: Callable[[int, object], int] = manager.malloc
        self.free: Callable[[int, object], None] = manager.free

    @property
    def device(self) -> str:
        """The driver's name."""
        return self.manager.driver.name

    @property
    def peak_reserved_bytes(self) -> int:
        """The most physical memory that the pool ever held."""
        return self.manager.peak_reserved_bytes

    @property
    def driver_seconds(self) -> float:
        """Time in the driver."""
        return self.manager.driver.seconds

    @property
    def driver_calls(self) -> Mapping[str, int]:
        """Driver calls by name."""
        return self.manager.driver.calls

    def reserved_bytes(self) -> int:
        """Return the physical memory held now."""
        return self.manager.reserved_bytes

    def memory(self) -> list[Range]:
        """Return where the pool's memory is."""
        return self.manager.memory()

    def pieces(self, pointer: int) -> tuple[Range, ...]:
        """Return the memory under a block: several ranges for one that is stitched together."""
        return self.manager.pieces_of(pointer)

    def stream(self, number: int) -> int | None:
        """Return None, the default stream, for stream 0, and a new stream for every other."""
        return None if number == 0 else self.manager.driver.create_stream()


def target_names() -> list[str]:
    """Return the names that `open_target` knows: ours first."""
    return [SMARTPOOL, *BASELINES]


def open_device(device: str, capacity_bytes: int | None = None) -> Driver:
    """Open a device, made smaller where a capacity is given.

    Parameters
    ----------
    device
        The name, as for `smartpool.driver.open_driver`.
    capacity_bytes
        The most physical memory that it gives out, or None for all that it has.

    Raises
    ------
    UnsupportedError
        When the device cannot be made smaller: a GPU is as large as it is.

    Examples
    --------
    >>> open_device("model:141GiB", 24 << 30).name
    'model:24GiB'
    """
    driver = open_driver(device)
    if capacity_bytes is None:
        return driver
    total = driver.memory_info().total
    driver.close()
    if isinstance(driver, ModelDriver):
        return ModelDriver(min(total, capacity_bytes))
    if isinstance(driver, CpuDriver):
        return CpuDriver(capacity=min(total, capacity_bytes))
    raise UnsupportedError(f"expected a 'model' or 'cpu' device to give it a capacity, got {driver.name}")


@scoped
def open_target(
    name: str, device: str, *, capacity_bytes: int | None = None, policy: Policy | float = "balanced"
) -> Iterator[LayoutTarget]:
    """Open an allocator on a fresh device, and give everything back in the end.

    Parameters
    ----------
    name
        One of `target_names`.
    device, capacity_bytes
        As for `open_device`.
    policy
        How SmartPool trades memory against driver time; says nothing to baselines.

    Raises
    ------
    ConfigurationError
        When the name or the policy is not known.
    """
    if name not in target_names():
        raise ConfigurationError("allocator", f"expected one of {', '.join(target_names())}, got {name!r}")
    config = SmartPoolConfig(policy=policy)
    driver = open_device(device, capacity_bytes)
    if name == SMARTPOOL:
        shown = name if policy == SmartPoolConfig().policy else f"{name}-{policy}"
        manager = AdvancedMemoryPoolManager(driver, config)
        try:
            yield PoolTarget(manager, shown)
        finally:
            for pointer in manager.live_blocks():
                manager.free(pointer)
            manager.close()
        return
    baseline = make_baseline(name, driver)
    try:
        yield baseline
    finally:
        baseline.close()
        driver.close()
