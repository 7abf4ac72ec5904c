"""Addresses for traces that have none, because other tools want to see where things were.

A trace of a pool, of PyTorch or of RMM has the addresses that were handed out. One that says sizes and
lifetimes alone gets those of a plan of the whole trace: no allocator ran like that, but every block has
a place of its own for as long as it lives, at the least memory that is possible.

Memory is shown in whole pages of 2 MiB, the runs of pages that any block ever touched: a trace does not
tell what the recording allocator held beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from smartpool.trace.layouts import covered_runs
from smartpool.trace.optimum import plan_of
from smartpool.trace.trace import Trace
from smartpool.units import MiB

__all__ = ["PAGE_BYTES", "Placement", "page_runs", "placed"]

PAGE_BYTES: Final = 2 * MiB
_BASE: Final = 1 << 40  # of planned addresses, which begin at 0: no tool takes 0 for an address


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Placement:
    """Where each allocation of a trace lies.

    Parameters
    ----------
    address
        One an allocation, in the order in which they began.
    recorded
        Whether the recording had them; otherwise they are a plan's.
    """

    address: NDArray[np.int64]
    recorded: bool


def placed(trace: Trace, *, time_limit: float | None = None) -> Placement:
    """Return the addresses of a trace: those recorded, or those of a plan.

    Parameters
    ----------
    trace
        The trace.
    time_limit
        Seconds for the planner, where one is needed; None for its own choice.

    Examples
    --------
    >>> trace = Trace.from_columns("tiny", op=[0, 1, 0], id=[0, 0, 1], size=[600, 600, 9])
    >>> placement = placed(trace)
    >>> (placement.address - placement.address.min()).tolist(), placement.recorded
    ([0, 0], False)
    """
    if trace.address is not None:
        return Placement(address=trace.address[trace.lifetimes().start], recorded=True)
    _, found = plan_of(trace, time_limit=time_limit)
    return Placement(address=found.offsets + _BASE, recorded=False)


def page_runs(
    address: NDArray[np.int64], size: NDArray[np.int64], page_bytes: int = PAGE_BYTES
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return begin and end of the runs of pages that the blocks touch, ascending. O(n log n).

    Examples
    --------
    >>> begin, end = page_runs(np.array([0, 5000, 1500]), np.array([10, 20, 3000]), page_bytes=1000)
    >>> begin.tolist(), end.tolist()
    ([0], [6000])
    """
    first = address // page_bytes * page_bytes
    return covered_runs(first, -(-(address + size) // page_bytes) * page_bytes - first)
