"""Which allocations to move between devices so that none is much fuller than the others.

Problem: given devices of some capacity with some bytes live, and allocations that may move, find moves
that lower the highest share in use, with few bytes moved. The exact problem contains number
partitioning, and is NP-hard.
Method: greedy. While the fullest and the emptiest device (by share in use) are further apart than the
tolerance, the largest movable allocation is moved from the one to the other that lowers the larger of
their two shares; so the fewest are moved, and each move helps. Where none does, the next emptier
device is tried, then it ends.
Source: longest processing time first (Graham, SIAM J. Appl. Math. 17, 1969), begun from the present
state instead of from nothing.
Bound: an allocation moves at most once for each device; O(moves * (n + devices)). The shares end
within the tolerance of each other, or no single move would help.
Rejected: assigning everything anew (Graham's bound of 4/3 of the optimum, but it moves all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smartpool.errors import InvalidRequestError

__all__ = ["Load", "Move", "plan_moves"]


@dataclass(frozen=True, slots=True)
class Load:
    """How full a device is: bytes live, of the bytes that it can hold."""

    live_bytes: int
    capacity_bytes: int

    @property
    def share(self) -> float:
        """Bytes live over capacity."""
        return self.live_bytes / self.capacity_bytes


@dataclass(frozen=True, slots=True)
class Move:
    """One allocation from one device to another, by the devices' numbers in the pool."""

    allocation_id: int
    nbytes: int
    source: int
    target: int


def plan_moves(
    loads: Sequence[Load],
    movable: Sequence[tuple[int, int, int]],
    *,
    tolerance: float = 0.05,
    limit_bytes: int | None = None,
) -> list[Move]:
    """Return moves that even the loads out.

    Parameters
    ----------
    loads
        Each device's.
    movable
        Allocations that may move: id, bytes, and the number of the device on which each is.
    tolerance
        Differences in the share in use that are left alone.
    limit_bytes
        The most bytes to move in all; None for no limit.

    Examples
    --------
    >>> loads = [Load(80, 100), Load(0, 100)]
    >>> [(move.allocation_id, move.target) for move in plan_moves(loads, [(1, 50, 0), (2, 30, 0)])]
    [(1, 1)]
    """
    if not 0 <= tolerance <= 1:
        raise InvalidRequestError(f"tolerance: expected a number in [0, 1], got {tolerance!r}")
    state = list(loads)
    left = limit_bytes
    on: list[dict[int, int]] = [{} for _ in state]
    for number, nbytes, device in sorted(movable, key=lambda item: -item[1]):
        on[device][number] = nbytes
    moves: list[Move] = []
    while (found := _next_move(state, on, tolerance, left)) is not None:
        moves.append(found)
        del on[found.source][found.allocation_id]  # where it has gone it stays
        for device, change in ((found.source, -found.nbytes), (found.target, found.nbytes)):
            state[device] = Load(state[device].live_bytes + change, state[device].capacity_bytes)
        left = None if left is None else left - found.nbytes
    return moves


def _next_move(
    state: list[Load], on: list[dict[int, int]], tolerance: float, left: int | None
) -> Move | None:
    """Return the largest move off the fullest device that helps, to the emptiest that takes it."""
    order = sorted(range(len(state)), key=lambda device: state[device].share)
    source = order[-1]
    for target in order[:-1]:
        full, empty = state[source], state[target]
        if full.share - empty.share <= tolerance:
            break
        for number, nbytes in on[source].items():
            after = (empty.live_bytes + nbytes) / empty.capacity_bytes
            if nbytes and after < full.share and (left is None or nbytes <= left):
                return Move(number, nbytes, source, target)
    return None
