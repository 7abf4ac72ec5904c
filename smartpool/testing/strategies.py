"""Hypothesis strategies for what allocators are asked: sizes, requests, intervals, faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

from smartpool.driver.faults import CALLS, Fault
from smartpool.planner import IntervalSet
from smartpool.request import ACCESS_PATTERNS, AllocationRequest
from smartpool.testing.contract import Contract

__all__ = ["ScriptedFault", "arm", "fault_scripts", "interval_sets", "requests", "sizes"]

_ABSURD: Final = 1 << 62


def sizes(limits: Contract | int, *, zero: bool | None = None) -> st.SearchStrategy[int]:
    """Return sizes in bytes around everything where allocators change their minds.

    Small ones, any up to the largest, powers of two and what is one off, shares of the capacity (all of it,
    and one byte more), and one that no machine holds.

    Parameters
    ----------
    limits
        A contract, or the largest ordinary size.
    zero
        Whether 0 is among them; by default what the contract says.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(sizes(4096), lambda nbytes: nbytes > 512)
    513
    """
    contract = limits if isinstance(limits, Contract) else None
    largest = contract.largest if contract else limits
    assert isinstance(largest, int)
    capacity = contract.capacity if contract else None
    if zero is None:
        zero = contract is not None and contract.zero_size != "undefined"
    least = 0 if zero else 1
    shifts = st.integers(0, max(0, largest.bit_length() - 1))
    near_powers = st.builds(
        lambda shift, off: min(largest, max(least, (1 << shift) + off)), shifts, st.integers(-1, 1)
    )
    choices = [st.integers(least, min(4096, largest)), st.integers(least, largest), near_powers]
    if capacity is not None:
        shares = {capacity // part for part in (1, 2, 3, 4, 8)} | {capacity - 1, capacity + 1}
        choices.append(st.sampled_from(sorted(share for share in shares if share >= least)))
    elif contract is not None:
        choices.append(st.sampled_from((largest, _ABSURD)))
    return st.one_of(choices)


def requests(largest: int = 1 << 30, *, devices: int = 1) -> st.SearchStrategy[AllocationRequest]:
    """Return `AllocationRequest` values with every field in its range.

    Examples
    --------
    >>> from hypothesis import find, settings
    >>> few = settings(max_examples=50, database=None)
    >>> find(requests(), lambda request: request.device_id == 0, settings=few).size
    0
    """
    return st.builds(
        AllocationRequest,
        size=sizes(largest, zero=True),
        device_id=st.none() | st.integers(0, devices - 1),
        priority=st.integers(-5, 5),
        hint_lifetime=st.none() | st.floats(0, 1e6, allow_nan=False),
        hint_access_pattern=st.none() | st.sampled_from(ACCESS_PATTERNS),
        alignment=st.none() | st.integers(0, 21).map(lambda shift: 1 << shift),
    )


@st.composite
def interval_sets(
    draw: Any, *, max_intervals: int = 40, largest: int = 1 << 20, alignments: bool = True
) -> IntervalSet:
    """Return sets of lifetimes with sizes: empty ones, equal ones, nested ones, and any alignment.

    Examples
    --------
    >>> interval_sets(max_intervals=3)
    interval_sets(max_intervals=3)
    """
    starts = st.integers(0, 2 * max_intervals)
    lengths = st.integers(0, 8) | st.integers(0, 2 * max_intervals)
    rows = draw(st.lists(st.tuples(starts, lengths, sizes(largest, zero=True)), max_size=max_intervals))
    alignment = [1 << draw(st.integers(0, 12)) for _ in rows] if alignments and draw(st.booleans()) else None
    return IntervalSet.from_arrays(
        [start for start, _, _ in rows],
        [start + length for start, length, _ in rows],
        [size for _, _, size in rows],
        alignment=alignment,
    )


@dataclass(frozen=True, slots=True)
class ScriptedFault:
    """One driver call that is to fail: the `nth` of its name from now, and the `times - 1` after it.

    `error` is a driver's code, or None for the usual failure of that call.
    """

    call: str
    nth: int = 1
    times: int = 1
    error: str | None = None


def fault_scripts(
    calls: Sequence[str] | None = None, *, max_faults: int = 3, max_nth: int = 6
) -> st.SearchStrategy[tuple[ScriptedFault, ...]]:
    """Return scripts of failing driver calls, for `arm`; the empty script is one of them.

    Parameters
    ----------
    calls
        Which calls may fail; by default all of the driver protocol.
    max_faults, max_nth
        How many faults a script has at most, and how far away a fault may be.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(fault_scripts(["map_chunk"]), lambda script: len(script) == 1)
    (ScriptedFault(call='map_chunk', nth=1, times=1, error=None),)
    """
    one = st.builds(
        ScriptedFault,
        call=st.sampled_from(sorted(calls or CALLS)),
        nth=st.integers(1, max_nth),
        times=st.integers(1, 3),
        error=st.none() | st.sampled_from(("OUT_OF_MEMORY", "CUDA_ERROR_UNKNOWN")),
    )
    return st.lists(one, max_size=max_faults).map(tuple)


def arm(driver: Any, script: Sequence[ScriptedFault]) -> list[Fault]:
    """Arm a host driver with a script; what fired stands in the faults that are returned.

    >>> from smartpool.driver import open_driver
    >>> driver = open_driver("model:4MiB")
    >>> faults = arm(driver, [ScriptedFault("allocate", error="CUDA_ERROR_UNKNOWN")])
    >>> driver.allocate(512)
    Traceback (most recent call last):
    smartpool.errors.DriverError: allocate(size=512) failed: CUDA_ERROR_UNKNOWN; scripted fault
    >>> faults[0].fired
    [('allocate', {'size': 512})]
    """
    return [
        driver.faults.fail(each.call, nth=each.nth, times=each.times, error=each.error) for each in script
    ]
