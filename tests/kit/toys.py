"""A small correct pool, and the same with one bug planted for each invariant.

`smartpool.testing` is tested with them, and they are examples of what it finds: `PLANTED` lists every bug
with the invariant that it breaks. Addresses are made up, the same in each run; the bytes are a NumPy array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from smartpool.testing.invariants import Invariant

__all__ = ["BASE", "CAPACITY", "PLANTED", "Planted", "ToyPool"]

BASE: Final = 1 << 20
CAPACITY: Final = 4096
_UNIT: Final = 16


class ToyPool:
    """First fit over 4 KiB, with addresses that are multiples of 16.

    Examples
    --------
    >>> pool = ToyPool()
    >>> pool.malloc(100) - BASE, pool.malloc(100) - BASE
    (0, 112)
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.bytes = np.zeros(capacity, np.uint8)
        self.gaps = [(BASE, capacity)]  # in order of addresses, never touching
        self.live: dict[int, int] = {}
        self.live_bytes = 0

    def malloc(self, nbytes: int) -> int:
        """Return the lowest address with room for `nbytes`."""
        if not isinstance(nbytes, int) or nbytes < 0:
            raise ValueError(f"expected a size, got {nbytes!r}")
        size = self.rounded(nbytes)
        address = self.take(size)
        self.live[address] = nbytes
        self.live_bytes += nbytes
        return address

    def free(self, address: int) -> None:
        """End the block at `address`."""
        if address not in self.live:
            raise ValueError(f"expected a live block, got {address!r}")
        nbytes = self.live.pop(address)
        self.live_bytes -= nbytes
        self.give(address, self.rounded(nbytes))

    def trim(self) -> None:
        """Give idle memory back: there is nobody to give it to."""

    def check(self) -> None:
        """Raise unless blocks and gaps fill the memory exactly."""
        held = sum(map(self.rounded, self.live.values())) + sum(size for _, size in self.gaps)
        if held != len(self.bytes):
            raise AssertionError(f"expected {len(self.bytes)} bytes in blocks and gaps, found {held}")

    def figures(self) -> dict[str, Any]:
        """Return what the pool says of itself."""
        return {"live_bytes": self.live_bytes, "live_blocks": dict(self.live)}

    def read(self, address: int, nbytes: int) -> bytes:
        """Return bytes of the memory."""
        return self.bytes[self.span(address, nbytes)].tobytes()

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the memory."""
        self.bytes[self.span(address, len(data))] = np.frombuffer(data, np.uint8)

    # ------------------------------------------------------------------ what the bugs replace

    def rounded(self, nbytes: int) -> int:
        """Return what a block takes: at least one unit, so that every block has an address of its own."""
        return max(_UNIT, -(-nbytes // _UNIT) * _UNIT)

    def take(self, size: int) -> int:
        """Cut `size` bytes from the first gap that has them."""
        for index, (start, length) in enumerate(self.gaps):
            if length >= size:
                rest = [(start + size, length - size)] if length > size else []
                self.gaps[index : index + 1] = rest
                return start
        raise MemoryError(f"no gap holds {size} bytes")

    def give(self, address: int, size: int) -> None:
        """Put a gap back and join it with its neighbors."""
        joined: list[tuple[int, int]] = []
        for start, length in sorted([*self.gaps, (address, size)]):
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self.gaps = joined

    def span(self, address: int, nbytes: int) -> slice:
        """Return where the bytes are in the array."""
        if not BASE <= address <= address + nbytes <= BASE + len(self.bytes):
            raise IndexError(f"{nbytes} bytes at {address:#x} are outside of the memory")
        return slice(address - BASE, address - BASE + nbytes)


# ---------------------------------------------------------------------- one bug each


class ForgetsTheRest(ToyPool):
    """A block that is larger than half of its gap leaves the gap as it was."""

    def take(self, size: int) -> int:
        start = super().take(size)
        if size * 2 > CAPACITY:
            self.gaps.insert(0, (start, size))
        return start


class RoundsDown(ToyPool):
    """Sizes are rounded down to the unit, so the end of a block is the beginning of the next."""

    def rounded(self, nbytes: int) -> int:
        return max(_UNIT, nbytes // _UNIT * _UNIT)


class MergesTooFar(ToyPool):
    """A gap that is freed between two others swallows a live neighbor of one unit."""

    def give(self, address: int, size: int) -> None:
        after = address + size
        if self.live.get(after, _UNIT + 1) <= _UNIT and any(start == after + _UNIT for start, _ in self.gaps):
            size += _UNIT
        super().give(address, size)


class PacksTightly(ToyPool):
    """Blocks that follow a large one begin where it ends, not at the next unit."""

    def rounded(self, nbytes: int) -> int:
        return nbytes if nbytes > 300 else super().rounded(nbytes)


class NullForTheLast(ToyPool):
    """A request that takes all that is left gets a null address and no error."""

    def malloc(self, nbytes: int) -> int:
        address = super().malloc(nbytes)
        return address if self.gaps else 0


class ShortBuffer(ToyPool):
    """The last block reaches over the end of the memory."""

    def take(self, size: int) -> int:
        start, length = self.gaps[-1] if self.gaps else (0, 0)
        if start + length == BASE + CAPACITY and size > length >= size - _UNIT > 0:
            self.gaps.pop()
            return start
        return super().take(size)


class WritesHeaders(ToyPool):
    """A free writes its bookkeeping into the memory: one word too far."""

    def give(self, address: int, size: int) -> None:
        super().give(address, size)
        end = address - BASE + size
        self.bytes[end : end + 1] = 0xEE


class ZeroesTooMuch(ToyPool):
    """Fresh blocks are cleared: by the size of the gap, not of the block."""

    def take(self, size: int) -> int:
        gaps = dict(self.gaps)
        start = super().take(size)
        place = start - BASE
        self.bytes[place : place + min(gaps[start] * 2, CAPACITY)] = 0
        return start


class OverCommits(ToyPool):
    """When memory is short, it lends what it does not have: addresses behind the end."""

    def take(self, size: int) -> int:
        try:
            return super().take(size)
        except MemoryError:
            if size > CAPACITY:
                raise
            return BASE + CAPACITY + len(self.live) * CAPACITY

    def give(self, address: int, size: int) -> None:
        if address < BASE + CAPACITY:
            super().give(address, size)


class CountsWhatIsRounded(ToyPool):
    """A free subtracts the rounded size from what counts as live."""

    def free(self, address: int) -> None:
        nbytes = self.live.get(address, 0)
        super().free(address)
        self.live_bytes -= self.rounded(nbytes) - nbytes if nbytes else 0


class ForgetsABlock(ToyPool):
    """A table of live blocks that loses its oldest entry at the eighth."""

    def figures(self) -> dict[str, Any]:
        return {"live_blocks": len(self.live) % 8}


class LosesSmallGaps(ToyPool):
    """A gap of one unit is not worth keeping."""

    def give(self, address: int, size: int) -> None:
        if size > _UNIT:
            super().give(address, size)


class NeverJoins(ToyPool):
    """Free neighbors stay apart: a fresh pool serves what a used one does not."""

    def give(self, address: int, size: int) -> None:
        self.gaps = sorted([*self.gaps, (address, size)])


class CountsBeforeItTries(ToyPool):
    """Counts the bytes first and does not take them back when there are none."""

    def malloc(self, nbytes: int) -> int:
        if isinstance(nbytes, int) and nbytes > CAPACITY:
            self.live_bytes += nbytes
        return super().malloc(nbytes)


class EvictsOnFailure(ToyPool):
    """Clears its memory to make room, and has none then either."""

    def take(self, size: int) -> int:
        try:
            return super().take(size)
        except MemoryError:
            self.bytes[:] = 0
            raise


class TakesTwice(ToyPool):
    """What is not known to be live is taken back without a word."""

    def free(self, address: int) -> None:
        if address in self.live or any(start == address for start, _ in self.gaps):
            nbytes = self.live.pop(address, None)
            if nbytes is not None:
                self.live_bytes -= nbytes
                self.give(address, self.rounded(nbytes))
            return
        super().free(address)


class RefusesAndFrees(ToyPool):
    """A second free raises, after it was counted."""

    def free(self, address: int) -> None:
        if any(start == address for start, _ in self.gaps):
            self.live_bytes -= 1
        super().free(address)


class RoundsPointers(ToyPool):
    """A pointer into the middle of a block frees the block."""

    def free(self, address: int) -> None:
        super().free(address & -_UNIT)


class WrapsNegative(ToyPool):
    """A negative size is one unit, as for a C programmer who casts."""

    def malloc(self, nbytes: int) -> int:
        return super().malloc(abs(nbytes) & 0xFF if isinstance(nbytes, int) and nbytes < 0 else nbytes)


class SharesNothing(ToyPool):
    """Requests of no bytes all get the same address."""

    def malloc(self, nbytes: int) -> int:
        return BASE if nbytes == 0 and isinstance(nbytes, int) else super().malloc(nbytes)

    def free(self, address: int) -> None:
        if address in self.live:
            super().free(address)


class GivesUpEarly(ToyPool):
    """Looks at the first gap only."""

    def take(self, size: int) -> int:
        if self.gaps and self.gaps[0][1] < size:
            raise MemoryError("the first gap is too small")
        return super().take(size)


class RaisesWhatItLikes(ToyPool):
    """An exact fit removes a gap while it is being looked at."""

    def take(self, size: int) -> int:
        if any(length == size for _, length in self.gaps[1:]):
            raise RuntimeError("dictionary changed size during iteration")
        return super().take(size)


class RefusesItsOwn(ToyPool):
    """The block at the end of the memory cannot be freed."""

    def free(self, address: int) -> None:
        if address in self.live and address + self.rounded(self.live[address]) == BASE + len(self.bytes):
            raise ValueError(f"{address:#x} is outside of the memory")
        super().free(address)


class LosesCount(ToyPool):
    """Its own books go wrong when more than four blocks are live; only `check` knows."""

    def check(self) -> None:
        super().check()
        if len(self.live) > 4:
            raise AssertionError("the table of blocks is full")


@dataclass(frozen=True, slots=True)
class Planted:
    """A bug, the invariant that it breaks, and what the contract says beyond `ToyPool`'s."""

    bug: type[ToyPool]
    breaks: Invariant
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's name."""
        return self.bug.__name__


def must_serve(live: Sequence[int], nbytes: int) -> bool:
    """Say what fits however the blocks lie: n blocks leave n + 1 gaps at most, and one of them is average."""
    taken = sum(size + _UNIT for size in live)
    return (nbytes + _UNIT) * (len(live) + 1) + taken <= CAPACITY


_QUIET: Final = {"accounting": None, "check": None}

PLANTED: Final = (
    Planted(ForgetsTheRest, Invariant.NO_OVERLAP, _QUIET),
    Planted(RoundsDown, Invariant.NO_OVERLAP),
    Planted(MergesTooFar, Invariant.NO_OVERLAP, {**_QUIET, "refill": False}),
    Planted(PacksTightly, Invariant.ALIGNMENT),
    Planted(NullForTheLast, Invariant.VALID_ADDRESS),
    Planted(ShortBuffer, Invariant.USABLE, {**_QUIET, "capacity": None, "max_bytes": CAPACITY}),
    Planted(WritesHeaders, Invariant.CONTENTS),
    Planted(ZeroesTooMuch, Invariant.CONTENTS),
    Planted(OverCommits, Invariant.CAPACITY, {**_QUIET, "read": None, "write": None}),
    Planted(CountsWhatIsRounded, Invariant.ACCOUNTING),
    Planted(ForgetsABlock, Invariant.ACCOUNTING),
    Planted(LosesSmallGaps, Invariant.NO_LEAK, {"check": None}),
    Planted(NeverJoins, Invariant.NO_LEAK),
    Planted(CountsBeforeItTries, Invariant.FAILURE),
    Planted(EvictsOnFailure, Invariant.FAILURE),
    Planted(TakesTwice, Invariant.DOUBLE_FREE),
    Planted(RefusesAndFrees, Invariant.DOUBLE_FREE),
    Planted(RoundsPointers, Invariant.FOREIGN_FREE),
    Planted(WrapsNegative, Invariant.BAD_SIZE),
    Planted(
        SharesNothing, Invariant.ZERO_SIZE, {**_QUIET, "zero_size": "distinct", "bad_frees": "undefined"}
    ),
    Planted(GivesUpEarly, Invariant.SERVED, {"must_serve": must_serve}),
    Planted(RaisesWhatItLikes, Invariant.ERRORS),
    Planted(RefusesItsOwn, Invariant.ERRORS),
    Planted(LosesCount, Invariant.OWN_CHECK),
)
"""Every bug, with what it breaks."""
