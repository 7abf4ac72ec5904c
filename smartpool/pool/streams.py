"""Stream order: when memory freed on one stream may be touched by another.

Problem: a free is a promise of the host that it will queue no more work on a block; work that is
queued already may still touch it. On the same stream that does not matter, since streams are in
order. Another stream, and the host that wants to unmap the memory, must know that this work is
done.
Method: one counter a stream. A *position* n of a stream stands for all work queued on it before
the n-th event was recorded there; a free made before that event is covered by it. A gap carries
for each stream that may still touch it the position that covers it, and another stream takes the
gap after waiting, on the device, for the event of that position. A wait orders everything before
it too, so each pair of streams remembers the latest position that was waited for (the vector
clocks of Mattern and Fidge, 1988), and most waits are never issued.
Bound: an event a stream is recorded for every `JOINS` times that its large frees are joined, for each
time that bins are emptied, and when somebody waits for a position that has none yet. Events seen done are
used again; of more than `PENDING` that are not, every second one is, since a later event covers what an
earlier one did.
A stream that was destroyed takes no event any more: the host waits for the device, once, instead.
Rejected: a list of pending blocks a stream that are polled (RMM and PyTorch strand what is
pending); one event a block (1.9 us each); blocking the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.errors import StreamError
from smartpool.memory.arena import Uses, join_uses
from smartpool.pool.heap.returning import Returning

__all__ = ["PENDING", "StreamClock"]

PENDING: Final = 32
JOINS: Final = 16  # an event costs 2 us: as much as a whole request, did each record one


class StreamClock:
    """Positions and events of the streams of one device. The pool's lock guards it.

    Attributes
    ----------
    waits
        How many waits between streams were queued on the device.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._recorded: dict[int, int] = {}  # stream -> position of its last event
        self._done: dict[int, int] = {}  # stream -> position up to which the device is done
        self._pending: dict[int, deque[tuple[int, int]]] = {}  # stream -> (position, event), in order
        self._joined: dict[tuple[int, int], int] = {}  # (waiting, other) -> position waited for
        self._spare: list[int] = []
        self._unstamped: dict[int, int] = {}  # stream -> joins since its last event
        self._return = Returning()
        self.waits = 0

    def mark(self, streams: Iterable[int]) -> dict[int, int]:
        """Return uses that cover all work queued so far on `streams`. Records no event yet."""
        return {stream: self._recorded.get(stream, 0) + 1 for stream in streams}

    def stamp(self, stream: int) -> dict[int, int]:
        """Record an event now and return the uses that it covers: all work queued on `stream` so far."""
        self._record(stream)
        return {stream: self._recorded[stream]}

    def joined(self, stream: int) -> None:
        """Learn that blocks freed on `stream` became gaps; records an event from time to time.

        A gap without an event is as good as one with it, but who waits for it waits for all that was
        queued on the stream until then.
        """
        count = self._unstamped.get(stream, 0) + 1
        self._unstamped[stream] = count % JOINS
        if count == JOINS:
            self._record(stream)

    def stamps(self, streams: Iterable[int]) -> Uses:
        """Return uses that cover all work queued so far on `streams`, each stamped now."""
        uses: Uses = None
        for stream in streams:
            uses = join_uses(uses, self.stamp(stream))
        return uses

    def ready(self, uses: Uses, stream: int) -> bool:
        """Return whether `stream` may touch memory with `uses` now, without a wait."""
        if not uses:
            return True
        for other, position in uses.items():
            if (
                other != stream
                and self._joined.get((stream, other), 0) < position
                and self._done.get(other, 0) < position
            ):
                return False
        return True

    def idle(self, uses: Uses) -> bool:
        """Return whether the device is done with memory that has `uses`. Never blocks."""
        return not uses or all(self._is_done(stream, position) for stream, position in uses.items())

    def wait(self, uses: Uses, stream: int) -> None:
        """Order later work of `stream` behind `uses`, on the device."""
        for other, position in (uses or {}).items():
            if other == stream or self._joined.get((stream, other), 0) >= position:
                continue
            if self._is_done(other, position):
                continue
            reached, event = self._covering(other, position)
            self._driver.wait_event(stream, event)
            self._joined[stream, other] = reached
            self.waits += 1

    def synchronize(self, uses: Uses) -> None:
        """Block the host until the device is done with memory that has `uses`."""
        for stream, position in (uses or {}).items():
            if not self._is_done(stream, position):
                _, event = self._covering(stream, position)
                self._driver.synchronize_event(event)

    def close(self) -> None:
        """Destroy the events. The device must be idle; after a failure, call it again."""
        for queue in self._pending.values():
            while queue:
                self._spare.append(queue.popleft()[1])
        while self._spare:
            self._return(self._driver.destroy_event, self._spare[-1])
            self._return.done(self._spare.pop())

    def _is_done(self, stream: int, position: int) -> bool:
        if self._done.get(stream, 0) >= position:
            return True
        if self._recorded.get(stream, 0) < position:
            self._record(stream)
        self._drain(stream)
        return self._done.get(stream, 0) >= position

    def _drain(self, stream: int) -> None:
        """Ask the device how far the stream is; events that are done can be used again."""
        queue = self._pending.get(stream)
        while queue and self._driver.event_done(queue[0][1]):
            self._done[stream] = queue[0][0]  # first: a position that is recorded is pending or done
            self._spare.append(queue.popleft()[1])

    def _covering(self, stream: int, position: int) -> tuple[int, int]:
        """Return (position, event) of the first recorded event that covers `position`."""
        if self._recorded.get(stream, 0) < position:
            self._record(stream)
        return next(item for item in self._pending[stream] if item[0] >= position)

    def _record(self, stream: int) -> None:
        queue = self._pending.setdefault(stream, deque())
        if len(queue) >= PENDING:
            self._drain(stream)
        if len(queue) >= PENDING:
            self._thin(queue)
        event = self._spare.pop() if self._spare else self._driver.create_event()
        try:
            self._driver.record_event(event, stream)
        except StreamError:
            self._spare.append(event)
            self._settle(stream)
            return
        except BaseException:
            self._spare.append(event)
            raise
        position = self._recorded.get(stream, 0) + 1
        queue.append((position, event))  # first: a position that is recorded has an event
        self._recorded[stream] = position

    def _thin(self, queue: deque[tuple[int, int]]) -> None:
        """Take every second event out, but not the last: what it covered, the next one covers too."""
        for index in range(len(queue) - 2, -1, -2):
            event = queue[index][1]
            del queue[index]  # first: an event in both places could be recorded for another stream
            self._spare.append(event)

    def _settle(self, stream: int) -> None:
        """Let the host wait until all is done that was queued on a stream which no longer exists."""
        self._driver.synchronize()
        position = self._recorded.get(stream, 0) + 1
        self._done[stream] = position
        self._recorded[stream] = position
        queue = self._pending[stream]
        while queue:
            self._spare.append(queue.popleft()[1])
