"""Who holds what: raw memory, reservations, chunks and mappings, in pure integers.

The rules of the protocol stand here once: `cpu` and `model` have this book built in, and `CheckedDriver`
(`smartpool.driver.checked`) has it for any other driver. Every method validates first and raises
`DriverError` before it changes anything; what it then changes, one other method undoes, so a driver does
"book, then act, and on failure un-book". Invariants, proved by `check()`:

* raw ranges, and reservations, are disjoint; every mapping lies inside one reservation;
* mappings are disjoint, and each covers its whole chunk;
* `chunk.maps` == the number of mappings of the chunk;
* the footprint, where there is one, counts the same raw memory and chunks.

The book has no lock: its driver holds one around every method but `check_size` and `check_granular`.

Interrupts. Ctrl-C may end a method at any line. What is held is written down in four dictionaries
(raw memory, reservations, chunks, mappings), each entry in one step; everything else can be had
from them. So a method marks the book as inconsistent while it writes, and the next one that finds the
mark recovers the rest. A call that was interrupted has happened or has not; the book is sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smartpool.containers.range_map import Range, RangeMap
from smartpool.driver.footprint import Footprint
from smartpool.driver.protocol import MappedRange, refusal
from smartpool.errors import InvariantError

__all__ = ["MOST_ADDRESSES", "AddressBook", "Chunk", "Mapping"]

MOST_ADDRESSES: Final = 1 << 57
"""The largest reservation that makes sense: five levels of page tables."""


@dataclass(slots=True, eq=False)
class Chunk:
    """Physical memory: its size, and at how many addresses it is mapped now."""

    size: int
    maps: int = 0


@dataclass(slots=True, eq=False)
class Mapping:
    """A chunk mapped whole at `start`; `accessible` once access was enabled after the map."""

    start: int
    size: int
    handle: int
    accessible: bool = False


class AddressBook:
    """The state of one device's addresses.

    Parameters
    ----------
    granularity
        Bytes; sizes and addresses of reservations, chunks and mappings are multiples of it.
    footprint
        Counts the physical memory, where nobody else does.
    """

    __slots__ = ("_footprint", "_inconsistent", "_mappings", "_raw", "_reservations", "chunks", "granularity")

    def __init__(self, granularity: int, footprint: Footprint | None = None) -> None:
        self.granularity = granularity
        self._footprint = footprint
        self._inconsistent = False
        self.chunks: dict[int, Chunk] = {}
        self._raw: RangeMap[Range] = RangeMap()
        self._reservations: RangeMap[Range] = RangeMap()
        self._mappings: RangeMap[Mapping] = RangeMap()

    @property
    def footprint(self) -> Footprint:
        """The physical memory that is held. Only for books that were given one."""
        if self._inconsistent:
            self._recover()
        assert self._footprint is not None
        return self._footprint

    # --- raw memory ---

    def add_raw(self, address: int, size: int) -> None:
        """Record what `allocate` returned. Undone by `remove_raw`."""
        if self._inconsistent:
            self._recover()
        self._inconsistent = True
        self._raw.add(Range(address, size))
        if self._footprint is not None:
            self._footprint.add_raw(size)
        self._inconsistent = False

    def remove_raw(self, address: int) -> int:
        """Forget raw memory and return its size. Undone by `add_raw`."""
        if self._inconsistent:
            self._recover()
        raw = self._raw.get(address)
        if raw is None:
            raise refusal("free", "pass an address that allocate returned, once", address=address)
        size = raw.size
        self._inconsistent = True
        self._raw.remove(address)
        if self._footprint is not None:
            self._footprint.remove_raw(size)
        self._inconsistent = False
        return size

    # --- reservations and chunks ---

    def check_size(self, call: str, size: int) -> None:
        """Refuse a size of raw memory that is not positive."""
        if size <= 0:
            raise refusal(call, "expected a size of at least 1 byte", size=size)

    def check_granular(self, call: str, size: int) -> None:
        """Refuse a size that is not a positive multiple of the granularity."""
        if size <= 0 or size % self.granularity:
            raise refusal(call, f"expected a positive multiple of {self.granularity} bytes", size=size)
        if call == "reserve" and size > MOST_ADDRESSES:
            raise refusal(
                call, f"expected at most {MOST_ADDRESSES} bytes: no processor has more addresses", size=size
            )

    def add_reservation(self, address: int, size: int) -> None:
        """Record what `reserve` returned. Undone by `remove_reservation`."""
        if self._inconsistent:
            self._recover()
        self._inconsistent = True
        self._reservations.add(Range(address, size))
        self._inconsistent = False

    def remove_reservation(self, address: int, size: int) -> None:
        """Forget a whole, empty reservation. Undone by `add_reservation`."""
        if self._inconsistent:
            self._recover()
        if self._reservations.get(address) != (address, size):
            advice = "pass the address and size of one whole reservation, once"
            raise refusal("unreserve", advice, address=address, size=size)
        if self._mappings.touching(address, address + size):
            raise refusal(
                "unreserve", "unmap everything in the reservation first", address=address, size=size
            )
        self._inconsistent = True
        self._reservations.remove(address)
        self._inconsistent = False

    def add_chunk(self, handle: int, size: int) -> None:
        """Record a chunk. Undone by `remove_chunk`."""
        if self._inconsistent:
            self._recover()
        self._inconsistent = True
        self.chunks[handle] = Chunk(size)
        if self._footprint is not None:
            self._footprint.chunk_bytes += size
        self._inconsistent = False

    def remove_chunk(self, handle: int) -> int:
        """Forget a chunk that is mapped nowhere and return its size. Undone by `add_chunk`."""
        if self._inconsistent:
            self._recover()
        chunk = self._chunk("release_chunk", handle)
        if chunk.maps:
            advice = f"it is still mapped at {chunk.maps} address(es): unmap it first"
            raise refusal("release_chunk", advice, chunk=handle)
        self._inconsistent = True
        del self.chunks[handle]
        if self._footprint is not None:
            self._footprint.chunk_bytes -= chunk.size
        self._inconsistent = False
        return chunk.size

    # --- mappings ---

    def map(self, address: int, handle: int) -> Mapping:
        """Record a mapping of the whole chunk at `address`. Undone by `unmap` or `drop`."""
        if self._inconsistent:
            self._recover()
        chunk = self._chunk("map_chunk", handle, address=address)
        end = address + chunk.size
        if address % self.granularity:
            advice = f"expected an address that is a multiple of {self.granularity}"
            raise refusal("map_chunk", advice, address=address, chunk=handle)
        reservation = self._reservations.at(address)
        if reservation is None or end > reservation.start + reservation.size:
            advice = f"[address, address + {chunk.size}) does not lie inside one reservation"
            raise refusal("map_chunk", advice, address=address, chunk=handle)
        if self._mappings.touching(address, end):
            raise refusal(
                "map_chunk", "something is mapped there: unmap it first", address=address, chunk=handle
            )
        mapping = Mapping(address, chunk.size, handle)
        self._inconsistent = True
        self._mappings.add(mapping)
        chunk.maps += 1
        self._inconsistent = False
        return mapping

    def unmap(self, address: int, size: int) -> list[Mapping]:
        """Forget the mappings in the range and return them in order. Undone by `restore`."""
        mappings = self._window("unmap", address, size)
        try:
            for mapping in mappings:
                self.drop(mapping)
        except BaseException:  # interrupted half-way: all or nothing
            self._recover()
            self.restore([mapping for mapping in mappings if self._mappings.get(mapping.start) is None])
            raise
        return mappings

    def drop(self, mapping: Mapping) -> None:
        """Forget one mapping."""
        if self._inconsistent:
            self._recover()
        self._inconsistent = True
        self._mappings.remove(mapping.start)
        self.chunks[mapping.handle].maps -= 1
        self._inconsistent = False

    def restore(self, mappings: list[Mapping]) -> None:
        """Undo `unmap`: put back what it returned, access included."""
        if self._inconsistent:
            self._recover()
        self._inconsistent = True
        for mapping in mappings:
            self._mappings.add(mapping)
            self.chunks[mapping.handle].maps += 1
        self._inconsistent = False

    def enable_access(self, address: int, size: int) -> list[Mapping]:
        """Return the mappings in the range, which fill it; the driver marks them once that worked."""
        mappings = self._window("enable_access", address, size)
        expected = address
        for mapping in mappings:
            if mapping.start != expected:
                break
            expected += mapping.size
        if expected != address + size:
            advice = f"nothing is mapped at {expected:#x}: map the whole range first"
            raise refusal("enable_access", advice, address=address, size=size)
        return mappings

    # --- touching memory ---

    def check_touch(self, call: str, address: int, size: int) -> None:
        """Refuse a range that is neither inside one raw allocation nor mapped and accessible all over."""
        if size <= 0:
            raise refusal(call, "expected a size of at least 1 byte", address=address, size=size)
        if not self.touchable(address, size):
            advice = "the range is not raw memory, nor mapped with access enabled after the map"
            raise refusal(call, advice, address=address, size=size)

    def is_reserved(self, address: int) -> bool:
        """Return whether `address` lies in a reservation."""
        if self._inconsistent:
            self._recover()
        return self._reservations.at(address) is not None

    def touchable(self, address: int, size: int) -> bool:
        """Return whether the device may read and write all of [address, address + size)."""
        if self._inconsistent:
            self._recover()
        end = address + size
        raw = self._raw.at(address)
        if raw is not None:
            return end <= raw.end
        reached = address
        for mapping in self._mappings.touching(address, end):
            if mapping.start > reached or not mapping.accessible:
                return False
            reached = mapping.start + mapping.size
        return reached >= end

    # --- the whole ---

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held: no raw memory, no reservation, no chunk."""
        return not (len(self._raw) or len(self._reservations) or self.chunks)

    def describe(self) -> dict[str, int]:
        """Return how many of each are held, and the bytes of chunks and raw memory."""
        if self._inconsistent:
            self._recover()
        return {
            "raw": len(self._raw),
            "raw_bytes": sum(raw.size for raw in self._raw),
            "reservations": len(self._reservations),
            "chunks": len(self.chunks),
            "chunk_bytes": sum(chunk.size for chunk in self.chunks.values()),
            "mappings": len(self._mappings),
        }

    def mappings(self) -> list[Mapping]:
        """Return all mappings in order of address."""
        return list(self._mappings)

    def mapped(self, address: int, size: int) -> list[MappedRange]:
        """Return the mappings that share an address with [address, address + size), in order."""
        if self._inconsistent:
            self._recover()
        found = self._mappings.touching(address, address + size)
        return [MappedRange(mapping.start, mapping.size, mapping.handle) for mapping in found]

    def check_chunk(self, call: str, handle: int) -> Chunk:
        """Return a chunk, or refuse a handle that is none."""
        return self._chunk(call, handle)

    def check(self) -> None:
        """Raise `InvariantError` unless every invariant of this module's docstring holds."""
        if self._inconsistent:
            self._recover()
        for ranges in (self._raw, self._reservations, self._mappings):
            ranges.check()
        maps = dict.fromkeys(self.chunks, 0)
        for mapping in self._mappings:
            reservation = self._reservations.at(mapping.start)
            if reservation is None or mapping.start + mapping.size > reservation.end:
                raise InvariantError(f"{mapping} lies in no reservation")
            chunk = self.chunks.get(mapping.handle)
            if chunk is None or chunk.size != mapping.size:
                raise InvariantError(f"{mapping} does not show the whole of {chunk}")
            maps[mapping.handle] += 1
        for handle, chunk in self.chunks.items():
            if chunk.maps != maps[handle]:
                raise InvariantError(f"chunk {handle:#x} counts {chunk.maps} mappings, has {maps[handle]}")
        if self._footprint is not None:
            counted = self._footprint.chunk_bytes, self._footprint.large_bytes, self._footprint.small_bytes
            if counted != self._recount():
                raise InvariantError(f"{self._footprint} counts {counted}, the book has {self._recount()}")
            if self._footprint.free < 0:
                raise InvariantError(f"more is held than there is: {self._footprint}")

    def _recover(self) -> None:
        """Make everything that follows from the four dictionaries follow again. O(n log n)."""
        for ranges in (self._raw, self._reservations, self._mappings):
            ranges.rebuild()
        for chunk in self.chunks.values():
            chunk.maps = 0
        for mapping in self._mappings:
            self.chunks[mapping.handle].maps += 1
        if self._footprint is not None:
            counts = self._recount()
            self._footprint.chunk_bytes, self._footprint.large_bytes, self._footprint.small_bytes = counts
        self._inconsistent = False

    def _recount(self) -> tuple[int, int, int]:
        """Return what the footprint should count: bytes of chunks, of large and of small raw memory."""
        assert self._footprint is not None
        fresh = self._footprint.emptied()
        for raw in self._raw:
            fresh.add_raw(raw.size)
        return sum(chunk.size for chunk in self.chunks.values()), fresh.large_bytes, fresh.small_bytes

    def _chunk(self, call: str, handle: int, **arguments: object) -> Chunk:
        chunk = self.chunks.get(handle)
        if chunk is None:
            raise refusal(
                call,
                "no such chunk: pass a handle from create_chunk, not released",
                **arguments,
                chunk=handle,
            )
        return chunk

    def _window(self, call: str, address: int, size: int) -> list[Mapping]:
        """Return the mappings in a range that is granular, in one reservation, and cuts no mapping."""
        if self._inconsistent:
            self._recover()
        end = address + size
        exact = self._mappings.get(address)
        if exact is not None and exact.size == size:
            return [exact]  # one whole mapping, the usual case: granular and in one reservation as it stands
        if size <= 0 or size % self.granularity or address % self.granularity:
            advice = f"expected an address and a positive size that are multiples of {self.granularity}"
            raise refusal(call, advice, address=address, size=size)
        reservation = self._reservations.at(address)
        if reservation is None or end > reservation.end:
            raise refusal(call, "the range does not lie inside one reservation", address=address, size=size)
        found = self._mappings.touching(address, end)
        for mapping in (*found[:1], *found[-1:]):
            start, stop = mapping.start, mapping.start + mapping.size
            if start < address or stop > end:
                advice = f"the mapping [{start:#x}, {stop:#x}) sticks out: pass a range of whole mappings"
                raise refusal(call, advice, address=address, size=size)
        return found
