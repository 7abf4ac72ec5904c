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
from collections.abc import Callable, Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, replace
from typing import Final

from smartpool.errors import InvariantError
from smartpool.heap.arena import Range, Uses, join_uses
from smartpool.heap.device_memory import DeviceMemory
from smartpool.heap.mappings import Mapping, Mappings, State
from smartpool.heap.stream_order import StreamClock

__all__ = ["KEPT_MAPPINGS", "Window", "Windows", "cut"]

_CANDIDATES: Final = 64  # retired windows looked at for one request, the smallest first
_NO_OBSTACLE: Final = 1 << 63, Range(0, 0)

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
    memory
        The device's physical memory.
    clock
        Stream order.

    Attributes
    ----------
    aliases
        The mappings. What is mapped lies in a window, or was left behind by a failure.
    kept_mappings, most_kept
        Those of retired windows, and how many there should be.
    """

    def __init__(self, memory: DeviceMemory, clock: StreamClock) -> None:
        self.aliases = Mappings(memory, primary=False)
        self.kept_mappings, self.most_kept = 0, KEPT_MAPPINGS
        self._clock = clock
        self._showing: dict[int, set[int]] = {}  # chunk -> starts of windows that show it
        self._open: dict[int, Window] = {}  # by address of the block
        self._retired: OrderedDict[int, tuple[Window, Uses]] = OrderedDict()  # by start of the mapping
        self._by_room: list[tuple[int, int]] = []  # (room, start) of the retired ones that a block may take
        self._obstacles: dict[int, tuple[int, Range]] = {}  # by start: what was taken lately, and how far in
        self._split: dict[int, tuple[Window, Uses]] = {}  # by start, if open: what it was, uses of what ended

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, address: int) -> bool:
        return address in self._open

    def open(self, pieces: tuple[Range, ...], chunks: list[Mapping], alignment: int) -> Window:
        """Map `chunks`, those under `pieces`, one behind the other and return the window.

        Each piece ends where its last chunk ends, or is the last; each starts where its first
        chunk starts, or is the first. A call that fails leaves nothing, or what `Mappings.settle` ends.
        """
        sizes, handles = [chunk.size for chunk in chunks], tuple([chunk.chunk for chunk in chunks])
        free, at = self.aliases.find(sum(sizes), alignment)
        mapped = Range(at, sum(sizes))
        self.aliases.map(free, at, sizes, handles)
        start = mapped.start + pieces[0].start - chunks[0].start
        around = len(chunks) > 1 and chunks[0] is chunks[-1]  # both edges of one chunk: live in between
        end = pieces[0].start if around else chunks[-1].end
        last = Range(pieces[-1].start, end - pieces[-1].start)
        block = Range(start, sum([piece.size for piece in pieces]))
        window = Window(mapped, block, pieces, handles, (*pieces[:-1], last))
        self._open[start] = window
        for handle in handles:
            self._showing.setdefault(handle, set()).add(mapped.start)
        return window

    def find(self, size: int, alignment: int, is_free: Callable[[Range], bool]) -> Window | None:
        """Return a retired window for a block of `size` bytes, as it would be open; None if there is none.

        The smallest that can show so much, all of whose pieces are free. O(log n), and a look at the piece
        that stood in its way the last time for each of the candidates before it.
        """
        first = bisect_left(self._by_room, (size, 0))
        for room, start in self._by_room[first : first + _CANDIDATES]:
            window = self._retired[start][0]
            if window.block.start % alignment:
                continue
            offset, (at, nbytes) = self._obstacles.get(start, _NO_OBSTACLE)
            if offset < size and not is_free(Range(at, min(nbytes, size - offset))):
                continue
            pieces = window.shown if room == size else cut(window.shown, [size])[0]
            offset = 0
            for piece in pieces:
                if not is_free(piece):
                    self._obstacles[start] = offset, piece
                    break
                offset += piece.size
            else:
                return replace(window, block=Range(window.block.start, size), pieces=pieces)
        return None

    def reopen(self, window: Window) -> None:
        """Give a window that `find` returned to the block; its pieces are taken."""
        self._open[window.block.start] = window
        self._forget(window.mapped.start)

    def split(self, window: Window, parts: MappingOf[Range, tuple[Range, ...]]) -> None:
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

    def whole(self) -> list[Window]:
        """Return the windows that have all their mappings; the one used least lately first."""
        ended = [window for window, _ in self._retired.values() if window.shown]
        return ended + [window for window in self._open.values() if window.mapped.start not in self._split]

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
        self.kept_mappings += len(window.handles)
        if window.shown:
            insort(self._by_room, (window.room, window.mapped.start))
        return window

    def reap_oldest(self, uses: Uses) -> None:
        """Unmap windows until no more mappings are kept than should be, those used least lately first."""
        for window, own in list(self._retired.values()):
            if self.kept_mappings <= self.most_kept:
                return
            if self._clock.idle(own or uses):
                self._unmap(window)

    def uncover(self, handle: int, uses: Uses, *, wait: bool) -> bool:
        """Unmap the retired windows that show a chunk; False when the device is not done with one.

        Of a window that is open the chunk alone is unmapped; False when a block in it shows the chunk.
        """
        for start in sorted(self._showing.get(handle, ())):
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
        seen = [alias for alias in self._aliases_of(parts[0]) if alias.chunk == handle]
        for part in parts:
            if any(part.block.start < alias.end and alias.start < part.block.end for alias in seen):
                return False
        whole, own = self._split.get(start, (parts[0], None))
        self._split[start] = (replace(whole, shown=()), own)  # first: no other block is to have it
        for alias in seen:
            self.aliases.unmap([alias])
            self.aliases.drop(alias, addresses=False)  # the window keeps them
        self._shrink(start)
        return True

    def _shrink(self, start: int) -> None:
        """Learn of a window some of whose chunks were unmapped which it shows still."""
        window, own = self._split[start]
        handles = tuple([alias.chunk for alias in self._aliases_of(window)])
        gone = {*window.handles} - {*handles}
        self._split[start] = (replace(window, handles=handles), own)
        self._unbook(window, gone)

    def mark(self, uses: MappingOf[int, int]) -> None:
        """Add `uses` to every window that ended, or part of one: what None stood for until now."""
        for ended in (self._retired, self._split):
            for start, (window, own) in ended.items():
                ended[start] = (window, join_uses(own, uses))

    def reap(self) -> None:
        """Unmap retired windows, and what failures left behind. The device must be done with all of it."""
        for window, _ in list(self._retired.values()):
            self._unmap(window)
        self.settle()

    def settle(self) -> None:
        """Unmap what failures left behind, of which the device never knew."""
        self.aliases.settle([window.mapped for window in self._every()])
        for start in self._split:
            self._shrink(start)

    def relink(self) -> None:
        """Learn the chunks of all windows anew: they slept, and the chunks are others now."""

        def linked(window: Window) -> Window:
            return replace(window, handles=tuple([alias.chunk for alias in self._aliases_of(window)]))

        self._open = {at: linked(window) for at, window in self._open.items()}
        for ended in (self._retired, self._split):
            for start, (window, own) in ended.items():
                ended[start] = (linked(window), own)
        self._showing = self._shown()
        self._doubt_what_no_window_shows()

    def _doubt_what_no_window_shows(self) -> None:
        inside = {alias for window in self._every() for alias in self._aliases_of(window)}
        for alias in self.aliases:
            if alias not in inside:
                alias.state = State.DOUBTFUL

    def close(self) -> None:
        """Unmap everything and give the addresses back. The device must be idle, no block in use."""
        for address in list(self._open):
            self.retire(address, None)
        self.reap()
        self.aliases.unreserve()

    def mend(self) -> None:
        """Make the books anew after an exception in the middle, from the windows that have a block.

        Retired ones are forgotten: their mappings are doubtful then, as those are which were left behind.
        """
        self._open = {
            at: window for at, window in self._open.items() if window.mapped.start not in self._retired
        }
        opened = {window.mapped.start for window in self._open.values()}
        self._split = {start: parts for start, parts in self._split.items() if start in opened}
        self._retired.clear()
        self._by_room.clear()
        self._obstacles.clear()
        self.kept_mappings = 0
        self._showing = self._shown()
        windows = self._every()
        self.aliases.mend([window.mapped for window in windows])
        self._doubt_what_no_window_shows()

    def check(self) -> None:
        """Prove that addresses, windows and counts agree."""
        windows = self._every()
        shown = {alias: window for window in windows for alias in self._aliases_of(window)}
        left = [alias for alias in self.aliases.table if alias not in shown]
        if any(alias.state is State.MAPPED for alias in left):
            raise InvariantError(f"aliases {left} are mapped, and in none of the windows {windows}")
        held = [window.mapped for window in windows]
        self.aliases.check([*held, *(Range(alias.start, alias.size) for alias in left)])
        for window in windows:
            if tuple(alias.chunk for alias in self._aliases_of(window)) != window.handles:
                raise InvariantError(f"what is mapped in {window} is not what it shows")
        found = self._shown()
        if found != self._showing:
            raise InvariantError(f"windows {self._showing} noted by chunk, {found} found")
        rooms = sorted((w.room, w.mapped.start) for w, _ in self._retired.values() if w.shown)
        if rooms != self._by_room:
            raise InvariantError(f"retired windows {rooms} are not those in order {self._by_room}")

    def _unmap(self, window: Window) -> None:
        """Unmap a retired window and forget it."""
        here = self._aliases_of(window)
        self.aliases.unmap(here)
        self._forget(window.mapped.start)
        self._unbook(window, set(window.handles))  # both edges may be of one chunk
        for alias in here:
            self.aliases.drop(alias, addresses=False)
        self.aliases.give(*window.mapped)

    def _aliases_of(self, window: Window) -> list[Mapping]:
        start, size = window.mapped
        return self.aliases.table.inside(start, start + size)

    def _unbook(self, window: Window, handles: set[int]) -> None:
        for handle in handles:
            shown = self._showing[handle]
            shown.discard(window.mapped.start)
            if not shown:
                del self._showing[handle]

    def _every(self) -> list[Window]:
        """Return each window once, with its blocks or without."""
        return [
            *(window for window in self._open.values() if window.mapped.start not in self._split),
            *(window for ended in (self._split, self._retired) for window, _ in ended.values()),
        ]

    def _forget(self, start: int) -> None:
        """Take a window out of the retired ones."""
        window = self._retired.pop(start)[0]
        self.kept_mappings -= len(window.handles)
        if window.shown:
            del self._by_room[bisect_left(self._by_room, (window.room, start))]
            self._obstacles.pop(start, None)

    def _shown(self) -> dict[int, set[int]]:
        """Return chunk to the starts of the windows that show it, as the windows say."""
        showing: dict[int, set[int]] = {}
        for window in self._every():
            for handle in window.handles:
                showing.setdefault(handle, set()).add(window.mapped.start)
        return showing


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
