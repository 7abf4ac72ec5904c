"""Windows: fresh addresses at which chunks are mapped a second time, for one block each.

A window shows pieces of home memory side by side. Its block occupies those pieces, so liveness is
counted once, at home; the window itself is addresses and mappings, nothing else. When its block
is freed the window is *retired*: the pieces are free at once (the stream that used them is in
their uses), while the mappings stay until an event shows that the device is done with them. They
are unmapped in batches: when the retired mappings exceed a limit, when their chunk is to be given
back, when memory is trimmed, and when the pool closes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.errors import DriverError, InvariantError
from smartpool.memory.arena import Arena, Range, Uses, join_uses
from smartpool.memory.chunks import MappedChunk
from smartpool.pool.heap.returning import Returning
from smartpool.pool.streams import StreamClock
from smartpool.units import align_up

__all__ = ["Window", "Windows"]

_RESERVE_FACTOR: Final = 8
_RETIRED_LIMIT: Final = 1024


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
    """

    mapped: Range
    block: Range
    pieces: tuple[Range, ...]
    handles: tuple[int, ...]


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
        Chunk handle to the number of its mappings here, retired ones included.
    """

    def __init__(self, driver: Driver, clock: StreamClock) -> None:
        self.mappings: Counter[int] = Counter()
        self._driver = driver
        self._clock = clock
        self._addresses = Arena()
        self._reservations: list[Range] = []
        self._open: dict[int, Window] = {}  # by address of the block
        self._retired: OrderedDict[int, tuple[Window, Uses]] = OrderedDict()  # by start of the mapping
        self._retired_mappings = 0
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
            window = Window(mapped, Range(start, sum(piece.size for piece in pieces)), pieces, tuple(handles))
            self._open[start] = window
        except BaseException:
            self._abandon(mapped, handles)
            raise
        self.mappings.update(handles)
        return window

    def at(self, address: int) -> Window | None:
        """Return the window whose block is at `address`, or None."""
        return self._open.get(address)

    def opened(self) -> list[Window]:
        """Return the windows with a live block."""
        return list(self._open.values())

    def retire(self, address: int, uses: Uses) -> Window:
        """End the block at `address` (`KeyError` when there is none); its mappings stay for a while."""
        window = self._open[address]
        self._retired[window.mapped.start] = (window, uses)
        del self._open[address]  # a window in both places is retired: see `mend`
        self._retired_mappings += len(window.handles)
        return window

    @property
    def crowded(self) -> bool:
        """Whether so many mappings are retired that it is time to `reap`."""
        return self._retired_mappings > _RETIRED_LIMIT

    def mark(self, uses: Mapping[int, int]) -> None:
        """Add `uses` to every retired window: what None stood for until now."""
        for start, (window, own) in self._retired.items():
            self._retired[start] = (window, join_uses(own, uses))

    def reap(self, uses: Uses, *, wait: bool = False) -> None:
        """Unmap retired windows with which the device is done; with `wait`, the host waits for it.

        `uses` stand for windows that were retired without any.
        """
        for window, own in list(self._retired.values()):
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
        retired = [window for window, _ in self._retired.values()]
        windows = [*self._open.values(), *retired]
        self._retired_mappings = sum(len(window.handles) for window in retired)
        self.mappings = Counter(handle for window in windows for handle in window.handles)
        self._addresses.mend(self._reservations, blocks=[window.mapped for window in windows], barrier=True)

    def check(self) -> None:
        """Prove that addresses, windows and counts agree."""
        self._addresses.check()
        windows = [*self._open.values(), *(window for window, _ in self._retired.values())]
        if sorted(window.mapped for window in windows) != self._addresses.blocks():
            raise InvariantError(f"windows {windows} are not the taken addresses of {self._addresses!r}")
        counted = Counter(handle for window in windows for handle in window.handles)
        if counted != self.mappings:
            raise InvariantError(f"mappings {self.mappings} counted, {counted} found")

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
        self.mappings.update(handles)
        with suppress(DriverError):
            self._unmap(window)

    def _unmap(self, window: Window) -> None:
        """Unmap a retired window and forget it."""
        if window.handles:
            self._driver.unmap(*window.mapped)
        del self._retired[window.mapped.start]
        self._retired_mappings -= len(window.handles)
        self._unbook(window.handles)
        self._addresses.free(window.mapped.start)

    def _unbook(self, handles: tuple[int, ...]) -> None:
        for handle in handles:
            self.mappings[handle] -= 1
            if not self.mappings[handle]:
                del self.mappings[handle]
