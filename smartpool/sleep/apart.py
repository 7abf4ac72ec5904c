"""Blocks placed apart: those of one tag, or of one kind of hint, in chunks that nobody else has a block in.

Problem: what lives long and what does not lie side by side where blocks go to the first gap, and a chunk
goes back only when all of it is free. Method: a *kind* has mappings, and for each stream an arena, of its
own. A region is one chunk, so an idle region is a whole chunk, and a block lies in one chunk. What nobody
places apart is placed as ever: a pool without kinds has none of this on its way.
Rejected: bins of their own for each kind (a request would have to look at its tag on the quick path).
"""

from __future__ import annotations

from typing import Any, Final

from smartpool.errors import AsleepError, DriverOutOfMemoryError
from smartpool.graphs.memory import HeldMemory
from smartpool.heap.arena import Range
from smartpool.heap.mappings import Mapping, Mappings, State
from smartpool.heap.protocol import Heap
from smartpool.pool.slow_path import SlowPath
from smartpool.units import MiB, align_up, format_size

__all__ = ["Kind"]

_MOST_AHEAD: Final = 128 * MiB
_SHARE_AHEAD: Final = 32  # of what is held is mapped at once, so that small blocks share chunks


class Kind(HeldMemory):
    """The memory of one tag or hint on one device. The pool's lock guards it.

    Attributes
    ----------
    name
        The tag.
    mappings
        Where its chunks are.
    max_bytes
        Its budget; None for none.
    asleep
        Whether its memory is given back.
    """

    in_heap = False

    def __init__(self, name: str, pool: SlowPath) -> None:
        unused: Any = None  # no graph holds it
        super().__init__(pool, unused)
        self.name = name
        self.mappings = Mappings(pool.memory, primary=True)
        self.max_bytes: int | None = None
        self.asleep = False

    def request(self, nbytes: int, stream: int, alignment: int) -> int:
        """Return the address of a block, entered as live. In the critical section."""
        if self.asleep:
            raise AsleepError(
                f"expected tag {self.name!r} to be awake, it sleeps on {self._pool.driver.name}: "
                "call wake() before you ask for more of it"
            )
        try:
            return self.take(nbytes, stream, alignment, self._map)
        except DriverOutOfMemoryError:
            pass  # what is raised from here on is not about this
        pool = self._pool
        bin_ = pool.new_bin(nbytes, stream)
        return pool.extend_under_pressure(
            bin_, alignment, lambda *_: self.take(nbytes, stream, alignment, self._map)
        )

    def region_bytes(self, size: int, alignment: int) -> int:  # noqa: ARG002 - a region is aligned as a whole
        """Return whole chunks; more than is asked for while that is little."""
        granularity = self._pool.driver.granularity
        ahead = min(self.held_bytes // _SHARE_AHEAD, _MOST_AHEAD)
        room = self._room() // granularity * granularity
        return max(align_up(size, granularity), min(align_up(ahead, granularity), room))

    def _room(self) -> int:
        room = self._pool.memory.room_bytes
        return (
            room if self.max_bytes is None else max(0, min(room, self.max_bytes - self.mappings.held_bytes))
        )

    def _map(self, size: int, stream: int, alignment: int) -> int:  # noqa: ARG002
        if size > self._room() and self.max_bytes is not None:
            raise DriverOutOfMemoryError(
                "create_chunk",
                "CAP_REACHED",
                {"size": size, "reserved": self.mappings.held_bytes, "cap": self.max_bytes},
                advice=f"tag {self.name!r} holds its budget of {format_size(self.max_bytes)}",
            )
        free, start = self.mappings.find(size, alignment)
        self.mappings.map(free, start, [size])
        self._pool.memory.tell("map", start, size)
        return start

    def release_idle(self) -> None:
        """Give the chunks back in which nothing is live. The device must be done with them."""
        if self.asleep:
            return
        self.mappings.settle()
        self.collect()
        for start, size in self.leave():
            self._give_back(self.mappings.table.inside(start, start + size))

    def _give_back(self, idle: list[Mapping]) -> None:
        self.mappings.unmap(idle)
        for mapping in idle:
            self.mappings.drop(mapping)
            self._pool.memory.tell("unmap", mapping.start, mapping.size)

    def has_free(self) -> bool:
        """Return whether anything in it was freed."""
        return bool(self._returned) or any(arena.free_bytes for arena in self._arenas.values())

    def blocks(self) -> list[Range]:
        """Return the live blocks."""
        self.collect()
        return [block for arena in self._arenas.values() for block in arena.blocks()]

    def recover(self, heap: Heap) -> None:
        """Make all of it whole after a call that was broken off. The device is idle."""
        self.mappings.mend()
        regions = {start for start, _ in self.regions()}
        for mapping in self.mappings.table:
            if mapping.start not in regions and not mapping.kept:
                mapping.state = State.DOUBTFUL  # of a request that did not come to its end
        self.mend(heap)
        self.mappings.settle()

    def region_sizes(self, heap: Heap) -> dict[int, int | None]:  # noqa: ARG002 - these are not the heap's
        """Return start to size of what may be regions."""
        return {mapping.start: mapping.size for mapping in self.mappings}

    def end(self) -> None:
        """Give everything back: nothing is live any more, and the device is idle."""
        self._give_back(list(self.mappings.table))
        self.mappings.unreserve()
        self._regions.clear()
        self._arenas.clear()

    def check_sound(self) -> None:
        """Prove that chunks and regions are the same, and the invariants of both."""
        self.mappings.check()
        self.check(self._pool.live)
        chunks = sorted((mapping.start, mapping.size) for mapping in self.mappings)
        assert chunks == sorted(self.regions()), (chunks, self.regions())
