"""PyTorch's caching allocator with ``expandable_segments:True``, as its rules are published.

Source: PyTorch 2.11, ``c10/cuda/CUDACachingAllocator.cpp``, its note on expandable segments. The rules,
where they differ from `smartpool.trace.baselines.pytorch`:

* a segment is a reservation of 1 1/8 of the device's memory, one for each pool and stream, backed by
  chunks of 2 MiB (requests of up to 1 MiB) or 20 MiB (all others), each mapped whole;
* every rest of 512 bytes or more becomes a block of its own;
* the best fit counts a block before unmapped addresses as large as it could become, so that the end of
  a segment is taken last;
* when nothing fits, chunks are mapped at the lowest addresses where blocks that are free or unmapped
  have room together;
* when the device has no memory left, all chunks under which nothing is live are unmapped and given
  back, and it is tried again.

Checked against the peaks recorded on all nine traces: equal to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from smartpool.containers.ordered import OrderedIntegers
from smartpool.driver.protocol import Driver
from smartpool.errors import DriverOutOfMemoryError, InvariantError
from smartpool.heap.arena import Range
from smartpool.trace.baselines.base import CachingBaseline
from smartpool.trace.baselines.blocks import Block, FreeBlocks, Segment, split
from smartpool.trace.baselines.pytorch import (
    LARGE_SEGMENT,
    SMALL_LIMIT,
    SMALL_SEGMENT,
    checked_divisions,
    round_request,
)

__all__ = ["PyTorchExpandableAllocator"]


class PyTorchExpandableAllocator(CachingBaseline):
    """The caching allocator over the virtual-memory calls.

    Parameters
    ----------
    driver
        The memory.
    roundup_power2_divisions
        As for `smartpool.trace.baselines.pytorch.PyTorchAllocator`.
    """

    name = "pytorch-expandable"

    def __init__(self, driver: Driver, *, roundup_power2_divisions: int = 0) -> None:
        super().__init__(driver)
        self._divisions = checked_divisions(roundup_power2_divisions)
        self._pools: dict[tuple[bool, int], _Pool] = {}
        total = driver.memory_info().total
        self._addresses_per_segment = total + total // 8

    def _rounded(self, nbytes: int) -> int:
        return round_request(nbytes, self._divisions)

    def _home(self, size: int, stream: int) -> FreeBlocks:
        key = (size <= SMALL_LIMIT, stream)
        pool = self._pools.get(key)
        if pool is None:
            chunk_size = SMALL_SEGMENT if key[0] else LARGE_SEGMENT
            pool = self._pools[key] = _Pool(chunk_size, self._handle(stream))
        return pool

    def _lists(self) -> Iterable[FreeBlocks]:
        # Large first: the order in which cached memory is given back.
        return [self._pools[key] for key in sorted(self._pools)]

    def _choose(self, home: FreeBlocks, size: int) -> Block | None:
        block = home.best(size)
        if block is None or _growth(block) == 0:
            return block
        for candidate in home.after(block):
            if candidate.size + _growth(candidate) >= block.size + _growth(block):
                break
            block = candidate
        return block

    def _grow(self, home: FreeBlocks, size: int) -> Block:
        pool = cast("_Pool", home)
        return self._grown(lambda: self._expand(pool, size), size, self._release_idle_chunks)

    def _expand(self, pool: _Pool, size: int) -> Block:
        """Map chunks until a block of `size` has memory, and return it, in no list.

        What was mapped before the device refused stays, free.
        """
        block = pool.with_room(size) or self._reserve(pool)
        if not block.mapped:
            block = self._map(pool, block, min(size, block.size))
        while block.size < size:
            beyond = block.following
            assert beyond is not None
            block = self._map(pool, beyond, min(size - block.size, beyond.size))
        pool.remove(block)
        return block

    def _reserve(self, pool: _Pool) -> Block:
        """Return the one, unmapped, block of a fresh segment."""
        size = -(-self._addresses_per_segment // pool.chunk_size) * pool.chunk_size
        segment = _Reservation(self._driver.reserve(size), self._addresses.place(size), size, pool.chunk_size)
        self._segments[segment.start] = segment
        block = Block(segment.start, size, segment, pool)
        pool.add_unmapped(block)
        return block

    def _map(self, pool: _Pool, block: Block, size: int) -> Block:
        """Map chunks under the first `size` bytes of an unmapped block; return the free block they are in."""
        chunk_size, segment = pool.chunk_size, cast("_Reservation", block.segment)
        count = -(-size // chunk_size)
        chunks = self._create_chunks(chunk_size, count)
        pool.remove_unmapped(block)
        if count * chunk_size < block.size:
            pool.add_unmapped(split(block, count * chunk_size))
        for address, chunk in zip(range(block.address, block.address + block.size, chunk_size), chunks,
                                  strict=True):  # fmt: skip
            self._driver.map_chunk(address + segment.shift, chunk)
            segment.chunks[address] = chunk
        self._driver.enable_access(block.address + segment.shift, block.size)
        self._grew(block.size)
        return self._add_free(block, pool)

    def _create_chunks(self, size: int, count: int) -> list[int]:
        """Return `count` chunks, or none and an error."""
        chunks: list[int] = []
        try:
            for _ in range(count):
                chunks.append(self._driver.create_chunk(size))  # noqa: PERF401  kept when one fails
        except DriverOutOfMemoryError:
            for chunk in chunks:
                self._driver.release_chunk(chunk)
            raise
        return chunks

    def _release_idle_chunks(self) -> bool:
        """Unmap and give back every chunk that lies under free blocks alone."""
        for home in self._lists():
            pool = cast("_Pool", home)
            for block in list(pool):
                self._unmap(pool, block)
        return True

    def _unmap(self, pool: _Pool, block: Block) -> None:
        """Unmap the whole chunks under a free block; its ends, where they share a chunk, stay free."""
        chunk_size, segment = pool.chunk_size, cast("_Reservation", block.segment)
        first = -(-(block.address - segment.start) // chunk_size)
        last = (block.address + block.size - segment.start) // chunk_size
        start, end = segment.start + first * chunk_size, segment.start + last * chunk_size
        if start >= end:
            return
        pool.remove(block)
        if start > block.address:
            rest = split(block, start - block.address)
            pool.add(block)
            block = rest
        if end < block.address + block.size:
            pool.add(split(block, end - block.address))
        self._driver.synchronize(pool.stream)  # the memory must be idle before it goes
        for address in range(start, end, chunk_size):
            self._driver.unmap(address + segment.shift, chunk_size)
            self._driver.release_chunk(segment.chunks.pop(address))
        self._grew(start - end)
        block = pool.add_unmapped(block)
        if block.is_whole:
            pool.remove_unmapped(block)
            del self._segments[segment.start]
            self._addresses.release(segment.start, segment.size)
            self._driver.unreserve(segment.pointer, segment.size)

    def memory(self) -> list[Range]:
        """Return the chunks by address."""
        held = [cast("_Reservation", segment) for segment in self._segments.values()]
        return sorted(Range(address + one.shift, one.chunk_size) for one in held for address in one.chunks)

    def _give_back(self, segment: Segment) -> None:
        reservation = cast("_Reservation", segment)
        for address, chunk in reservation.chunks.items():
            self._driver.unmap(address + segment.shift, reservation.chunk_size)
            self._driver.release_chunk(chunk)
        self._driver.unreserve(segment.pointer, segment.size)

    def _unmapped(self) -> Iterable[Block]:
        return [block for pool in self._pools.values() for block in pool.unmapped()]

    def check(self) -> None:
        """Prove the invariants, and that the chunks are those under the mapped blocks. O(n)."""
        super().check()
        covered: dict[int, set[int]] = {start: set() for start in self._segments}
        for block in self._backed_blocks():
            inside = cast("_Reservation", block.segment)
            first = block.address - (block.address - inside.start) % inside.chunk_size
            covered[inside.start].update(range(first, block.address + block.size, inside.chunk_size))
        mapped = {start: set(cast("_Reservation", one).chunks) for start, one in self._segments.items()}
        if covered != mapped:
            raise InvariantError(f"{self.name}: expected chunks at {covered!r}, got {mapped!r}")


class _Reservation(Segment):
    """Addresses, and the chunks mapped in them by nominal address."""

    __slots__ = ("chunk_size", "chunks")

    def __init__(self, pointer: int, start: int, size: int, chunk_size: int) -> None:
        super().__init__(pointer, start, size)
        self.chunk_size = chunk_size
        self.chunks: dict[int, int] = {}


class _Pool(FreeBlocks):
    """The free blocks of one pool and stream, and its addresses without memory."""

    __slots__ = ("_by_address", "_order", "chunk_size", "stream")

    def __init__(self, chunk_size: int, stream: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.stream = stream
        self._order = OrderedIntegers()
        self._by_address: dict[int, Block] = {}

    def unmapped(self) -> Iterable[Block]:
        """Yield the unmapped blocks by address."""
        return map(self._by_address.__getitem__, self._order)

    def add_unmapped(self, block: Block) -> Block:
        """Put a block in that has no memory now; return it as one with its neighbors that have none."""
        following, previous = block.following, block.previous
        if following is not None and not following.mapped:
            self.remove_unmapped(following)
            block.absorb_following()
        if previous is not None and not previous.mapped:
            self.remove_unmapped(previous)
            previous.absorb_following()
            block = previous
        block.mapped = False
        self._order.add(block.address)
        self._by_address[block.address] = block
        return block

    def remove_unmapped(self, block: Block) -> None:
        """Take a block out that gets memory, or another neighbor."""
        self._order.remove(block.address)
        del self._by_address[block.address]
        block.mapped = True

    def with_room(self, size: int) -> Block | None:
        """Return the lowest block from which on `size` bytes are free or unmapped; None if there is none."""
        for block in self.unmapped():
            previous = block.previous
            first = previous if previous is not None and previous.free else block
            room, at = 0, cast("Block | None", first)
            while at is not None and room < size and (at.free or not at.mapped):
                room += at.size
                at = at.following
            if room >= size:
                return first
        return None


def _growth(block: Block) -> int:
    """Return by how much a block could grow into the unmapped addresses that follow it."""
    following = block.following
    return following.size if following is not None and not following.mapped else 0
