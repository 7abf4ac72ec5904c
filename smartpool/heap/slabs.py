"""Slabs: blocks of home with an arena of their own, for small requests.

A short life of a few bytes must not split the large gaps. So requests below the policy's
`slab_limit` are placed in slabs, which are ordinary blocks of home, of `slab_bytes` each (2 MiB). A
barrier on either side keeps gaps of two slabs apart, so a slab in which nothing is live is one gap,
and goes back to home when something does not fit there.

Invariants, proved by `check()`::

    every slab is a block of home
    the bytes of the arena == the bytes of the slabs
"""

from __future__ import annotations

from typing import Final

from smartpool.errors import DriverOutOfMemoryError, InvariantError
from smartpool.heap.arena import Arena, Range, Uses
from smartpool.heap.growing import Growing

__all__ = ["SMALL_SHARE", "Slabs"]

SMALL_SHARE: Final = 1 / 128
"""Of what is reserved: as long as slabs are less, free blocks in them are left alone."""


class Slabs:
    """The slabs of one heap. The pool's lock guards it.

    Parameters
    ----------
    home
        Whose blocks they are.
    growing
        Where room for one more comes from when no gap of home has it.

    Attributes
    ----------
    arena
        The small blocks, and the gaps between them.
    starts
        Where the slabs are.
    """

    def __init__(self, home: Arena, growing: Growing) -> None:
        self.arena = Arena()
        self.starts: set[int] = set()
        self._home = home
        self._growing = growing
        self._slab_bytes = growing.policy.slab_bytes

    def __repr__(self) -> str:
        return f"<Slabs: {len(self.starts)} slabs, {self.arena!r}>"

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.starts)

    def add(self, *, grow: bool = True) -> bool:
        """Make a block of home into a slab; False when there is no room for one."""
        size = self._slab_bytes
        gap = self._home.find(size)
        if gap is None and grow:
            try:
                self._growing.make_gap(size)
            except DriverOutOfMemoryError:
                return False
            gap = self._home.find(size)
        if gap is None:
            return False
        uses = self._home.uses_of(gap)
        # First: a slab without its block is none, a block without its slab is lost.
        self.starts.add(gap.start)
        self._home.place(gap, size)
        self.arena.extend(gap.start, size, barrier=True, uses=uses)
        return True

    def spare(self) -> bool:
        """Make a gap of home into a slab while slabs are few; see `Heap.spare_slab`.

        Emptying the bins of small requests instead costs a search for each block in them later on.
        """
        size = self._slab_bytes
        if self.arena.extent_bytes + size > SMALL_SHARE / 4 * self._home.extent_bytes:
            return False
        return self._home.find(size) is not None and self.add()

    def give_back(self) -> None:
        """Turn slabs in which nothing is live back into gaps of home."""
        for gap in list(self.arena.fitting(self._slab_bytes)):
            uses = self.arena.uses_of(gap)
            self.arena.retract(gap, *gap)
            self._home.free(gap.start, uses)
            self.starts.remove(gap.start)

    def mend(self, uses: Uses) -> None:
        """Make the books anew after an exception in the middle, from the blocks of home."""
        size = self._slab_bytes
        self.starts = {start for start in self.starts if self._home.size_at(start) == size}
        self.arena.mend([Range(start, size) for start in self.starts], barrier=True, uses=uses)

    def check(self) -> None:
        """Prove the invariants in the module's docstring; `InvariantError` when one is broken."""
        self.arena.check()
        slabs = {(start, self._slab_bytes) for start in self.starts}
        if not slabs <= {tuple(block) for block in self._home.blocks()}:
            raise InvariantError(f"slabs {slabs} are not blocks of {self._home!r}")
        if self.arena.extent_bytes != len(self) * self._slab_bytes:
            raise InvariantError(f"{self!r} are not of {self._slab_bytes} bytes each")
