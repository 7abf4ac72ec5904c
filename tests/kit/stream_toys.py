"""A small pool that knows streams, and the same with its waits forgotten in every way that comes to mind.

`STREAM_PLANTED` lists the bugs; all of them break `Invariant.STREAM_ORDER`, and none shows on one stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["STREAM_PLANTED", "StreamToy"]

CAPACITY: Final = 4096
_UNIT: Final = 512


@dataclass(slots=True)
class _Gap:
    """Free memory, and the events of work that may still touch it."""

    start: int
    size: int
    events: list[tuple[int, int]]  # event, the stream that it was recorded on


class StreamToy:
    """First fit over 4 KiB of a driver; memory changes streams behind an event.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> driver = open_driver("model:64MiB")
    >>> pool, stream = StreamToy(driver), driver.create_stream()
    >>> pool.free(pool.malloc(4096))
    >>> block = pool.malloc(4096, stream=stream)
    >>> driver.calls["wait_event"]
    1
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.base = driver.allocate(CAPACITY)
        self.gaps = [_Gap(self.base, CAPACITY, [])]
        self.live: dict[int, tuple[int, int, list[int]]] = {}  # address -> size, stream, further streams

    def malloc(self, nbytes: int, stream: int = 0) -> int:
        """Return memory that `stream` may use at once."""
        if not isinstance(nbytes, int) or nbytes < 0:
            raise ValueError(f"expected a size, got {nbytes!r}")
        size = max(_UNIT, -(-nbytes // _UNIT) * _UNIT)
        for gap in self.gaps:
            if gap.size >= size:
                return self.take(gap, size, stream)
        raise MemoryError(f"no gap holds {size} bytes")

    def free(self, address: int, stream: int | None = None) -> None:
        """End a block, which `stream` used last (None: the one that it was requested for)."""
        if address not in self.live:
            raise ValueError(f"expected a live block, got {address!r}")
        size, own, others = self.live.pop(address)
        streams = [own if stream is None else stream, *others]
        self.gaps.append(_Gap(address, size, self.marks(streams)))
        self.join()

    def record_stream(self, address: int, stream: int) -> None:
        """Say that `stream` uses the block too."""
        self.live[address][2].append(stream)

    def close(self) -> None:
        """Give the memory back once the device is done."""
        self.driver.synchronize()
        self.driver.free(self.base)

    # ------------------------------------------------------------------ what the bugs replace

    def take(self, gap: _Gap, size: int, stream: int) -> int:
        """Cut a block from a gap, behind its events."""
        self.gaps.remove(gap)
        self.wait(gap, stream)
        if gap.size > size:
            self.gaps.append(_Gap(gap.start + size, gap.size - size, list(gap.events)))
            self.join()
        self.live[gap.start] = size, stream, []
        return gap.start

    def wait(self, gap: _Gap, stream: int) -> None:
        """Let the stream wait for all events of other streams."""
        for event, recorded_on in gap.events:
            if recorded_on != stream:
                self.driver.wait_event(stream, event)

    def marks(self, streams: list[int]) -> list[tuple[int, int]]:
        """Return fresh events for what is queued on these streams."""
        found = []
        for stream in streams:
            event = self.driver.create_event()
            self.driver.record_event(event, stream)
            found.append((event, stream))
        return found

    def join(self) -> None:
        """Join neighbors; who takes them waits for the events of both."""
        joined: list[_Gap] = []
        for gap in sorted(self.gaps, key=lambda gap: gap.start):
            if joined and joined[-1].start + joined[-1].size == gap.start:
                joined[-1].size += gap.size
                joined[-1].events = self.merged(joined[-1].events, gap.events)
            else:
                joined.append(gap)
        self.gaps = joined

    def merged(self, left: list[tuple[int, int]], right: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the events of two neighbors."""
        return left + right


class ForgetsToWait(StreamToy):
    """Memory is memory."""

    def wait(self, gap: _Gap, stream: int) -> None:
        pass


class WaitsWhenLarge(StreamToy):
    """Only what is taken whole is waited for."""

    def take(self, gap: _Gap, size: int, stream: int) -> int:
        if gap.size > size:
            gap = _Gap(gap.start, gap.size, [])
            self.gaps = [each if each.start != gap.start else gap for each in self.gaps]
        return super().take(gap, size, stream)


class ForgetsRecordedStreams(StreamToy):
    """Further streams are noted and never asked."""

    def marks(self, streams: list[int]) -> list[tuple[int, int]]:
        return super().marks(streams[:1])


class KeepsOneEvent(StreamToy):
    """A joined gap keeps the events of its left part."""

    def merged(self, left: list[tuple[int, int]], right: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return left or right


class TrustsTheFreeingStream(StreamToy):
    """Whoever frees on a stream is taken to have requested there: the events of before are dropped."""

    def wait(self, gap: _Gap, stream: int) -> None:
        if gap.events and gap.events[-1][1] == stream:
            return
        super().wait(gap, stream)


class RecordsOneEvent(StreamToy):
    """One event is made and recorded again at each free, so that it stands for the latest only."""

    event: int | None = None

    def marks(self, streams: list[int]) -> list[tuple[int, int]]:
        found = []
        for stream in streams:
            if self.event is None:
                self.event = self.driver.create_event()
            self.driver.record_event(self.event, stream)
            found.append((self.event, stream))
        return found


class ClosesTooEarly(StreamToy):
    """The memory goes back while the device may be at it."""

    def close(self) -> None:
        self.driver.free(self.base)


STREAM_PLANTED: Final[tuple[type[StreamToy], ...]] = (
    ForgetsToWait,
    WaitsWhenLarge,
    ForgetsRecordedStreams,
    KeepsOneEvent,
    TrustsTheFreeingStream,
    RecordsOneEvent,
    ClosesTooEarly,
)
"""Every bug."""
