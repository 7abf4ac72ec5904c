"""What every model of a peer does: account for the memory that it takes from the driver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from smartpool.driver.protocol import Driver
from smartpool.errors import DriverOutOfMemoryError, InvariantError, OutOfMemoryError, UnknownPointerError
from smartpool.heap.arena import Range
from smartpool.trace.baselines.addresses import AddressOrder
from smartpool.trace.baselines.blocks import Block, FreeBlocks, Segment, split
from smartpool.units import align_up, format_size

__all__ = ["Baseline", "CachingBaseline"]


class Baseline(ABC):
    """A model of another allocator's policy, on a driver of ours: a `smartpool.trace.layouts.LayoutTarget`.

    Parameters
    ----------
    driver
        The memory. It should serve nobody else, because its count of calls is the baseline's.
    """

    name: str

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._reserved = 0
        self._live: dict[int, Block] = {}
        self._streams = {0: driver.default_stream}
        self.peak_reserved_bytes = 0

    @abstractmethod
    def malloc(self, nbytes: int, stream: int) -> int:
        """Return the address of `nbytes` bytes; `OutOfMemoryError` when there are none."""

    @abstractmethod
    def free(self, pointer: int, stream: int) -> None:
        """Take back what `malloc` returned."""

    @property
    def device(self) -> str:
        """The driver's name."""
        return self._driver.name

    @property
    def driver_seconds(self) -> float:
        """Time in the driver."""
        return self._driver.seconds

    @property
    def driver_calls(self) -> Mapping[str, int]:
        """Driver calls by name."""
        return self._driver.calls

    def stream(self, number: int) -> int:
        """Return the number itself: baselines know streams by their numbers in the trace."""
        return number

    def reserved_bytes(self) -> int:
        """Return the physical memory held now."""
        return self._reserved

    @abstractmethod
    def memory(self) -> list[Range]:
        """Return where the physical memory is, by the addresses that `malloc` returns."""

    def pieces(self, pointer: int) -> tuple[Range, ...]:
        """Return the memory under a live block: one range, since the peers stitch nothing together."""
        return (Range(pointer, self._live[pointer].size),)

    @abstractmethod
    def close(self) -> None:
        """Give all memory back to the driver, what is live too."""

    def _grew(self, nbytes: int) -> None:
        """Account for memory taken from the driver, or given back to it when negative."""
        self._reserved += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self._reserved)

    def _handle(self, number: int) -> int:
        """Return the driver's stream for a number of the trace."""
        handle = self._streams.get(number)
        if handle is None:
            handle = self._streams[number] = self._driver.create_stream()
        return handle

    def _taken(self, pointer: int) -> Block:
        """Return the live block at `pointer`, which is live no longer."""
        block = self._live.pop(pointer, None)
        if block is None:
            raise UnknownPointerError(f"{self.name}: expected a live pointer from malloc, got {pointer:#x}")
        return block

    def _out_of_memory(self, nbytes: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"{self.name} on {self.device}: expected room for {format_size(nbytes)} beside "
            f"{format_size(self._reserved)} reserved, got none after giving back what it could"
        )


class CachingBaseline(Baseline):
    """A peer that takes segments from the driver, splits them, coalesces on free, and keeps them.

    Subclasses say how the pool grows and, where they differ, how sizes are rounded, which list serves a
    request, and how a block is chosen and split.
    """

    grain: ClassVar[int] = 512
    """Sizes are multiples of it."""

    list_type: ClassVar[type[FreeBlocks]] = FreeBlocks
    """Of the lists of free blocks, one a stream."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self._addresses = AddressOrder()
        self._free_on: dict[int, FreeBlocks] = {}
        self._segments: dict[int, Segment] = {}  # by nominal start

    def malloc(self, nbytes: int, stream: int) -> int:
        """Return the address of `nbytes` bytes. O(log n) but for driver calls."""
        size = self._rounded(nbytes)
        home = self._home(size, stream)
        block = self._choose(home, size)
        if block is not None:
            block.home.remove(block)
        else:
            block = self._grow(home, size)
        if block.size > size and self._splits(block, size):
            rest = split(block, size)
            rest.home.add(rest)
        pointer = block.address + block.segment.shift
        self._live[pointer] = block
        return pointer

    def free(self, pointer: int, stream: int) -> None:
        """Take back what `malloc` returned and coalesce it with its free neighbors. O(log n)."""
        block = self._taken(pointer)
        self._add_free(block, self._freed_to(block, stream))

    def _add_free(self, block: Block, home: FreeBlocks) -> Block:
        """Put a block that is in no list into `home`, as one with the neighbors that are there."""
        block.home = home
        following = block.following
        if following is not None and following.free and following.home is home:
            home.remove(following)
            block.absorb_following()
        previous = block.previous
        if previous is not None and previous.free and previous.home is home:
            home.remove(previous)
            previous.absorb_following()
            block = previous
        home.add(block)
        return block

    def _rounded(self, nbytes: int) -> int:
        """Return the size of the block that serves a request."""
        return max(self.grain, align_up(nbytes, self.grain))

    def _home(self, size: int, stream: int) -> FreeBlocks:  # noqa: ARG002  for policies that look at both
        """Return the list that serves blocks of `size` on a stream."""
        home = self._free_on.get(stream)
        if home is None:
            home = self._free_on[stream] = self.list_type()
        return home

    @abstractmethod
    def _grow(self, home: FreeBlocks, size: int) -> Block:
        """Return a fresh block of at least `size`, in no list, or raise `OutOfMemoryError`."""

    def _lists(self) -> Iterable[FreeBlocks]:
        """Return every list of free blocks."""
        return self._free_on.values()

    def _choose(self, home: FreeBlocks, size: int) -> Block | None:
        """Return the free block that serves `size`, still in its list, or None."""
        return home.best(size)

    def _splits(self, block: Block, size: int) -> bool:  # noqa: ARG002  for policies that look at both
        """Return whether the rest of a block, which is larger than `size`, becomes a block of its own."""
        return True

    def _freed_to(self, block: Block, stream: int) -> FreeBlocks:  # noqa: ARG002  RMM goes by the stream
        """Return the list to which a block goes that was last used on `stream`."""
        return block.home

    def _new_segment(self, size: int, home: FreeBlocks) -> Block:
        """Return a block that is all of a fresh segment; `DriverOutOfMemoryError` changes nothing."""
        pointer = self._driver.allocate(size)
        segment = Segment(pointer, self._addresses.place(size), size)
        self._segments[segment.start] = segment
        self._grew(size)
        return Block(segment.start, size, segment, home)

    def _grown(self, make: Callable[[], Block], size: int, *reliefs: Callable[[], bool]) -> Block:
        """Return what `make` makes; where memory lacks, after each relief that says it gave some back."""
        refused = None
        for relief in (lambda: True, *reliefs):
            if relief():
                try:
                    return make()
                except DriverOutOfMemoryError as error:
                    refused = error
        raise self._out_of_memory(size) from refused

    def _release(self, block: Block) -> None:
        """Give a whole free segment back to the driver."""
        segment = block.segment
        block.home.remove(block)
        del self._segments[segment.start]
        self._addresses.release(segment.start, segment.size)
        self._driver.free(segment.pointer)
        self._grew(-segment.size)

    def _release_whole_segments(self) -> bool:
        """Give every segment back in which nothing is live."""
        for home in self._lists():
            for block in [block for block in home if block.is_whole]:
                self._release(block)
        return True

    def close(self) -> None:
        """Give all memory back to the driver, what is live too."""
        self._live.clear()
        for segment in self._segments.values():
            self._give_back(segment)
        self._segments.clear()
        self._reserved = 0

    def memory(self) -> list[Range]:
        """Return the segments by address."""
        return sorted(Range(segment.pointer, segment.size) for segment in self._segments.values())

    def _give_back(self, segment: Segment) -> None:
        """Give one segment back to the driver, whatever is in it."""
        self._driver.free(segment.pointer)

    def _unmapped(self) -> Iterable[Block]:
        """Return every block that is addresses without memory."""
        return ()

    def check(self) -> None:
        """Prove the invariants: blocks tile their segments, and free ones are in exactly one list. O(n)."""
        self._addresses.check()
        for home in self._lists():
            home.check()
        backed = self._backed_blocks()
        blocks = {block.address: block for block in (*backed, *self._unmapped())}
        for pointer, block in self._live.items():
            if block.free or pointer != block.address + block.segment.shift:
                raise InvariantError(f"{self.name}: live block at {pointer:#x} is marked wrongly")
        for segment in self._segments.values():
            _check_tiling(self.name, segment, blocks.get(segment.start))
        extent = sum(segment.size for segment in self._segments.values())
        known = sum(block.size for block in blocks.values())
        held = self._held_bytes()
        if extent != known or not held == self._reserved <= self.peak_reserved_bytes:
            raise InvariantError(f"{self.name}: {held=} {self._reserved=} {extent=} {known=}")

    def _backed_blocks(self) -> list[Block]:
        """Return the live blocks and those in lists."""
        return [*self._live.values(), *(block for home in self._lists() for block in home)]

    def _held_bytes(self) -> int:
        """Return the physical memory held, counted anew."""
        return sum(block.size for block in self._backed_blocks())


def _check_tiling(name: str, segment: Segment, block: Block | None) -> None:
    """Walk the blocks of a segment from its first."""
    at, previous = segment.start, None
    while block is not None:
        if block.address != at or block.previous is not previous or block.size <= 0:
            raise InvariantError(f"{name}: blocks of the segment at {segment.start:#x} do not tile it")
        if previous is not None and previous.home is block.home and _alike(previous, block):
            raise InvariantError(f"{name}: two blocks at {at:#x} should be one")
        at += block.size
        previous, block = block, block.following
    if at != segment.start + segment.size:
        raise InvariantError(f"{name}: blocks of the segment at {segment.start:#x} end at {at:#x}")


def _alike(block: Block, following: Block) -> bool:
    return (block.free and following.free) or not (block.mapped or following.mapped)
