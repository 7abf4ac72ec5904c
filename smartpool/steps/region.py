"""The region of a plan: one block of the heap while its step is served, and how it goes back.

Problem: a plan holds memory for what will be requested. Whenever the program does something else, the heap
would grow beside memory that idles.
Method: a region is made of what is free and of nothing new (`Heap.place_idle`); and before the heap grows,
every plan is left (`Steps.leave`). A region that is left is split into the slots that are live and what lies
between them. The latter is free at once, each of the former as soon as it is seen to be live no more.
A slot knows nothing of that: it is in the table of live blocks under its proxy, which throws a freed address
away. So a free on another thread comes before the look at that table or after it, and either is right.
Bound: O(slots) to leave, O(live slots) for each look afterwards.
Rejected: giving live slots to the bins of the heap (a block's bin would have to be exchanged if the block is
live still, and a dict has no such operation); keeping the region until all of it is free (one block that
outlives its step held as much memory as the whole step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from smartpool.errors import InvariantError
from smartpool.pool.slow_path import SlowPath

__all__ = ["Region"]


@dataclass(frozen=True, slots=True)
class _Part:
    """A block of the heap. Its list of one says whether it is held, should an exception come in between."""

    address: list[int]
    nbytes: int


class Region:
    """What a plan holds of the heap.

    Parameters
    ----------
    base, height
        Address and bytes of its block.
    """

    def __init__(self, base: int, height: int) -> None:
        self.base = base
        self.height = height
        self._parts = [_Part([base], height)]

    def __repr__(self) -> str:
        return f"<Region of {self.height} bytes at {self.base:#x}: {len(list(self.blocks()))} blocks>"

    @property
    def is_whole(self) -> bool:
        """Whether it is one block."""
        return any(part.nbytes == self.height and part.address for part in self._parts)

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.base + self.height

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of each block of the heap that it holds."""
        for part in self._parts:
            for address in part.address:
                yield address, part.nbytes

    def give_back(self, live: Mapping[int, int], pool: SlowPath, streams: tuple[int, ...]) -> bool:
        """Give back what no slot needs; return whether nothing is held any more. Call it again for the rest.

        Parameters
        ----------
        live
            Address and bytes of the slots that are live, or about to be. None may become live from now on.
        pool
            Whose heap it is.
        streams
            Who may still touch what is free.
        """
        if live and self.is_whole:
            tiles = list(self._tiles(live))
            pool.split_region(self.base, [nbytes for _, nbytes in tiles])
            self._parts = [_Part([address], nbytes) for address, nbytes in tiles]
        for part in self._parts:
            if part.address and part.address[0] not in live:
                pool.release_region(part.address, part.nbytes, streams)
        self._parts = [part for part in self._parts if part.address]
        return not self._parts

    def mend(self, block_size: Callable[[int], int | None]) -> None:
        """Learn that the block was split, by an exception that came right behind that."""
        if not self.is_whole or block_size(self.base) == self.height:
            return
        tiles, address = [], self.base
        while address < self.end:
            nbytes = block_size(address)
            if nbytes is None:
                raise InvariantError(f"{address:#x} in {self!r} is no block of the heap")
            tiles.append(_Part([address], nbytes))
            address += nbytes
        self._parts = tiles

    def _tiles(self, live: Mapping[int, int]) -> Iterator[tuple[int, int]]:
        """Yield the slots in `live`, and what lies between them."""
        at = self.base
        for address, nbytes in sorted(live.items()):
            if at < address:
                yield at, address - at
            yield address, nbytes
            at = address + nbytes
        if at < self.end:
            yield at, self.end - at
