"""`fit`: offsets below a given capacity, from arrays in bytes to arrays in bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from smartpool.planner.search.instance import Instance
from smartpool.planner.search.limits import Limits
from smartpool.planner.search.restarts import HARD, Restarts
from smartpool.planner.sweeps import Int64s

EFFORT: Final = 3  # nodes of the smallest tree, for each of its bundles


def fit(
    start: Int64s,
    end: Int64s,
    size: Int64s,
    capacity: int,
    *,
    alignment: Int64s | None = None,
    deadline: float | None = None,
    seed: int = 0,
    stop: Callable[[], bool] | None = None,
) -> Int64s | None:
    """Find offsets below a capacity by exact search.

    Parameters
    ----------
    start, end
        Lifetimes, half-open.
    size
        Bytes; a size of zero, or an empty lifetime, gets offset zero.
    capacity
        Bytes that the plan may use.
    alignment
        Each offset is a multiple of the buffer's alignment.
    deadline
        A value of `time.monotonic`; without one the search ends only with an answer.
    seed
        The same seed visits the same nodes.
    stop
        Called now and then; the search gives up soon after it returns True.

    Returns
    -------
    Int64s or None
        One offset an interval; None when neither a plan nor a proof was found in time.

    Raises
    ------
    ProvedInfeasible
        When no offsets fit.

    Examples
    --------
    >>> import numpy as np
    >>> offsets = fit(np.array([0, 1, 2]), np.array([2, 3, 4]), np.array([4, 4, 4]), 8)
    >>> sorted(offsets.tolist()[:2]), int(offsets[0] - offsets[2])
    ([0, 4], 0)
    """
    instance = Instance.compress(start, end, size, alignment)
    restarts = Restarts(HARD, seed, effort=EFFORT)
    offsets = restarts.search(instance, capacity // instance.unit, Limits(deadline, stop))
    return None if offsets is None else instance.to_bytes(offsets, len(size))
