"""Stream order: when memory freed on one stream may be touched by another.

Problem: a free is a promise of the host that it will queue no more work on a block; work that is
queued already may still touch it. On the same stream that does not matter, since streams are in
order. Another stream, and the host that wants to unmap the memory, must know that this work is
done.
Method: events are counted. A *position* n of a stream stands for all work queued on it before an event
whose number is n or more was recorded there; a free made before that event is covered by it. A gap
carries for each stream that may still touch it the position that covers it, and another stream takes
the gap after waiting, on the device, for the event of that position. A wait orders everything before
it too, so each pair of streams remembers the latest position that was waited for (the vector
clocks of Mattern and Fidge, 1988), and most waits are never issued. The count is one for all streams,
so that a stream can be forgotten, and come back, and what it was done with stays done.
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
from collections.abc import Container, Iterable
from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.driver.returning import Returning
from smartpool.errors import StreamError
from smartpool.heap.arena import Uses

__all__ = ["PENDING", "StreamClock"]

PENDING: Final = 32
JOINS: Final = 16  # an event costs 2 us: as much as a whole request, did each record one


class _Line:
    """One stream: what was promised, recorded and done of it, as positions, and its events that are pending.

    ``done <= recorded <= marked``, and what is recorded and not done is pending.
    """

    __slots__ = ("done", "joins", "marked", "pending", "recorded")

    def __init__(self, position: int) -> None:
        self.done = self.recorded = self.marked = position
        self.joins = 0  # since the last event
        self.pending: deque[tuple[int, int]] = deque()  # (position, event), in order


class StreamClock:
    """Positions and events of the streams of one device. The pool's lock guards it.

    A stream that is not known is done with all that it was asked before: so what is known of one that has
    nothing to do, of those that were destroyed above all, can be forgotten.

    Attributes
    ----------
    waits
        How many waits between streams were queued on the device.
    several
        Whether more streams than the default one are used: then memory says itself which may touch it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._count = 0  # events recorded so far, of all streams: a later event has a larger position
        self._lines: dict[int, _Line] = {}
        self._joined: dict[tuple[int, int], int] = {}  # (waiting, other) -> position waited for
        self._spare: list[int] = []
        self._return = Returning()
        self.waits = 0
        self.several = False

    def __len__(self) -> int:
        """Return how many streams are known."""
        return len(self._lines)

    def mark(self, streams: Iterable[int]) -> dict[int, int]:
        """Return uses that cover all work queued so far on `streams`. Records no event yet."""
        uses = dict.fromkeys(streams, self._count + 1)
        for stream, position in uses.items():
            self._line(stream).marked = position
        return uses

    def mark_all(self, streams: Iterable[int]) -> dict[int, int]:
        """Return uses that cover all work queued so far on `streams`, and on all that are known."""
        return self.mark([*streams, *self._lines])

    def default_uses(self) -> Uses:
        """Return what memory without uses of its own stands for."""
        return None if self.several else self.mark([self._driver.default_stream])

    def stamp(self, stream: int) -> dict[int, int]:
        """Record an event now and return the uses that it covers: all work queued on `stream` so far."""
        self._record(stream)
        return {stream: self._count}

    def joined(self, stream: int) -> None:
        """Learn that blocks freed on `stream` became gaps; records an event from time to time.

        A gap without an event is as good as one with it, but who waits for it waits for all that was
        queued on the stream until then.
        """
        line = self._line(stream)
        line.joins += 1
        if line.joins == JOINS:
            line.joins = 0
            self._record(stream)

    def stamps(self, streams: Iterable[int]) -> Uses:
        """Return uses that cover all work queued so far on `streams`, each stamped now."""
        return {stream: position for each in streams for stream, position in self.stamp(each).items()} or None

    def ready(self, uses: Uses, stream: int) -> bool:
        """Return whether `stream` may touch memory with `uses` now, without a wait."""
        for other, position in (uses or {}).items():
            line = self._lines.get(other)
            if (
                line is not None
                and line.done < position
                and other != stream
                and self._joined.get((stream, other), 0) < position
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
                self._driver.synchronize_event(self._covering(stream, position)[1])

    def settle(self) -> None:
        """Let the host wait until all is done that was queued on any stream, and forget all streams."""
        self._driver.synchronize()
        self._count += 1  # what was only marked until now is done, too
        for line in self._lines.values():
            line.done = line.recorded = line.marked = self._count
        for line in self._lines.values():
            while line.pending:
                self._spare.append(line.pending.popleft()[1])
        self._lines.clear()
        self._joined.clear()

    def forget(self, kept: Container[int]) -> None:
        """Forget the streams that have nothing to do, but those in `kept`. Asks the device, never blocks.

        Of a stream that was destroyed before its last event the host waits for the device, once.
        """
        for stream, line in list(self._lines.items()):
            if stream not in kept and self._is_done(stream, line.marked):
                self._lines.pop(stream, None)
        self._joined = {
            (waiting, other): position
            for (waiting, other), position in self._joined.items()
            if other in self._lines and (waiting in self._lines or waiting in kept)
        }

    def close(self) -> None:
        """Destroy the events. The device must be idle; after a failure, call it again."""
        for line in self._lines.values():
            while line.pending:
                self._spare.append(line.pending.popleft()[1])
        while self._spare:
            self._return(self._driver.destroy_event, self._spare[-1])
            self._return.done(self._spare.pop())

    def _line(self, stream: int) -> _Line:
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line(self._count)
        return line

    def _is_done(self, stream: int, position: int) -> bool:
        line = self._lines.get(stream)
        if line is None or line.done >= position:
            return True
        if line.recorded < position:
            self._record(stream)
        self._drain(line)
        return line.done >= position

    def _drain(self, line: _Line) -> None:
        """Ask the device how far the stream is; events that are done can be used again."""
        pending = line.pending
        while pending and self._driver.event_done(pending[0][1]):
            line.done = max(line.done, pending[0][0])  # first: what is recorded is pending or done
            self._spare.append(pending.popleft()[1])

    def _covering(self, stream: int, position: int) -> tuple[int, int]:
        """Return (position, event) of the first recorded event that covers `position`, which is not done."""
        return next(item for item in self._lines[stream].pending if item[0] >= position)

    def _record(self, stream: int) -> None:
        line = self._line(stream)
        pending = line.pending
        if len(pending) >= PENDING:
            self._drain(line)
        if len(pending) >= PENDING:
            self._thin(pending)
        event = self._spare.pop() if self._spare else self._driver.create_event()
        try:
            self._driver.record_event(event, stream)
        except StreamError:  # it exists no more, and takes no event
            self._spare.append(event)
            self.settle()
            return
        except BaseException:
            self._spare.append(event)
            raise
        position = self._count = self._count + 1
        pending.append((position, event))  # first: a position that is recorded has an event
        line.recorded = line.marked = position

    def _thin(self, pending: deque[tuple[int, int]]) -> None:
        """Take every second event out, but not the last: what it covered, the next one covers too."""
        for index in range(len(pending) - 2, -1, -2):
            event = pending[index][1]
            del pending[index]  # first: an event in both places could be recorded for another stream
            self._spare.append(event)
