"""Where live blocks lie, checked by what the driver was told and nothing else.

The check listens to the driver's calls and keeps a map of its own: which chunk is behind which addresses.
A block that the pool hands out is taken apart by that map into pieces of physical memory. Each piece must
be there and accessible, no live block may share a byte with it, by whatever addresses, and it must not be
unmapped or released before the block is freed. The pool's own books are never asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

__all__ = ["PlacementCheck", "PlacementError"]


class PlacementError(AssertionError):
    """A live block lies where it must not."""


class PlacementCheck:
    """The memory behind every address of a driver, and what of it is live.

    Parameters
    ----------
    driver
        A fresh driver; its calls are listened to from now on.
    """

    def __init__(self, driver):
        self._size = {}  # of each chunk
        self._starts = []  # of mappings, in order
        self._mapping = {}  # start to (end, chunk)
        self._open = set()  # starts of the mappings that may be accessed
        self._taken = {}  # chunk to the (begin, end) of live pieces in it, in order
        self._live = {}  # address of a block to (end, its pieces)
        self._blocks = []  # addresses of blocks, in order
        for call in (
            "create_chunk",
            "release_chunk",
            "map_chunk",
            "unmap",
            "enable_access",
            "allocate",
            "free",
        ):
            setattr(driver, call, self._listening(getattr(driver, call), getattr(self, f"_on_{call}")))

    @staticmethod
    def _listening(call, told):
        def made(*arguments):
            result = call(*arguments)
            told(result, *arguments)
            return result

        return made

    # --- what the driver does ---

    def _on_create_chunk(self, chunk, size):
        self._size[chunk], self._taken[chunk] = size, []

    def _on_release_chunk(self, _, chunk):
        if self._taken.pop(chunk):
            raise PlacementError(f"chunk {chunk:#x} was released under live blocks")
        del self._size[chunk]

    def _on_map_chunk(self, _, address, chunk):
        insort(self._starts, address)
        self._mapping[address] = (address + self._size[chunk], chunk)

    def _on_enable_access(self, _, address, size):
        self._open.update(self._starts[place] for place in self._places(address, address + size))

    def _on_unmap(self, _, address, size):
        at = bisect_left(self._blocks, address + size)
        if at and self._live[self._blocks[at - 1]][0] > address:
            raise PlacementError(f"[{address:#x}, {address + size:#x}) was unmapped under a live block")
        places = self._places(address, address + size)
        for start in self._starts[places.start : places.stop]:
            del self._mapping[start]
            self._open.discard(start)
        del self._starts[places.start : places.stop]

    def _on_allocate(self, address, size):
        self._on_create_chunk(-address, size)
        self._on_map_chunk(None, address, -address)
        self._open.add(address)

    def _on_free(self, _, address):
        self._on_unmap(None, address, self._size[-address])
        self._on_release_chunk(None, -address)

    def _places(self, begin, end):
        """Return which of the mappings share an address with [begin, end)."""
        first = max(0, bisect_right(self._starts, begin) - 1)
        if first < len(self._starts) and self._mapping[self._starts[first]][0] <= begin:
            first += 1
        return range(first, max(first, bisect_left(self._starts, end)))

    # --- what the pool does ---

    def took(self, address, nbytes):
        """Say that the pool handed out a block."""
        pieces, at, end = [], address, address + nbytes
        for place in self._places(address, end):
            start = self._starts[place]
            stop, chunk = self._mapping[start]
            if start > at:
                break
            if start not in self._open:
                raise PlacementError(f"block {address:#x}: no access to the memory at {at:#x}")
            upto = min(stop, end)
            pieces.append((chunk, at - start, upto - start))
            at = upto
        if at < end:
            raise PlacementError(f"block {address:#x} of {nbytes} bytes: no memory at {at:#x}")
        for number, (chunk, begin, upto) in enumerate(pieces):
            taken = self._taken[chunk]
            place = bisect_left(taken, (begin, upto))
            if (place and taken[place - 1][1] > begin) or (place < len(taken) and taken[place][0] < upto):
                self._give_back(pieces[:number])
                raise PlacementError(f"block {address:#x}: a live block has bytes of chunk {chunk:#x} too")
            taken.insert(place, (begin, upto))
        self._live[address] = (end, pieces)
        insort(self._blocks, address)

    def freed(self, address):
        """Say that the program freed a block, before the pool hears of it."""
        self._give_back(self._live.pop(address)[1])
        del self._blocks[bisect_left(self._blocks, address)]

    def _give_back(self, pieces):
        for chunk, begin, upto in pieces:
            taken = self._taken[chunk]
            del taken[bisect_left(taken, (begin, upto))]

    @property
    def live_blocks(self):
        """Number of blocks that are live."""
        return len(self._live)
