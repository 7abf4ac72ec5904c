"""Home: where every chunk of an elastic heap is mapped once, and stays until it is given back.

Three views of one range of addresses, which `check()` proves to agree: the *arena* has the blocks
and gaps, the *chunks* are the physical memory under them, and the *addresses* say what of the
reservations is mapped. Blocks and gaps cover exactly what chunks cover; chunks, with mappings
whose undo failed, are exactly the addresses taken.

Failure. Mapping takes several driver calls; each registers its undo. A mapping that even the undo
cannot take back is *loose*: its chunk is pinned and its addresses stay taken until a later attempt.
A chunk is loose, too, while a call is under way of which an interrupt would leave unknown whether it
mapped or unmapped it: `mend` then takes it away, and makes the views anew from what is certain.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Final

from smartpool.errors import DriverError, InvariantError
from smartpool.memory.arena import Arena, Range, Uses
from smartpool.memory.chunks import ChunkMap, MappedChunk
from smartpool.pool.heap.device_memory import DeviceMemory
from smartpool.pool.heap.returning import Returning
from smartpool.pool.heap.undoing import Undo
from smartpool.units import align_up

__all__ = ["Home"]

_RESERVE_FACTOR: Final = 8  # times the device's memory; addresses are nearly free
_SITES_EXAMINED: Final = 32
_MANY: Final = 4  # chunks cost more to make and give back than a question to the driver


class Home:
    """Arena, chunks and addresses. The pool's lock guards it.

    Parameters
    ----------
    memory
        The device's physical memory.

    Attributes
    ----------
    arena
        Blocks and gaps.
    chunks
        The chunks under them.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self.arena = Arena()
        self.chunks = ChunkMap()
        self._memory = memory
        self._driver = memory.driver
        self._addresses = Arena()  # its blocks are mappings, its gaps unmapped addresses
        self._reservations: list[Range] = []
        self._loose: dict[int, MappedChunk] = {}  # mappings that may be there or not, by start
        self._return = Returning()

    def __repr__(self) -> str:
        return f"<Home: {self.arena!r} on {len(self.chunks)} chunks>"

    # ------------------------------------------------------------------ growing

    def find_site(self, size: int, *, fresh: bool = False) -> tuple[int, int]:
        """Return (address, bytes missing there) for a gap of `size` bytes.

        Best is behind the largest gap that ends where nothing is mapped; with `fresh`, all of
        `size` is to be mapped, and the best is simply an end.
        """
        granularity = self._driver.granularity
        best: tuple[int, int] | None = None
        for start, room in islice(self._addresses.gaps_by_size(), _SITES_EXAMINED):
            gap = None if fresh else self.arena.gap_before(start)
            missing = align_up(size - gap.size if gap else size, granularity)
            if room >= missing and (best is None or missing < best[1]):
                best = (start, missing)
        if best is None:
            total = self._driver.memory_info().total
            reserved = align_up(max(_RESERVE_FACTOR * total, size), granularity)
            reservation = Range(self._driver.reserve(reserved), reserved)
            self._reservations.append(reservation)
            self._addresses.extend(*reservation, barrier=True)
            best = (reservation.start, align_up(size, granularity))
        return best

    def room_at(self, site: int) -> int:
        """Return the bytes of unmapped addresses from `site` on."""
        hole = self._addresses.gap_at(site)
        return 0 if hole is None else hole.size

    def map(self, start: int, sizes: Iterable[int], undo: Undo) -> Range:
        """Map new chunks of `sizes` bytes at `start` as one gap; `undo` learns how to take them back.

        Many chunks of which the device cannot hold all are refused before one is made.
        """
        sizes = list(sizes)
        if len(sizes) > _MANY:
            self._memory.check_room("create_chunk", sum(sizes))
        chunks: list[MappedChunk] = []
        address = start
        for chunk_size in sizes:
            chunk = MappedChunk(address, chunk_size, self._memory.create_chunk(chunk_size))
            undo.callback(self._memory.abandon_chunk, chunk.handle)
            hole = self._addresses.gap_at(chunk.start)
            if hole is None:
                raise InvariantError(f"no addresses at {chunk.start:#x} in {self._addresses!r}")
            self._addresses.place(hole, chunk.size)
            undo.callback(self._undo_map, chunk)
            self._loose[chunk.start] = chunk  # until all is done
            self._driver.map_chunk(chunk.start, chunk.handle)
            chunks.append(chunk)
            address = chunk.end
        part = Range(start, address - start)
        self._driver.enable_access(*part)
        for chunk in chunks:
            self.chunks.add(chunk)
            undo.callback(self.chunks.remove, chunk.start)
        self.arena.extend(*part)
        undo.callback(self._retract, part)
        for chunk in chunks:
            del self._loose[chunk.start]
        self._memory.tell("map", *part)
        undo.callback(self._memory.tell, "unmap", *part)
        return part

    def _retract(self, part: Range) -> None:
        self.arena.retract(self.gap_around(part), *part)

    def _undo_map(self, chunk: MappedChunk) -> None:
        if chunk.start not in self._addresses:
            return  # it went with the others
        self._loose[chunk.start] = chunk
        self._memory.pin(chunk.handle)
        with suppress(DriverError):
            self.unmap_loose()

    # ------------------------------------------------------------------ taking pieces

    def gap_around(self, piece: Range) -> Range:
        """Return the gap that holds `piece`, which is free."""
        gap = self.arena.gap_at(piece.start) or self.arena.gap_before(piece.end)
        if gap is None or gap.start > piece.start or gap.end < piece.end:
            gap = self.arena.gap_around(piece.start)
        if gap is None or gap.end < piece.end:
            raise InvariantError(f"{piece} is not free in {self.arena!r}")
        return gap

    def take(self, pieces: tuple[Range, ...], undo: Undo) -> None:
        """Make each piece a block of the home arena."""
        for piece in pieces:
            gap = self.gap_around(piece)
            undo.callback(self._untake, piece, self.arena.uses_of(gap))
            self.arena.place_at(gap, *piece)

    def _untake(self, piece: Range, uses: Uses) -> None:
        if piece.start in self.arena:
            self.arena.free(piece.start, uses)

    # ------------------------------------------------------------------ giving back

    def release(self, gap: Range, chunk: MappedChunk) -> None:
        """Give the idle `chunk`, which lies in `gap` and is mapped nowhere else, back to the device."""
        self._loose[chunk.start] = chunk
        try:
            self._driver.unmap(chunk.start, chunk.size)
        except DriverError:
            del self._loose[chunk.start]  # it is mapped, as before
            raise
        self.arena.retract(gap, chunk.start, chunk.size)
        self.chunks.remove(chunk.start)
        self._addresses.free(chunk.start)
        del self._loose[chunk.start]
        self._memory.release_chunk(chunk.handle)
        self._memory.tell("unmap", chunk.start, chunk.size)

    def unmap_loose(self) -> None:
        """Try again to take back the mappings whose undo failed."""
        for start, chunk in list(self._loose.items()):
            self._driver.unmap(start, chunk.size)
            del self._loose[start]
            self._addresses.free(start)
            self._memory.unpin(chunk.handle)

    def unreserve(self) -> None:
        """Give the addresses back. Nothing may be mapped any more."""
        while self._reservations:
            self._return(self._driver.unreserve, *self._reservations[-1])
            self._addresses.mend(self._reservations[:-1], barrier=True)
            self._return.done(*self._reservations.pop())

    def mend(self, uses: Uses) -> None:
        """Make the three views agree after an exception in the middle; `uses` may touch any of the gaps.

        Certain are the blocks, the reservations, and the chunks that are neither loose nor unwanted.
        """
        loose = {chunk.handle for chunk in self._loose.values()}
        self.chunks.mend(lambda chunk: chunk.handle not in loose and self._memory.wants(chunk.handle))
        mapped = [Range(chunk.start, chunk.size) for chunk in self.chunks]
        self.arena.mend(_union(mapped), uses=uses)
        mapped += [Range(start, chunk.size) for start, chunk in self._loose.items()]
        self._addresses.mend(self._reservations, blocks=mapped, barrier=True)
        at_home = {chunk.handle for chunk in self.chunks}
        self._memory.mend(at_home | self._memory.segments().keys(), loose)

    def check(self) -> None:
        """Prove that the three views agree; `InvariantError` when they do not."""
        for part in (self.arena, self.chunks, self._addresses):
            part.check()
        mappings = {(chunk.start, chunk.size) for chunk in self.chunks}
        mappings |= {(start, chunk.size) for start, chunk in self._loose.items()}
        if mappings != {tuple(block) for block in self._addresses.blocks()}:
            raise InvariantError(f"mappings {mappings} are not the taken addresses of {self!r}")
        covered = _union([Range(chunk.start, chunk.size) for chunk in self.chunks])
        if covered != _union(self.arena.blocks() + self.arena.gaps()):
            raise InvariantError("a block or a gap lies where no chunk is at home")


def _union(ranges: list[Range]) -> list[Range]:
    """Return the maximal runs that `ranges` cover."""
    runs: list[Range] = []
    for item in sorted(ranges):
        if runs and runs[-1].end == item.start:
            runs[-1] = Range(runs[-1].start, runs[-1].size + item.size)
        else:
            runs.append(item)
    return runs
