"""Blocks in segments, and the free ones by best fit: what the modeled peers have in common.

A segment is what one driver call gave. Its blocks tile it and know their neighbors (boundary tags,
Knuth, *The Art of Computer Programming* 1, 2.5), so that a freed block finds in O(1) what to coalesce
with. Free blocks are ordered by size, and equals by address (PyTorch, RMM) or by arrival (the driver's
own pool): the first at or above a size is then the best fit as these allocators mean it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from smartpool.containers.ordered import OrderedIntegers
from smartpool.errors import InvariantError

__all__ = ["ArrivedBlocks", "Block", "FreeBlocks", "Segment", "split"]

_RANK_BITS: Final = 48  # of addresses and arrivals; the size stands above them in a key


class Segment:
    """A range of device memory as the driver gave it.

    `pointer` is the driver's address, `start` the nominal one (`AddressOrder`): blocks are ordered by
    nominal addresses and handed out by the driver's, `shift` apart.
    """

    __slots__ = ("pointer", "shift", "size", "start")

    def __init__(self, pointer: int, start: int, size: int) -> None:
        self.pointer = pointer
        self.start = start
        self.size = size
        self.shift = pointer - start


class Block:
    """A range of a segment, live or free.

    `home` is the list that holds the block when it is free, and `key` its place there. `mapped` is False
    where addresses have no memory behind them (expandable segments); such blocks are free, and in no list.
    `stamp` counts frees, for allocators that go by their order; a part of a block has the whole's.
    """

    __slots__ = (
        "address",
        "following",
        "free",
        "home",
        "key",
        "mapped",
        "previous",
        "segment",
        "size",
        "stamp",
    )

    def __init__(self, address: int, size: int, segment: Segment, home: FreeBlocks) -> None:
        self.address = address
        self.size = size
        self.segment = segment
        self.home = home
        self.previous: Block | None = None
        self.following: Block | None = None
        self.free = False
        self.mapped = True
        self.key = self.stamp = 0

    @property
    def is_whole(self) -> bool:
        """Whether the block is all of its segment."""
        return self.previous is None and self.following is None

    def absorb_following(self) -> None:
        """Grow over the next block, which must be in no list."""
        gone = self.following
        assert gone is not None
        self.size += gone.size
        self.following = gone.following
        if gone.following is not None:
            gone.following.previous = self
        gone.previous = gone.following = None  # no cycles: memory of dead blocks goes at once


class FreeBlocks:
    """Free blocks, ordered by size and then by address. O(log n) for each operation."""

    __slots__ = ("_blocks", "_keys")

    def __init__(self) -> None:
        self._keys = OrderedIntegers()
        self._blocks: dict[int, Block] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks in order. The set must not change meanwhile."""
        return map(self._blocks.__getitem__, self._keys)

    def __reversed__(self) -> Iterator[Block]:
        return map(self._blocks.__getitem__, reversed(self._keys))

    def add(self, block: Block) -> None:
        """Put a block in that is in no list."""
        block.key = key = block.size << _RANK_BITS | block.address
        self._keys.add(key)
        self._blocks[key] = block
        block.free = True

    def remove(self, block: Block) -> None:
        """Take a block out that is in this list."""
        self._keys.remove(block.key)
        del self._blocks[block.key]
        block.free = False

    def best(self, size: int) -> Block | None:
        """Return the smallest block of at least `size` bytes, the first of equals; None if there is none."""
        key = self._keys.ceiling(size << _RANK_BITS)
        return None if key is None else self._blocks[key]

    def fitting(self, size: int) -> Iterator[Block]:
        """Yield the blocks of at least `size` bytes in order."""
        return map(self._blocks.__getitem__, self._keys.from_(size << _RANK_BITS))

    def after(self, block: Block) -> Iterator[Block]:
        """Yield the blocks that follow `block` in the order."""
        return map(self._blocks.__getitem__, self._keys.from_(block.key + 1))

    def check(self) -> None:
        """Prove that keys and blocks agree, and that each block is free and here. O(n)."""
        self._keys.check()
        good = list(self._keys) == sorted(self._blocks) and all(
            key == block.key and key >> _RANK_BITS == block.size and block.free and block.home is self
            for key, block in self._blocks.items()
        )
        if not good:
            raise InvariantError(f"index of free blocks is wrong: {sorted(self._blocks)!r}")


class ArrivedBlocks(FreeBlocks):
    """Free blocks, ordered by size and then by arrival in this list."""

    __slots__ = ("_arrivals",)

    def __init__(self) -> None:
        super().__init__()
        self._arrivals = 0

    def add(self, block: Block) -> None:
        """Put a block in that is in no list, behind its equals."""
        self._arrivals += 1
        block.key = key = block.size << _RANK_BITS | self._arrivals
        self._keys.add(key)
        self._blocks[key] = block
        block.free = True


def split(block: Block, size: int) -> Block:
    """Cut `block` down to `size` bytes and return the rest of it, a live block in no list."""
    rest = Block(block.address + size, block.size - size, block.segment, block.home)
    following = block.following
    rest.previous, rest.following, rest.stamp = block, following, block.stamp
    if following is not None:
        following.previous = rest
    block.following = rest
    block.size = size
    return rest
