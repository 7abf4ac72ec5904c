"""The bin of one block that a graph has baked in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpool.pool.bins import Bin

if TYPE_CHECKING:
    from smartpool.pool.tiers import Tier

__all__ = ["HeldBin"]


class HeldBin(Bin):
    """The bin of one block in a graph's memory: what is put into it goes to that memory, not to a heap.

    Parameters
    ----------
    nbytes, size, stream, tier
        As `Bin`.
    returned
        Where the block is noted when it is freed, with the bin that says who used it.
    """

    __slots__ = ("_returned",)

    def __init__(
        self, nbytes: int, size: int, stream: int, tier: Tier, returned: list[tuple[int, HeldBin]]
    ) -> None:
        super().__init__(nbytes, size, stream, tier, set())
        self.quiet = False  # it holds nothing, so nobody need empty it
        self._returned = returned

    def own(self) -> Bin:
        """Return another bin for the block, to be told of further streams."""
        own = HeldBin(self.nbytes, self.size, self.stream, self.tier, self._returned)
        own.others = self.others
        return own

    def is_of(self, returned: list[tuple[int, HeldBin]]) -> bool:
        """Return whether the block goes back to that list."""
        return self._returned is returned

    def append(self, pointer: int) -> None:
        """Note that the block was freed. Atomic, so that it may happen anywhere."""
        self._returned.append((pointer, self))
