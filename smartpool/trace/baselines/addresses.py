"""Where CUDA places what an allocator takes from it: the order of addresses decides ties.

PyTorch and RMM take the smallest free block that fits, and among equals the one at the lowest address.
Which that is depends on where the driver put its segment, so a model in which addresses grow gives
other peaks than the real allocator: on 8 of PyTorch's 27 recorded ones, by up to 7 %.

Method: the driver works in slabs, ranges of addresses that are multiples of 32 MiB. A request goes to
the start of the room that is left in the youngest slab where it fits; where it fits in none, it gets a
slab of its size rounded up to 32 MiB, below all slabs before. So addresses fall from slab to slab and
rise within one, and the unused end of a large slab takes later small requests.
Source: observation (NVIDIA documents no order): the addresses that ``cuMemAlloc`` returned for the
segments of the replays, on one H200 with driver 580 (CUDA 13.0). `tests/data/anchors` holds them, and a
test compares. What is assumed beyond them: a slab that is empty again is given back, and the next slab
goes to the highest addresses that are free. Requests that are no multiple of 2 MiB share pages in
reality, in an order that the model does not follow; only CuPy and RMM make such, and neither's recorded
peaks depend on it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from smartpool.errors import InvariantError, UnsupportedError
from smartpool.units import MiB, align_up

__all__ = ["AddressOrder"]

_TOP: Final = 1 << 47
_GRAIN: Final = 2 * MiB
_SLAB: Final = 32 * MiB


class AddressOrder:
    """Nominal addresses for ranges of device memory, in the order that CUDA would give them.

    Examples
    --------
    >>> order = AddressOrder()
    >>> first, second, third = order.place(20 * MiB), order.place(20 * MiB), order.place(12 * MiB)
    >>> (first - second) // MiB, (third - second) // MiB
    (32, 20)
    """

    __slots__ = ("_holes", "_slab_of", "_slabs")

    def __init__(self) -> None:
        self._slabs: list[_Slab] = []  # oldest first
        self._slab_of: dict[int, _Slab] = {}  # of each range, by its start
        self._holes = [(0, _TOP)]  # addresses outside of slabs, ascending

    def place(self, size: int) -> int:
        """Return the nominal address for `size` bytes. O(slabs)."""
        length = align_up(size, _GRAIN)
        for slab in reversed(self._slabs):
            address = slab.take(length)
            if address is not None:
                break
        else:
            slab = self._new_slab(align_up(length, _SLAB))
            address = slab.start
            slab.take(length)
        self._slab_of[address] = slab
        return address

    def release(self, address: int, size: int) -> None:
        """Make the range free again that `place` returned for `size`. O(slabs)."""
        slab = self._slab_of.pop(address)
        slab.give(address, align_up(size, _GRAIN))
        if slab.room == [(slab.start, slab.end)]:
            self._slabs.remove(slab)
            self._holes = _with_range(self._holes, slab.start, slab.end)

    def check(self) -> None:
        """Prove that slabs and holes tile all addresses, and that the room in slabs is in order. O(n)."""
        ranges = sorted([*self._holes, *((slab.start, slab.end) for slab in self._slabs)])
        good = ranges[0][0] == 0 and ranges[-1][1] == _TOP
        good &= all(low[1] == high[0] for low, high in pairwise(ranges))
        for slab in self._slabs:
            bounds = [bound for part in slab.room for bound in part]
            good &= all(low < high for low, high in pairwise(bounds))
            good &= not bounds or slab.start <= bounds[0] <= bounds[-1] <= slab.end
        if not good:
            raise InvariantError(f"nominal addresses do not tile: {ranges!r}")

    def _new_slab(self, size: int) -> _Slab:
        """Return a slab at the highest free addresses."""
        for index in range(len(self._holes) - 1, -1, -1):
            start, end = self._holes[index]
            if end - start >= size:
                self._holes[index : index + 1] = [(start, end - size)] if end - start > size else []
                slab = _Slab(end - size, end)
                self._slabs.append(slab)
                return slab
        raise UnsupportedError(
            f"expected a device whose addresses fit below {_TOP:#x}, as those that were observed, got a "
            f"reservation of {size} bytes; replay on a smaller device"
        )


class _Slab:
    """A range of addresses, and what of it is free: disjoint ranges, ascending."""

    __slots__ = ("end", "room", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.room = [(start, end)]

    def take(self, length: int) -> int | None:
        """Return the lowest address with room for `length`, which it takes; None if there is none."""
        for index, (start, end) in enumerate(self.room):
            if end - start >= length:
                self.room[index : index + 1] = [(start + length, end)] if end - start > length else []
                return start
        return None

    def give(self, start: int, length: int) -> None:
        """Take a range back."""
        self.room = _with_range(self.room, start, start + length)


def _with_range(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """Return ascending disjoint ranges with one more, made one with those that it touches."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted([*ranges, (start, end)]):
        if merged and merged[-1][1] == low:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return merged
