"""Where prices come from: the configuration, the model's own table, or a measurement on the device.

Problem: policies compare calls, and what calls cost differs between devices, drivers and platforms.
Method: `model` tells its table. On `cuda` a chunk of the granularity goes through its whole life a
few times when the pool first grows, each call timed from Python, because that is what the pool will
pay; the medians are the prices. Behind them stands a deadline, after which what was measured so far
is used. What a call costs for each MiB is the reference's: measuring it would take chunks of many
MiB from a device that may have none to spare, and it matters little (1-2 % of a chunk of 32 MiB).
On `cpu` the prices are the reference's as well, so that a pool decides on a laptop as on a GPU.
Rejected: measuring when a pool is made (most programs make theirs before anything is urgent, but a
pool that is never used should cost nothing); measuring all the while (a call's time depends on what
the device does meanwhile, and a policy whose numbers drift cannot be reproduced).
Bound: `REPEATS` chunks, 0.5 ms on an H200; no more than `DEADLINE_S` and one chunk's life.

`docs/elastic.md` says what prices decide.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Final

from smartpool.driver.costs import H200, CostTable
from smartpool.driver.protocol import Driver
from smartpool.errors import DriverError
from smartpool.prices import Cost, Prices

__all__ = ["DEADLINE_S", "REFERENCE", "REPEATS", "find_prices", "measure_prices"]

REFERENCE: Final = H200.prices
"""The prices by which the numbers of the policies were chosen."""

REPEATS: Final = 6
DEADLINE_S: Final = 0.005
_CUDA: Final = 2  # kDLCUDA
_CALLS: Final = ("create", "map", "access", "unmap", "release")


def find_prices(driver: Driver, configured: Prices | None = None) -> Prices:
    """Return what the calls of `driver` cost.

    Parameters
    ----------
    driver
        The device, with room for one chunk of its granularity.
    configured
        Prices that the user set: they win, and nothing is measured.
    """
    if configured is not None:
        return configured
    table = getattr(driver, "costs", None)
    if isinstance(table, CostTable):
        return table.prices
    if driver.dl_device[0] == _CUDA and driver.granularity:
        return measure_prices(driver) or REFERENCE
    return REFERENCE


def measure_prices(
    driver: Driver,
    *,
    repeats: int = REPEATS,
    deadline_seconds: float = DEADLINE_S,
    clock: Callable[[], float] = perf_counter,
) -> Prices | None:
    """Return the prices of `driver` by the clock, or None when a call failed.

    What was taken is given back, also after a failure; what even then cannot be given back is left
    to the driver: a few MiB of addresses, and one chunk.
    """
    size = driver.granularity
    lives: list[list[float]] = []
    base: int | None = None
    try:
        base = driver.reserve(size)
        begin = clock()
        while len(lives) < repeats and (not lives or clock() - begin < deadline_seconds):
            lives.append(_live_once(driver, base, size, clock))
    except DriverError:
        return None
    finally:
        if base is not None:
            with suppress(DriverError):
                driver.unreserve(base, size)
    # The first life pays for what the driver sets up once; it counts only when there is no other.
    columns = zip(*(lives[1:] or lives), strict=True)
    measured = {name: median(column) * 1e6 for name, column in zip(_CALLS, columns, strict=True)}
    return Prices(**{name: Cost(us, getattr(REFERENCE, name).per_mib) for name, us in measured.items()})


def _live_once(driver: Driver, base: int, size: int, clock: Callable[[], float]) -> list[float]:
    """Take one chunk through its life, and return the seconds of each call in the order of `_CALLS`."""
    times = [clock()]
    chunk = driver.create_chunk(size)
    times.append(clock())
    try:
        driver.map_chunk(base, chunk)
        times.append(clock())
        try:
            driver.enable_access(base, size)
            times.append(clock())
        finally:
            driver.unmap(base, size)
        times.append(clock())
    except BaseException:
        with suppress(DriverError):
            driver.release_chunk(chunk)
        raise
    driver.release_chunk(chunk)
    times.append(clock())
    return [after - before for before, after in pairwise(times)]
