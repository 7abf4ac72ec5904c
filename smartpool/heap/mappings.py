"""Mappings: which chunk is mapped where in reserved addresses, written here and nowhere else.

A heap has two of these books. The *primary* mappings show each chunk once, for as long as it is held, and
own it: a chunk is made when it is mapped, and given back when it is unmapped. The *alias* mappings show
chunks of the first a second time, side by side (`smartpool.heap.windows`). What a chunk holds (blocks,
gaps) and what a window shows is their owners' business.

Invariant, proved by `check()`::

    mappings + free addresses == reservations

Failure. A growth of any number of chunks is one step with one undo: what was mapped when the driver refuses
is unmapped by one call. A mapping is *doubtful* while a call is under way that makes it or ends it. When
the undo is refused as well, or an interrupt leaves unknown whether the call was made, it stays so, keeps its
chunk and its addresses, and `settle` ends it later. The table is right at any line; free addresses, and the
sum of what is held, follow from it, and `mend` makes them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from itertools import pairwise
from typing import Final

from smartpool.containers.range_map import Range, RangeMap
from smartpool.driver.returning import Returning
from smartpool.errors import DriverError, InvariantError
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.gaps import size_then_address
from smartpool.units import align_up

__all__ = ["Mapping", "Mappings", "State"]

_RESERVE_FACTOR: Final = 8  # times the device's memory; addresses are nearly free
_MANY: Final = 4  # chunks cost more to make and give back than a question to the driver


class State(Enum):
    """What is known of a mapping."""

    MAPPED = "mapped, and the device may use it"
    DOUBTFUL = "mapped or not"
    UNMAPPED = "not mapped any more, and its chunk and its addresses are not free yet"
    ASLEEP = "not mapped, without a chunk; its addresses are kept for one"


class Mapping:
    """A chunk at [start, start + size).

    Attributes
    ----------
    state
        What is known of it.
    kept
        Whether it sleeps, or is on its way there or back: it stays in the table in whatever state.
    """

    __slots__ = ("chunk", "kept", "size", "start", "state")

    def __init__(self, start: int, size: int, chunk: int) -> None:
        self.start = start
        self.size = size
        self.chunk = chunk
        self.state = State.DOUBTFUL
        self.kept = False

    def __repr__(self) -> str:
        return f"<Mapping: chunk {self.chunk:#x} at {self.start:#x}, {self.size} bytes, {self.state.name}>"

    @property
    def end(self) -> int:
        """The first address behind the mapping."""
        return self.start + self.size


class Mappings:
    """One table of mappings, and the addresses that are free for more. The pool's lock guards it.

    Parameters
    ----------
    memory
        The device's physical memory.
    primary
        Whether chunks are made and given back with their mappings.

    Attributes
    ----------
    table
        The mappings, by address.
    addresses
        What is reserved, and taken by none: maximal ranges, each within one reservation.
    """

    def __init__(self, memory: DeviceMemory, *, primary: bool) -> None:
        self.table: RangeMap[Mapping] = RangeMap()
        self.addresses: RangeMap[Range] = RangeMap()
        self._memory = memory
        self._driver = memory.driver
        self._primary = primary
        self._reservations: list[Range] = []
        self._return = Returning()
        if primary:
            memory.held.append(lambda: self.held_bytes)

    def __repr__(self) -> str:
        kind = "primary" if self._primary else "alias"
        return f"<Mappings: {len(self.table)} {kind}, in {len(self._reservations)} reservations>"

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Mapping]:
        """Yield what is mapped or sleeps, by address."""
        return (mapping for mapping in self.table if mapping.state is State.MAPPED or mapping.kept)

    @property
    def held_bytes(self) -> int:
        """Bytes of the chunks. O(n)."""
        return sum([mapping.size for mapping in self.table if mapping.state is not State.ASLEEP])

    # ------------------------------------------------------------------ addresses

    def reserve(self, size: int) -> Range:
        """Reserve addresses, `size` bytes at least and enough for long, and return them: they are free."""
        total = self._driver.memory_info().total
        reserved = align_up(max(_RESERVE_FACTOR * total, size), self._driver.granularity)
        reservation = Range(self._driver.reserve(reserved), reserved)
        self._reservations.append(reservation)
        self.addresses.add(reservation)
        return reservation

    def sites(self, most: int) -> list[Range]:
        """Return free addresses, the largest first, `most` at most."""
        free = [*self.addresses]
        if len(free) > 1:
            free.sort(key=size_then_address, reverse=True)
        return free[:most]

    def find(self, size: int, alignment: int) -> tuple[Range, int]:
        """Return free addresses, and where in them `size` bytes begin: as low as the alignment lets them."""
        alignment = max(alignment, self._driver.granularity)
        for free in self.addresses:
            start = free.start + alignment - 1 & -alignment
            if start + size <= free.start + free.size:
                return free, start
        free = self.reserve(size + alignment)
        return free, free.start + alignment - 1 & -alignment

    def give(self, start: int, size: int) -> None:
        """Make [start, start + size) free, joined with what is free beside it in the same reservation."""
        end, edges = start + size, [reservation.start for reservation in self._reservations]
        behind = self.addresses.get(end)
        if behind is not None and end not in edges:
            self.addresses.remove(end)
            end = behind.end
        before = self.addresses.at(start - 1)
        if before is not None and start not in edges:
            self.addresses.remove(before.start)
            start = before.start
        self.addresses.add(Range(start, end - start))

    def unreserve(self) -> None:
        """Give the addresses back. Nothing may be mapped any more."""
        while self._reservations:
            self._return(self._driver.unreserve, *self._reservations[-1])
            self._rebuild(self._reservations[:-1], ())
            self._return.done(*self._reservations.pop())

    # ------------------------------------------------------------------ mapping

    def map(self, free: Range, start: int, sizes: Sequence[int], chunks: Sequence[int] = ()) -> None:
        """Map chunks of `sizes` bytes one behind the other from `start` on, in `free` addresses.

        The primary mappings make new chunks; aliases are of `chunks`. All of them are mapped, or none.
        """
        total, memory = sum(sizes), self._memory
        if self._primary and (total > memory.cap_bytes - memory.reserved_bytes or len(sizes) > _MANY):
            memory.check_room("create_chunk", total, of_device=len(sizes) > _MANY)
        self.addresses.remove(free.start)
        for part in (Range(free.start, start - free.start), Range(start + total, free.end - start - total)):
            if part.size:
                self.addresses.add(part)
        driver, address, made = self._driver, start, []
        try:
            for place, size in enumerate(sizes):
                chunk = driver.create_chunk(size) if self._primary else chunks[place]
                mapping = Mapping(address, size, chunk)
                self.table.add(mapping)
                if self._primary:
                    memory.reserved_bytes += size
                driver.map_chunk(address, chunk)
                made.append(mapping)
                address += size
            driver.enable_access(start, total)
        except DriverError:
            self.take_back(start, total)
            raise
        for mapping in made:
            mapping.state = State.MAPPED

    def take_back(self, start: int, size: int) -> None:
        """Undo `map`, while another failure is under way: what the driver refuses is left for `settle`."""
        with suppress(DriverError):
            here = self.table.inside(start, start + size)
            end = here[-1].end if here else start
            if end < start + size:
                self.give(end, start + size - end)
            for mapping in here:
                mapping.state = State.DOUBTFUL  # it stays so where the driver refuses
            self.unmap(here)
            for mapping in here:
                self.drop(mapping)

    def unmap(self, mappings: Sequence[Mapping]) -> None:
        """Unmap what the device is done with, by one call where it lies side by side. See `drop`."""
        mappings = [mapping for mapping in mappings if mapping.state is not State.ASLEEP]
        if not mappings:
            return
        start, span = mappings[0].start, mappings[-1].end - mappings[0].start
        if len(mappings) > 1 and sum([mapping.size for mapping in mappings]) < span:
            for mapping in mappings:
                self.unmap([mapping])
            return
        before = [mapping.state for mapping in mappings]
        for mapping in mappings:
            mapping.state = State.DOUBTFUL
        try:
            self._driver.unmap(start, span)
        except DriverError:  # it is mapped, as before
            for mapping, state in zip(mappings, before, strict=True):
                mapping.state = state
            raise
        for mapping in mappings:
            mapping.state = State.UNMAPPED

    def drop(self, mapping: Mapping, *, addresses: bool = True) -> None:
        """Forget what is unmapped: give its chunk back if it is ours, and its addresses if asked to."""
        owned = self._primary and mapping.state is not State.ASLEEP
        if owned:
            self._return(self._driver.release_chunk, mapping.chunk)
        self.table.remove(mapping.start)
        if owned:
            self._memory.gave_back(mapping.size)
            self._return.done(mapping.chunk)
        if addresses:
            self.give(mapping.start, mapping.size)

    def settle(self, held: Sequence[Range] = ()) -> None:
        """End the mappings that a failure left behind; the device must be done with them.

        The addresses of those inside of a range that is `held` stay taken.
        """
        for mapping in [one for one in self.table if one.state is not State.MAPPED and not one.kept]:
            if mapping.state is State.DOUBTFUL:
                self.unmap([mapping])
            self.drop(mapping, addresses=not any(one.start <= mapping.start < one.end for one in held))

    # ------------------------------------------------------------------ sleep

    def lay_down(self, mappings: Iterable[Mapping]) -> None:
        """Unmap what is `kept`, and give its chunks back if they are ours. Repeatable after a failure."""
        for mapping in mappings:
            if mapping.state in (State.MAPPED, State.DOUBTFUL):
                self.unmap([mapping])
            if mapping.state is State.ASLEEP:
                continue
            if self._primary:
                self._return(self._driver.release_chunk, mapping.chunk)
            mapping.state = State.ASLEEP
            if self._primary:
                self._memory.gave_back(mapping.size)
                self._return.done(mapping.chunk)

    def get_up(self, mappings: Iterable[Mapping], chunks: Iterable[int] = ()) -> None:
        """Map what sleeps where it was: new chunks, or aliases of `chunks`. Repeatable after a failure."""
        given = iter(chunks)
        for mapping in mappings:
            chunk = mapping.chunk if self._primary else next(given)
            if mapping.state is State.MAPPED:
                continue
            if mapping.state is State.DOUBTFUL:
                self.unmap([mapping])
            if mapping.state is State.ASLEEP and self._primary:
                chunk = self._driver.create_chunk(mapping.size)
                self._memory.reserved_bytes += mapping.size
            mapping.chunk, mapping.state = chunk, State.DOUBTFUL
            self._driver.map_chunk(mapping.start, chunk)
            self._driver.enable_access(mapping.start, mapping.size)
            mapping.state = State.MAPPED

    # ------------------------------------------------------------------ recovery

    def mend(self, held: Iterable[Range] = ()) -> None:
        """Make what follows from the table follow again, after an exception in the middle of a call.

        `held` are ranges of addresses that are taken beside the mappings.
        """
        self.table.rebuild()
        self._rebuild(self._reservations, [*held, *(Range(item.start, item.size) for item in self.table)])
        if self._primary:
            self._memory.recount()

    def _rebuild(self, reservations: Iterable[Range], taken: Iterable[Range]) -> None:
        """Make the free addresses anew: what of `reservations` is in none of `taken`, which may overlap."""
        free, rest = list[Range](), sorted(taken)
        for start, size in reservations:
            at = start
            for part in (part for part in rest if start <= part.start < start + size):
                if part.start > at:
                    free.append(Range(at, part.start - at))
                at = max(at, part.end)
            if at < start + size:
                free.append(Range(at, start + size - at))
        self.addresses = RangeMap()
        for part in free:
            self.addresses.add(part)

    def check(self, held: Sequence[Range] | None = None) -> None:
        """Prove the invariant; `held` are the ranges that are taken, where those are not the mappings."""
        self.table.check()
        self.addresses.check()
        taken = [Range(mapping.start, mapping.size) for mapping in self.table] if held is None else held
        every = sorted([*taken, *self.addresses])
        if any(low.end > high.start for low, high in pairwise(every)):
            raise InvariantError(f"addresses are taken and free, or taken twice, in {self!r}: {every}")
        if union(every) != union(self._reservations):
            raise InvariantError(f"what is taken and free is not what is reserved in {self!r}: {every}")


def union(ranges: Iterable[Range]) -> list[Range]:
    """Return the maximal runs that `ranges`, which do not overlap, cover."""
    runs: list[Range] = []
    for start, size in sorted(ranges):
        if runs and runs[-1].end == start:
            runs[-1] = Range(runs[-1].start, runs[-1].size + size)
        else:
            runs.append(Range(start, size))
    return runs
