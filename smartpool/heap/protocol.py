"""What the manager asks of the memory under it: a heap, elastic or in segments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from smartpool.driver.protocol import MappedRange
from smartpool.heap.arena import Arena, Range, Uses

__all__ = ["Gauge", "Heap", "Layout"]


class Gauge(Protocol):
    """Who knows how much is in use of how much."""

    @property
    def live_bytes(self) -> int:
        """Bytes in use."""

    @property
    def extent_bytes(self) -> int:
        """All bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a heap copies under the lock.

    Attributes
    ----------
    blocks, gaps
        Start to size, at home: disjoint, and together exactly what `chunks` cover.
    chunks
        Start to size, at home.
    shown
        Start of a block at home to the address of the block that it is a piece of, where that is
        another address, and where in it the piece begins.
    """

    blocks: Mapping[int, int]
    gaps: Mapping[int, int]
    chunks: Mapping[int, int]
    shown: Mapping[int, tuple[int, int]]


class Heap(Protocol):
    """Blocks in arenas, and the physical memory under them. The pool's lock guards it.

    Sizes are multiples of 512, alignments powers of two of at least 512. A call that raises has
    changed nothing.
    """

    def allocate(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in a gap, for use on `stream`, and return its address.

        None when no gap fits.
        """

    def arena_for(self, size: int) -> Arena | None:
        """Return the arena in which `Arena.allocate` places such a block as `allocate` would; or None.

        As long as its gaps carry no uses, and the alignment is the usual one.
        """

    def extend(self, size: int, alignment: int, stream: int) -> int:
        """Find memory for a block that fits no gap: new, idle, or stitched; return its address.

        Raises `DriverOutOfMemoryError` when neither the device nor idle memory can give enough.
        """

    def place_idle(self, size: int, alignment: int, stream: int) -> int | None:
        """Place a block in what is free, stitched if need be; None if that is too little. Creates nothing."""

    def split(self, address: int, sizes: Sequence[int]) -> None:
        """Turn the block at `address` into blocks of `sizes`, which fill it, one behind the other.

        In one step, as far as `mend` can see.
        """

    def free_all(self, groups: Sequence[list[int]], size: int, uses: Uses) -> None:
        """Empty the lists in `groups`, and end the blocks that were in them.

        All blocks are on the same side of the limit between small and large requests as `size`.
        Other threads may take addresses out of the lists meanwhile. Each is in its list or free at
        any instant, also when an exception comes in between.
        """

    def free_elsewhere(self, address: int, uses: Uses) -> None:
        """End a large block that is not one of the arena for its size: `elsewhere` of `Arena.free_all`."""

    def spare_slab(self) -> bool:
        """Set memory that is free apart for small requests, if that is next to nothing; whether it was."""

    def block_size(self, address: int) -> int | None:
        """Return the size of the block at `address`, or None."""

    def is_gap(self, address: int) -> bool:
        """Return whether `address` lies in memory that is free: a block that began there is gone. O(gaps)."""

    def blocks(self) -> Iterator[Range]:
        """Yield the blocks, in no order."""

    def free_ranges(self) -> Iterator[int]:
        """Yield the sizes of the gaps."""

    def memory(self) -> Iterator[Range]:
        """Yield where physical memory is, each piece of it once, in no order."""

    def pieces(self, address: int) -> tuple[Range, ...]:
        """Return the memory under the block at `address`, in order; nothing where no block is."""

    def mapped(self, address: int, size: int) -> list[MappedRange]:
        """Return the chunks mapped under [address, address + size), in order; nothing for raw memory."""

    def layout(self) -> Layout:
        """Return copies of blocks, gaps and chunks at home, for a map. O(n), in C."""

    @property
    def live_bytes(self) -> int:
        """Bytes in blocks."""

    @property
    def small_bytes(self) -> int:
        """Bytes set apart for small requests, blocks and gaps."""

    @property
    def extent_bytes(self) -> int:
        """Bytes in blocks and gaps."""

    @property
    def gauge(self) -> Gauge:
        """Where the bytes of memory that is in use, and of all of it, can be read in the least time."""

    def room_bytes(self) -> int:
        """Return the bytes of the largest block that `place_idle` can place."""

    @property
    def largest_gap_bytes(self) -> int:
        """Bytes of the largest gap; 0 when there is none."""

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every gap."""

    def release_idle(self, limit_bytes: int, *, wait: bool, exact: bool = False) -> None:
        """Give idle memory back to the device, up to about `limit_bytes`; never more with `exact`.

        Without `wait`, memory that the device may still touch is left.
        """

    def close(self) -> None:
        """Give everything back; after a failure, call it again. No block may be live, the device idle."""

    def mend(self, uses: Uses) -> None:
        """Make the books anew, after an exception in the middle of a call, from what is certain.

        A block is certain from its last step to its first. A request that was interrupted may leave
        a block that nobody knows of; everything else is as it was or as it should be. `uses` may
        touch any of the gaps. Raises `DriverError` when the device refuses; then call it again.
        """

    def check(self) -> None:
        """Prove the invariants."""
