"""Windows: fresh addresses at which chunks are mapped a second time, for one block each.

A window shows pieces of home memory side by side. Its block occupies those pieces, so liveness is
counted once, at home; the window itself is addresses and mappings, nothing else. When its block
is freed the window is *retired*: the pieces are free at once (the stream that used them is in
their uses), while the mappings are kept. A later request whose bytes a retired window can show, and
whose pieces are free again, takes that window: no driver call. So a program that repeats itself
makes its windows once. Retired windows are unmapped when a chunk that they show is to be given
back (it is *uncovered*), when their mappings exceed `KEPT_MAPPINGS` (those used least lately first), and
when the pool closes; never before an event shows that the device is done with them.
Source: GMLake (ASPLOS 2024) keeps stitched blocks for later requests, too; here a smaller request may
take the first part of one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.errors import DriverError, InvariantError
from smartpool.memory.arena import Arena, Range, Uses, join_uses
from smartpool.memory.chunks import MappedChunk
from smartpool.pool.heap.returning import Returning
from smartpool.pool.streams import StreamClock
from smartpool.units import align_up

__all__ = ["KEPT_MAPPINGS", "Window", "Windows", "cut"]

_RESERVE_FACTOR: Final = 8
_CANDIDATES: Final = 64  # retired windows looked at for one request, the smallest first

KEPT_MAPPINGS: Final = 4096
"""Mappings of retired windows that are kept; recorded programs keep 110 to 2,500 in chunks of `balanced`."""


@dataclass(frozen=True, slots=True)
class Window:
    """A block's window.

    Attributes
    ----------
    mapped
        The addresses that its mappings cover.
    block
        Address and size of the block inside.
    pieces
        The home ranges that the block occupies, in order.
    handles
        The chunks mapped, in order.
    shown
        The home ranges that the mappings show from the block's address on: `pieces` is as much of it
        as the block needs.
    """

    mapped: Range
    block: Range
    pieces: tuple[Range, ...]
    handles: tuple[int, ...]
    shown: tuple[Range, ...] = ()

    @property
    def room(self) -> int:
        """Bytes of the largest block that it can show."""
        return sum([piece.size for piece in self.shown])


class Windows:
    """All windows of a heap. The pool's lock guards it.

    Parameters
    ----------
    driver
        The device.
    clock
        Stream order.

    Attributes
    ----------
    mappings
        Chunk handle to the starts of the windows that show it, retired ones included.
    """

    def __init__(self, driver: Driver, clock: StreamClock) -> None:
        self.mappings: dict[int, set[int]] = {}
        self._driver = driver
        self._clock = clock
        self._addresses = Arena()
        self._reservations: list[Range] = []
        self._open: dict[int, Window] = {}  # by address of the block
        self._retired: OrderedDict[int, tuple[Window, Uses]] = OrderedDict()  # by start of the mapping
        self._by_room: list[tuple[int, int]] = []  # (room, start) of the retired ones that a block may take
        self._retired_mappings = 0
        self._split: dict[int, tuple[Window, Uses]] = {}  # by start, if open: what it was, uses of what ended
        self._return = Returning()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, address: int) -> bool:
        return address in self._open

    def open(self, pieces: tuple[Range, ...], chunks: list[MappedChunk], alignment: int) -> Window:
        """Map `chunks`, those under `pieces`, one behind the other and return the window.

        Each piece ends where its last chunk ends, or is the last; each starts where its first
        chunk starts, or is the first.
        """
        total = sum(chunk.size for chunk in chunks)
        mapped = Range(self._find_addresses(total, alignment), total)
        handles: list[int] = []
        try:
            address = mapped.start
            for chunk in chunks:
                handles.append(chunk.handle)  # first: the call may be interrupted behind the deed
                self._driver.map_chunk(address, chunk.handle)
                address += chunk.size
            self._driver.enable_access(*mapped)
            start = mapped.start + pieces[0].start - chunks[0].start
            around = len(chunks) > 1 and chunks[0] == chunks[-1]  # both edges of one chunk: live in between
            end = pieces[0].start if around else chunks[-1].end
            last = Range(pieces[-1].start, end - pieces[-1].start)
            block = Range(start, sum(piece.size for piece in pieces))
            window = Window(mapped, block, pieces, tuple(handles), (*pieces[:-1], last))
            self._open[start] = window
        except BaseException:
            self._abandon(mapped, handles)
            raise
        self._book(window)
        return window

    def find(self, size: int, alignment: int, is_free: Callable[[Range], bool]) -> Window | None:
        """Return a retired window for a block of `size` bytes, as it would be open; None if there is none.

        The smallest that can show so much, all of whose pieces are free. O(log n + candidates).
        """
        first = bisect_left(self._by_room, (size, 0))
        for room, start in self._by_room[first : first + _CANDIDATES]:
            window = self._retired[start][0]
            if window.block.start % alignment:
                continue
            pieces = window.shown if room == size else cut(window.shown, [size])[0]
            if all(map(is_free, pieces)):
                return replace(window, block=Range(window.block.start, size), pieces=pieces)
        return None

    def reopen(self, window: Window) -> None:
        """Give a window that `find` returned to the block; its pieces are taken."""
        self._open[window.block.start] = window
        self._forget(window.mapped.start)

    def split(self, window: Window, parts: Mapping[Range, tuple[Range, ...]]) -> None:
        """Turn the block of an open window into several with these pieces; the last to end retires it."""
        self._split.setdefault(window.mapped.start, (window, None))  # some of it may be unmapped already
        self._open.update(
            {block.start: replace(window, block=block, pieces=pieces) for block, pieces in parts.items()}
        )

    def at(self, address: int) -> Window | None:
        """Return the window whose block is at `address`, or None."""
        return self._open.get(address)

    def was_block(self, address: int) -> bool:
        """Return whether a window had its block at `address`, which was freed. O(retired windows)."""
        return any(window.block.start == address for window, _ in self._retired.values())

    def opened(self) -> list[Window]:
        """Return the windows with a live block."""
        return list(self._open.values())

    def retire(self, address: int, uses: Uses) -> Window:
        """End the block at `address` (`KeyError` when there is none); its mappings stay for a while."""
        window = self._open[address]
        if window.mapped.start in self._split:
            whole, earlier = self._split[window.mapped.start]
            uses = join_uses(earlier, uses)
            if any(part.mapped == window.mapped and part is not window for part in self._open.values()):
                self._split[window.mapped.start] = (whole, uses)
                del self._open[address]
                return window
            window = whole
        self._retired[window.mapped.start] = (window, uses)
        del self._open[address]  # a window in both places is retired: see `mend`
        self._split.pop(window.mapped.start, None)
        self._retired_mappings += len(window.handles)
        if window.shown:
            insort(self._by_room, (window.room, window.mapped.start))
        return window

    @property
    def crowded(self) -> bool:
        """Whether more mappings are kept than should be."""
        return self._retired_mappings > KEPT_MAPPINGS

    def reap_oldest(self, uses: Uses) -> None:
        """Unmap windows until no more mappings are kept than should be, those used least lately first."""
        for window, own in list(self._retired.values()):
            if not self.crowded:
                return
            if self._clock.idle(own or uses):
                self._unmap(window)

    def uncover(self, handle: int, uses: Uses, *, wait: bool) -> bool:
        """Unmap the retired windows that show a chunk; False when the device is not done with one.

        Of a window that is open the chunk alone is unmapped; False when a block in it shows the chunk.
        """
        for start in sorted(self.mappings.get(handle, ())):
            if start not in self._retired:
                if not self._uncover_part(start, handle):
                    return False
                continue
            window, own = self._retired[start]
            if wait:
                self._clock.synchronize(own or uses)
            elif not self._clock.idle(own or uses):
                return False
            self._unmap(window)
        return True

    def _uncover_part(self, start: int, handle: int) -> bool:
        """Unmap a chunk of an open window, unless a block in it shows the chunk; whether that was done.

        Who used the chunk through this window ended a block of it, and is in the uses of the gap at home.
        """
        parts = [window for window in self._open.values() if window.mapped.start == start]
        seen = [part for part in self._driver.mapped(*parts[0].mapped) if part.chunk == handle]
        for part in parts:
            if any(part.block.start < at + size and at < part.block.end for at, size, _ in seen):
                return False
        whole, own = self._split.get(start, (parts[0], None))
        self._split[start] = (replace(whole, shown=()), own)  # first: no other block is to have it
        for at, size, _ in seen:
            self._driver.unmap(at, size)
        handles = tuple(other for other in whole.handles if other != handle)
        self._split[start] = (replace(whole, handles=handles, shown=()), own)
        self._unbook(whole, {handle})
        return True

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every window that ended, or part of one: what None stood for until now."""
        for ended in (self._retired, self._split):
            for start, (window, own) in ended.items():
                ended[start] = (window, join_uses(own, uses))

    def reap(self, uses: Uses, *, wait: bool = False, kept: bool = True) -> None:
        """Unmap retired windows with which the device is done; with `wait`, the host waits for it.

        `uses` stand for windows that were retired without any. Without `kept`, only what is left of
        windows that could not be opened.
        """
        for window, own in list(self._retired.values()):
            if window.shown and not kept:
                continue
            if wait:
                self._clock.synchronize(own or uses)
            elif not self._clock.idle(own or uses):
                continue
            self._unmap(window)

    def close(self) -> None:
        """Unmap everything and give the addresses back. The device must be idle, no block in use."""
        for address in list(self._open):
            self.retire(address, None)
        for window, _ in list(self._retired.values()):
            self._unmap(window)
        while self._reservations:
            self._return(self._driver.unreserve, *self._reservations[-1])
            self._addresses.mend(self._reservations[:-1], barrier=True)
            self._return.done(*self._reservations.pop())

    def mend(self) -> None:
        """Make addresses and counts anew, after an exception in the middle, from the tables of windows."""
        self._open = {
            at: window for at, window in self._open.items() if window.mapped.start not in self._retired
        }
        opened = {window.mapped.start for window in self._open.values()}
        self._split = {start: parts for start, parts in self._split.items() if start in opened}
        retired = [window for window, _ in self._retired.values()]
        windows = self._every()
        self._retired_mappings = sum(len(window.handles) for window in retired)
        self._by_room = sorted((window.room, window.mapped.start) for window in retired if window.shown)
        self.mappings = _mappings(windows)
        self._addresses.mend(self._reservations, blocks=[window.mapped for window in windows], barrier=True)

    def check(self) -> None:
        """Prove that addresses, windows and counts agree."""
        self._addresses.check()
        windows = self._every()
        if sorted(window.mapped for window in windows) != self._addresses.blocks():
            raise InvariantError(f"windows {windows} are not the taken addresses of {self._addresses!r}")
        found = _mappings(windows)
        if found != self.mappings:
            raise InvariantError(f"mappings {self.mappings} noted, {found} found")
        rooms = sorted((w.room, w.mapped.start) for w, _ in self._retired.values() if w.shown)
        if rooms != self._by_room:
            raise InvariantError(f"retired windows {rooms} are not those in order {self._by_room}")

    def _find_addresses(self, size: int, alignment: int) -> int:
        alignment = max(alignment, self._driver.granularity)
        start = self._addresses.allocate(size, alignment)
        if start is None:
            total = self._driver.memory_info().total
            reserved = align_up(max(_RESERVE_FACTOR * total, size + alignment), self._driver.granularity)
            reservation = Range(self._driver.reserve(reserved), reserved)
            self._reservations.append(reservation)
            self._addresses.extend(*reservation, barrier=True)
            start = self._addresses.allocate(size, alignment)
        if start is None:
            raise InvariantError(f"no {size} addresses in {self._addresses!r}")
        return start

    def _abandon(self, mapped: Range, handles: list[int]) -> None:
        """Undo half a window. If even that fails it is retired, to be unmapped later."""
        window = Window(mapped, Range(mapped.start, 0), (), tuple(handles))
        self._retired[mapped.start] = (window, None)
        self._retired_mappings += len(handles)
        self._book(window)
        with suppress(DriverError):
            self._unmap(window)

    def _unmap(self, window: Window) -> None:
        """Unmap a retired window and forget it."""
        if window.shown:
            self._driver.unmap(*window.mapped)
        else:  # in parts: some may be missing
            for address, size, _ in self._driver.mapped(*window.mapped):
                self._driver.unmap(address, size)
        self._forget(window.mapped.start)
        self._unbook(window, set(window.handles))  # both edges may be of one chunk
        self._addresses.free(window.mapped.start)

    def _unbook(self, window: Window, handles: set[int]) -> None:
        for handle in handles:
            shown = self.mappings[handle]
            shown.discard(window.mapped.start)
            if not shown:
                del self.mappings[handle]

    def _every(self) -> list[Window]:
        """Return each window once, with its blocks or without."""
        return [
            *(window for window in self._open.values() if window.mapped.start not in self._split),
            *(window for ended in (self._split, self._retired) for window, _ in ended.values()),
        ]

    def _forget(self, start: int) -> None:
        """Take a window out of the retired ones."""
        window = self._retired.pop(start)[0]
        self._retired_mappings -= len(window.handles)
        if window.shown:
            del self._by_room[bisect_left(self._by_room, (window.room, start))]

    def _book(self, window: Window) -> None:
        for handle in window.handles:
            self.mappings.setdefault(handle, set()).add(window.mapped.start)


def cut(pieces: Iterable[Range], sizes: Iterable[int]) -> list[tuple[Range, ...]]:
    """Return the first bytes of `pieces`, as many as each of `sizes` says, one behind the other.

    >>> cut([Range(0, 512), Range(4096, 1024)], [256, 512])
    [(Range(start=0, size=256),), (Range(start=256, size=256), Range(start=4096, size=256))]
    """
    rest, parts = iter(pieces), []
    start = left = 0
    for size in sizes:
        part: list[Range] = []
        while size:
            if not left:
                start, left = next(rest)
            taken = min(left, size)
            part.append(Range(start, taken))
            start, left, size = start + taken, left - taken, size - taken  # noqa: PLW2901
        parts.append(tuple(part))
    return parts


def _mappings(windows: Iterable[Window]) -> dict[int, set[int]]:
    """Return chunk handle to the starts of the windows that show it."""
    mappings: dict[int, set[int]] = {}
    for window in windows:
        for handle in window.handles:
            mappings.setdefault(handle, set()).add(window.mapped.start)
    return mappings
