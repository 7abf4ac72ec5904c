"""Elastic arenas: blocks anywhere in reserved addresses, with chunks mapped where they are needed.

Problem: physical memory that is free in the wrong place. An allocator that cannot move blocks
keeps it, and grows.
Method: addresses are nearly free, so an arena reserves far more of them than the device has
memory. When no mapped gap fits a request, chunks are mapped behind the gap that lacks least, or at
fresh addresses. They are new as long as the budget of the policy allows it; after that they are
idle chunks from elsewhere: a chunk on which no block lies is mapped a second time where it is
needed, at once, since later work of the same stream is ordered behind what may still run on the
old mapping (work of other streams waits for the gap's uses as it would in place). The old mapping
is *retired*: no block is placed there again, and it is unmapped when an event shows that the
device is done with it. No byte is copied, no pointer moves, the host never waits.
Source: GMLake (ASPLOS 2024) stitches with a second mapping; PyTorch's expandable segments grow in
place. Stealing with a retired old mapping is ours.
Bound: a request is refused only when live blocks, with the parts of their chunks that no other
block can use, and the request together exceed the cap.

Failure. Growing takes several driver calls; each registers its undo, and a call that fails leaves
arena, chunks and addresses as they were. An unmap that fails during such an undo leaves the
mapping retired: a leak of addresses, never a dangling block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from smartpool.errors import DriverError, DriverOutOfMemoryError, InvariantError
from smartpool.memory.arena import Arena, Range, Uses, join_uses
from smartpool.memory.chunks import ChunkMap, MappedChunk
from smartpool.pool.device_memory import DeviceMemory
from smartpool.pool.policy import Policy
from smartpool.pool.streams import StreamClock
from smartpool.units import align_up

__all__ = ["ElasticArena"]

_RESERVE_FACTOR = 8
_SITES_EXAMINED = 32


@dataclass(frozen=True, slots=True)
class _Retired:
    """A mapping under which nothing is placed any more, and whose work may still touch it."""

    chunk: MappedChunk
    uses: Uses


@dataclass(frozen=True, slots=True)
class _Site:
    """Where chunks go: at `start`, `missing` bytes at least, `room` at most; `gap` lies before it."""

    start: int
    missing: int
    room: int
    gap: Range | None


class ElasticArena:
    """One arena with its chunks. The pool's lock guards it.

    Parameters
    ----------
    memory
        The device's physical memory.
    clock
        Stream order.
    policy
        How large chunks are, and when to steal.
    siblings
        All elastic arenas of the pool, this one included: where idle chunks may be taken from.
    """

    def __init__(
        self, memory: DeviceMemory, clock: StreamClock, policy: Policy, siblings: list[ElasticArena]
    ) -> None:
        self.arena = Arena()
        self.chunks = ChunkMap()
        self._memory = memory
        self._driver = memory.driver
        self._clock = clock
        self._policy = policy
        self._siblings = siblings
        self._addresses = Arena()  # its blocks are mappings, its gaps unmapped addresses
        self._reservations: list[Range] = []
        self._retired: deque[_Retired] = deque()
        siblings.append(self)

    def __repr__(self) -> str:
        return f"<ElasticArena: {self.arena!r} on {len(self.chunks)} chunks>"

    # ------------------------------------------------------------------ growing

    def grow(self, size: int, peak_live_bytes: int, home_uses: Uses) -> None:
        """Make a gap of at least `size` bytes, by new chunks or by idle ones from elsewhere.

        `home_uses` stand for the gaps that carry no uses of their own. Raises
        `DriverOutOfMemoryError` when neither the device nor idle chunks can give enough, and what
        the driver raises; nothing has changed then.
        """
        self.reap()
        site = self._find_site(size)
        with ExitStack() as undo:
            chunks, uses = self._gather(site, peak_live_bytes, home_uses, undo)
            start = site.start
            for handle, chunk_size in chunks:
                self._map(MappedChunk(start, chunk_size, handle), undo)
                start += chunk_size
            self._driver.enable_access(site.start, start - site.start)
            undo.pop_all()
        start = site.start
        for handle, chunk_size in chunks:
            self.chunks.add(MappedChunk(start, chunk_size, handle))
            start += chunk_size
        self.arena.extend(site.start, start - site.start, uses=uses)

    def _find_site(self, size: int) -> _Site:
        """Prefer the addresses behind the largest gap that ends where nothing is mapped."""
        granularity = self._driver.granularity
        best: _Site | None = None
        slack = self._policy.largest_chunk
        for examined, hole in enumerate(self._addresses.gaps_by_size()):
            if examined == _SITES_EXAMINED or hole.size < granularity:
                break
            gap = self.arena.gap_before(hole.start)
            missing = align_up(size - gap.size if gap else size, granularity)
            if hole.size >= missing + slack and (best is None or missing < best.missing):
                best = _Site(hole.start, missing, hole.size, gap)
        if best is None:
            hole = self._reserve(align_up(size, granularity) + slack)
            best = _Site(hole.start, align_up(size, granularity), hole.size, None)
        return best

    def _reserve(self, at_least: int) -> Range:
        granularity = self._driver.granularity
        total = self._driver.memory_info().total
        size = align_up(max(_RESERVE_FACTOR * total, at_least), granularity)
        reservation = Range(self._driver.reserve(size), size)
        self._reservations.append(reservation)
        self._addresses.extend(*reservation, barrier=True)
        return reservation

    def _gather(
        self, site: _Site, peak_live_bytes: int, home_uses: Uses, undo: ExitStack
    ) -> tuple[list[tuple[int, int]], Uses]:
        """Return (handle, size) of chunks for `site`, and the uses that stolen ones bring along."""
        memory, granularity = self._memory, self._driver.granularity
        chunks: list[tuple[int, int]] = []
        uses: Uses = None
        missing, room = site.missing, site.room
        largest = self._policy.chunk_bytes(missing, memory.reserved_bytes)
        may_create = self._policy.budget_bytes(peak_live_bytes) - memory.reserved_bytes >= missing
        idle = self._idle_chunks(site.gap)
        while missing > 0:
            found = None if may_create else next(idle, None)
            if found is not None:
                owner, gap, chunk = found
                if chunk.size > room:
                    continue
                uses = join_uses(uses, owner.arena.uses_of(gap))
                owner._give_up(gap, chunk, home_uses, undo)  # noqa: SLF001 - a sibling
                handle, size = chunk.handle, chunk.size
            else:
                size = min(largest, missing)
                try:
                    handle = memory.create_chunk(size)
                except DriverOutOfMemoryError:
                    if may_create:
                        may_create = False  # idle chunks first, then what is left of the device
                    elif largest > granularity:
                        largest = align_up(min(largest, missing) // 2, granularity)
                    else:
                        raise
                    continue
                undo.callback(memory.release_chunk, handle)
            chunks.append((handle, size))
            missing -= size
            room -= size
        return chunks, uses

    def _map(self, chunk: MappedChunk, undo: ExitStack) -> None:
        hole = self._addresses.gap_at(chunk.start)
        if hole is None or hole.size < chunk.size:
            raise InvariantError(
                f"no {chunk.size} unmapped addresses at {chunk.start:#x}: {self._addresses!r}"
            )
        self._driver.map_chunk(chunk.start, chunk.handle)
        self._addresses.place(hole, chunk.size)
        undo.callback(self._undo_map, chunk)

    def _undo_map(self, chunk: MappedChunk) -> None:
        try:
            self._driver.unmap(chunk.start, chunk.size)
        except DriverError:
            self._retired.append(_Retired(chunk, None))
            self._memory.aliases[chunk.handle] += 1
        else:
            self._addresses.free(chunk.start)

    # ------------------------------------------------------------------ giving up chunks

    def _idle_chunks(self, spared: Range | None) -> Iterator[tuple[ElasticArena, Range, MappedChunk]]:
        """Yield chunks on which no block lies, smallest gaps first: (owner, gap around it, chunk).

        Each is to be taken (`_give_up`) or left before the next is asked for. Nothing is yielded
        out of `spared`, the gap of this arena that is to be filled up.
        """
        for owner in self._siblings:
            for gap in list(owner.arena.fitting(self._driver.granularity)):
                if owner is self and gap == spared:
                    continue
                rest = gap
                for chunk in list(owner.chunks.inside(gap.start, gap.end)):
                    yield owner, rest, chunk
                    rest = owner.arena.gap_at(chunk.end) or rest

    def _give_up(self, gap: Range, chunk: MappedChunk, home_uses: Uses, undo: ExitStack) -> None:
        """Take an idle chunk out of `gap`; its mapping is retired, its handle free for another."""
        uses = self.arena.uses_of(gap)
        self.arena.retract(gap, chunk.start, chunk.size)
        self.chunks.remove(chunk.start)
        retired = _Retired(chunk, uses or home_uses)
        self._retired.append(retired)
        self._memory.aliases[chunk.handle] += 1

        def take_back() -> None:
            self._memory.aliases[chunk.handle] -= 1
            self._retired.remove(retired)
            self.chunks.add(chunk)
            self.arena.extend(chunk.start, chunk.size, uses=uses)

        undo.callback(take_back)

    def reap(self, *, wait: bool = False) -> None:
        """Unmap retired mappings with which the device is done; with `wait`, all of them."""
        retired = self._retired
        while retired:
            chunk, uses = retired[0].chunk, retired[0].uses
            if wait:
                self._clock.synchronize(uses)
            elif not self._clock.idle(uses):
                return
            self._driver.unmap(chunk.start, chunk.size)
            retired.popleft()
            self._addresses.free(chunk.start)
            self._memory.unalias(chunk.handle)

    def release_idle(self, limit_bytes: int, home_uses: Uses, *, wait: bool = False) -> int:
        """Give idle chunks back to the device, up to about `limit_bytes`; return the bytes given back.

        Without `wait`, chunks with which the device may not be done are left.
        """
        for sibling in self._siblings:
            sibling.reap(wait=wait)
        released = 0
        for gap in list(self.arena.gaps_by_size()):
            if released >= limit_bytes or gap.size < self._driver.granularity:
                break
            uses = self.arena.uses_of(gap) or home_uses
            if wait:
                self._clock.synchronize(uses)
            elif not self._clock.idle(uses):
                continue
            rest = gap
            for chunk in list(self.chunks.inside(gap.start, gap.end)):
                if released >= limit_bytes:
                    break
                if self._memory.aliases.get(chunk.handle):
                    continue  # unmapped elsewhere first: the next pass takes it
                self._driver.unmap(chunk.start, chunk.size)
                self.arena.retract(rest, chunk.start, chunk.size)
                self.chunks.remove(chunk.start)
                self._addresses.free(chunk.start)
                rest = self.arena.gap_at(chunk.end) or rest
                self._memory.release_chunk(chunk.handle)
                released += chunk.size
        return released

    def close(self) -> None:
        """Give everything back. No block may be live, and the device must be idle."""
        for retired in self._retired:
            self._driver.unmap(retired.chunk.start, retired.chunk.size)
        for chunk in self.chunks:
            self._driver.unmap(chunk.start, chunk.size)
            self._memory.release_chunk(chunk.handle)
        for reservation in self._reservations:
            self._driver.unreserve(*reservation)
        self._reservations.clear()

    def check(self) -> None:
        """Prove that blocks, gaps, chunks and addresses agree."""
        self.arena.check()
        self.chunks.check()
        self._addresses.check()
        mappings = sorted(
            [(chunk.start, chunk.size) for chunk in self.chunks]
            + [(item.chunk.start, item.chunk.size) for item in self._retired]
        )
        if mappings != [tuple(block) for block in self._addresses.blocks()]:
            raise InvariantError(f"mappings {mappings} are not the taken addresses of {self._addresses!r}")
        if self.arena.extent_bytes != self.chunks.mapped_bytes:
            raise InvariantError(f"extent {self.arena.extent_bytes} != mapped {self.chunks.mapped_bytes}")
        covered = _union(Range(chunk.start, chunk.size) for chunk in self.chunks)
        if covered != _union(self.arena.blocks() + self.arena.gaps()):
            raise InvariantError("a block or a gap lies where no chunk is mapped")


def _union(ranges: Iterable[Range]) -> list[Range]:
    """Return the maximal runs that `ranges` cover."""
    runs: list[Range] = []
    for item in sorted(ranges):
        if runs and runs[-1].end == item.start:
            runs[-1] = Range(runs[-1].start, runs[-1].size + item.size)
        else:
            runs.append(item)
    return runs
