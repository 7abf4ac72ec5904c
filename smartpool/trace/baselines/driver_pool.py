"""The CUDA driver's own pool, behind ``cuMemAllocAsync`` and ``cudaMallocAsync``.

Source: observation. NVIDIA documents the interface and not the policy, so the rules here were inferred
from the addresses that a pool with an unlimited release threshold returned, and from its reserved bytes
after each request: one H200, driver 580 (CUDA 13.0); on one stream 167,853 requests, which are seven of
the recorded traces and the beginnings of the two long ones; on several streams the trace that has several
and two random ones (7,256). The model gives every one of these addresses and sizes, and the peaks of all
nine traces to the byte; a test keeps four of the replays. The rules:

* sizes are rounded up to 512 bytes; all blocks lie in one range of addresses, which is backed by chunks
  of 32 MiB;
* a freed block goes to the free list of the stream that frees it and is coalesced there; the stream's
  best fit serves, among equals the one that is longest in the list, and the rest of it stays there;
* where the stream has none, the best fit in the pool's shared list serves that has memory all over;
* where that has none either, the first other stream's best fit serves, in the order of the streams;
* otherwise the streams' lists are emptied into the shared one, the last freed first (the rest of a split
  block counts as freed when the whole was), and the best fit there serves, memory or not; the addresses
  beyond all blocks are one more free block, the largest;
* what of the block has no memory gets chunks that lie under shared free blocks alone, from the highest
  address downwards, and fresh ones where these do not suffice.

Left out: work on the device, which a trace does not tell (other streams' blocks are taken as if done
with), and synchronization, which was seen to empty lists too. Where the device has too little for the
best fit, the model looks for another block before it gives up: an assumption. Driver calls are counted
as if the pool made them through the virtual-memory interface; what it does inside cannot be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from smartpool.containers.ordered import OrderedIntegers
from smartpool.driver.protocol import Driver
from smartpool.errors import DriverOutOfMemoryError, InvariantError
from smartpool.heap.arena import Range
from smartpool.trace.baselines.base import CachingBaseline
from smartpool.trace.baselines.blocks import ArrivedBlocks, Block, FreeBlocks, Segment
from smartpool.units import MiB, align_up

__all__ = ["DriverPool"]

_CHUNK: Final = 32 * MiB
_ADDRESSES: Final = 8  # times the device's memory: addresses are not used again as memory is


class DriverPool(CachingBaseline):
    """The default memory pool of a device, never trimmed."""

    name = "driver-pool"
    list_type = ArrivedBlocks

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self._shared = ArrivedBlocks()
        self._frees = 0
        size = align_up(driver.memory_info().total * _ADDRESSES, _CHUNK)
        self._range = Segment(driver.reserve(size), 0, size)
        self._segments[0] = self._range
        self._shared.add(Block(0, size, self._range, self._shared))
        self._chunks: dict[int, int] = {}  # handles by the index of the chunk's place
        self._holes = OrderedIntegers()  # places without memory, below `_frontier`
        self._frontier = 0  # the first place that never had memory

    def free(self, pointer: int, stream: int) -> None:
        """Take back what `malloc` returned. O(log n)."""
        block = self._taken(pointer)
        self._frees += 1
        self._add_free(block, self._home(block.size, stream)).stamp = self._frees

    def _lists(self) -> Iterable[FreeBlocks]:
        return [self._shared, *self._free_on.values()]

    def _choose(self, home: FreeBlocks, size: int) -> Block | None:
        return home.best(size) or self._best_backed(size) or self._best_of_others(home, size)

    def _best_backed(self, size: int) -> Block | None:
        """Return the best fit in the shared list among the blocks that have memory all over."""
        return next(filter(self._is_backed, self._shared.fitting(size)), None)

    def _best_of_others(self, home: FreeBlocks, size: int) -> Block | None:
        """Return the best fit of the first other stream that has any."""
        for _, other in sorted(self._free_on.items()):
            block = other.best(size) if other is not home else None
            if block is not None:
                return block
        return None

    def _grow(self, home: FreeBlocks, size: int) -> Block:  # noqa: ARG002  lists of all streams alike
        for _, freed in sorted(self._free_on.items()):
            self._share(freed)
        block = self._backed_fit(size) or self._best_backed(size)
        if block is None:
            raise self._out_of_memory(size)
        self._shared.remove(block)
        return block

    def _share(self, home: FreeBlocks) -> None:
        """Empty the list of a stream into the shared one, the last freed first."""
        for block in sorted(home, key=lambda block: -block.stamp):
            home.remove(block)
            self._add_free(block, self._shared)

    def _backed_fit(self, size: int) -> Block | None:
        """Return the best fit in the shared list, with memory under its first `size` bytes.

        None, and nothing changed, where the device has too little.
        """
        block = self._shared.best(size)
        if block is None:
            return None
        missing = self._missing(block, size)
        idle = self._idle_chunks(len(missing), block.address, block.address + size)
        fresh: list[int] = []
        try:
            for _ in missing[len(idle) :]:
                fresh.append(self._driver.create_chunk(_CHUNK))  # noqa: PERF401  kept when one fails
        except DriverOutOfMemoryError:
            for chunk in fresh:
                self._driver.release_chunk(chunk)
            return None
        self._back(missing, idle, fresh)
        return block

    def _back(self, missing: list[int], idle: list[int], fresh: list[int]) -> None:
        """Map idle chunks from elsewhere and fresh ones where chunks are missing."""
        handles = list(fresh)
        for place in idle:
            self._driver.unmap(self._at(place), _CHUNK)
            handles.append(self._chunks.pop(place))
            self._holes.add(place)
        for place, handle in zip(missing, handles, strict=True):
            self._driver.map_chunk(self._at(place), handle)
            self._chunks[place] = handle
            if place < self._frontier:
                self._holes.remove(place)
        for start, end in _runs(missing):
            self._driver.enable_access(self._at(start), (end - start) * _CHUNK)
        if missing and missing[-1] >= self._frontier:
            for place in range(self._frontier, missing[0]):
                self._holes.add(place)
            self._frontier = missing[-1] + 1
        self._grew(len(fresh) * _CHUNK)

    def _is_backed(self, block: Block) -> bool:
        """Return whether there is memory all under a block. O(log n)."""
        end = block.address + block.size
        hole = self._holes.ceiling(block.address // _CHUNK)
        return end <= self._frontier * _CHUNK and (hole is None or hole * _CHUNK >= end)

    def _missing(self, block: Block, size: int) -> list[int]:
        """Return the places without memory under the first `size` bytes of a block."""
        first, end = block.address // _CHUNK, -(-(block.address + size) // _CHUNK)
        holes = []
        for place in self._holes.from_(first):
            if place >= end:
                break
            holes.append(place)
        return [*holes, *range(max(first, self._frontier), end)]

    def _idle_chunks(self, count: int, start: int, end: int) -> list[int]:
        """Return up to `count` places, from the top, whose chunks lie under shared free blocks alone.

        The range [start, end) counts as taken.
        """
        if not count:
            return []
        idle: list[int] = []
        for block in sorted(self._shared, key=lambda block: -block.address):
            low, high = block.address, block.address + block.size
            if low == start:
                low = end
            for place in range(min(high // _CHUNK, self._frontier) - 1, -(-low // _CHUNK) - 1, -1):
                if place in self._chunks:
                    idle.append(place)
                    if len(idle) == count:
                        return idle
        return idle

    def _at(self, place: int) -> int:
        return self._range.pointer + place * _CHUNK

    def memory(self) -> list[Range]:
        """Return the chunks by address."""
        return sorted(Range(self._at(place), _CHUNK) for place in self._chunks)

    def _give_back(self, segment: Segment) -> None:
        for place, chunk in self._chunks.items():
            self._driver.unmap(self._at(place), _CHUNK)
            self._driver.release_chunk(chunk)
        self._driver.unreserve(segment.pointer, segment.size)

    def _held_bytes(self) -> int:
        return len(self._chunks) * _CHUNK

    def check(self) -> None:
        """Prove the invariants, and that all but shared free blocks have memory. O(n)."""
        super().check()
        places = sorted([*self._chunks, *self._holes])
        if places != list(range(self._frontier)):
            raise InvariantError(f"{self.name}: expected places 0 to {self._frontier}, got {places!r}")
        for block in self._backed_blocks():
            shared = block.free and block.home is self._shared
            if not shared and not self._is_backed(block):
                raise InvariantError(f"{self.name}: no memory under a block at {block.address:#x} in use")


def _runs(places: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the half-open ranges that ascending places form."""
    start = end = -1
    for place in places:
        if place != end:
            if start >= 0:
                yield start, end
            start = place
        end = place + 1
    if start >= 0:
        yield start, end
