"""A driver that knows which work is behind which: stream order, decided and not left to chance.

Problem: memory that was freed on one stream and is handed out on another must be used there behind the work
that may still run. Whether bytes are lost depends on timing, so a test that looks at bytes passes by luck.

Method: vector clocks (C. Fidge, "Timestamps in message-passing systems that preserve the partial ordering",
1988; F. Mattern, 1989). Each stream counts the work queued on it; an event takes the clock of its stream, a
wait merges it into another's, and what the host saw done is behind nobody. Two pieces of work that touch
the same bytes are ordered when the later one's clock has the earlier one. Bytes are those of the chunk that
is mapped, so that second mappings of a chunk are the same bytes.

Bound: O(pieces of work on the device that are not known to be done) a question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from smartpool.driver import Driver, open_driver

__all__ = ["WatchedDriver"]

_SLOT: Final = 64
_SLOTS: Final = 512
_EDGE: Final = 32
_BUSY_BYTES: Final = 64 << 20
_BUSY_FILLS: Final = 100  # of 64 MiB: some milliseconds on any GPU

_Clock = dict[int, int]


@dataclass(frozen=True, slots=True)
class _Work:
    """A piece of work: the `position`-th on its stream, and the bytes that it touches."""

    stream: int
    position: int
    address: int
    size: int
    bytes: tuple[tuple[int, int, int], ...]  # chunk (0: raw memory), from, to


@dataclass(slots=True)
class _Order:
    """Who is behind whom."""

    ticks: _Clock = field(default_factory=lambda: defaultdict(int))
    known: dict[int, _Clock] = field(default_factory=lambda: defaultdict(dict))
    events: dict[int, _Clock] = field(default_factory=dict)
    host: _Clock = field(default_factory=dict)

    def tick(self, stream: int) -> int:
        self.ticks[stream] += 1
        return self.ticks[stream]

    def now(self, stream: int) -> _Clock:
        return {**self.known[stream], stream: self.ticks[stream]}

    def behind(self, stream: int | None, work: _Work) -> bool:
        """Whether what comes next on the stream (None: on the host) comes after the work is done."""
        if work.stream == stream or self.host.get(work.stream, 0) >= work.position:
            return True
        return stream is not None and self.known[stream].get(work.stream, 0) >= work.position


class WatchedDriver:
    """A driver in front of another, for an allocator under test.

    Parameters
    ----------
    driver
        What does the work: a driver, or a device's name.

    Attributes
    ----------
    torn
        What was unmapped or given back under work that may still run, in words.

    Examples
    --------
    >>> driver = WatchedDriver("model:64MiB")
    >>> block, stream = driver.allocate(512), driver.create_stream()
    >>> driver.fill(block, 1, 512, 0)
    >>> driver.is_ordered(block, 512, 0), driver.is_ordered(block, 512, stream)
    (True, False)
    >>> event = driver.create_event()
    >>> driver.record_event(event, 0); driver.wait_event(stream, event)
    >>> driver.is_ordered(block, 512, stream)
    True
    """

    def __init__(self, driver: Driver | str) -> None:
        self.inner: Any = open_driver(driver) if isinstance(driver, str) else driver
        self.torn: list[str] = []
        self._order = _Order()
        self._work: list[_Work] = []
        self._chunk_sizes: dict[int, int] = {}
        self._mapped: dict[int, tuple[int, int]] = {}  # address -> chunk, size
        self._raw: dict[int, int] = {}
        self._paused: set[int] = set()
        self._slots: int | None = None
        self._looks = 0
        self._ballast: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    # ------------------------------------------------------------------ what a test asks

    def is_ordered(self, address: int, size: int, stream: int) -> bool:
        """Return whether what `stream` does next comes after all work on these bytes so far."""
        return not any(self.late(address, size, stream))

    def late(self, address: int, size: int, stream: int) -> Iterator[str]:
        """Yield, in words, the work on these bytes that `stream` is not behind."""
        touched = self._bytes(address, size)
        for work in self._pending():
            if not self._order.behind(stream, work) and _meet(work.bytes, touched):
                yield f"work {work.position} of stream {work.stream} on [{work.address:#x}, +{work.size})"

    def prepare(self) -> None:
        """Take the memory that looks need, before an allocator takes all there is."""
        if self._slots is None:
            self._slots = self.inner.allocate(_SLOT * _SLOTS)

    def look(self, address: int, size: int, stream: int) -> int:
        """Queue a copy of both ends of a block to where nobody writes; return its number for `seen`."""
        self.prepare()
        assert self._slots is not None
        number, self._looks = self._looks % _SLOTS, self._looks + 1
        slot, edge = self._slots + number * _SLOT, min(_EDGE, size)
        self.copy(slot, address, edge, stream)
        self.copy(slot + _EDGE, address + size - edge, edge, stream)
        return number

    def seen(self, number: int, size: int) -> bytes:
        """Return what a look has seen of a block of `size` bytes, after all work is done."""
        self.go_on()
        edge, slot = min(_EDGE, size), (self._slots or 0) + number * _SLOT
        return bytes(self.inner.read(slot, edge) + self.inner.read(slot + _EDGE, edge))

    def busy(self, stream: int) -> None:
        """Let the stream be busy: until `go_on` on a host driver, for some milliseconds on a GPU."""
        if hasattr(self.inner, "pause"):
            self._paused.add(stream)
            self.inner.pause(stream)
            return
        if self._ballast is None:
            self._ballast = self.inner.allocate(_BUSY_BYTES)
        for _ in range(_BUSY_FILLS):
            self.inner.fill(self._ballast, 0, _BUSY_BYTES, stream)

    def go_on(self, stream: int | None = None) -> None:
        """Let busy streams (None: all) do their work; the host waits for the device in no other way."""
        for each in sorted(self._paused) if stream is None else {stream} & self._paused:
            self._paused.discard(each)
            self.inner.resume(each)

    def release(self) -> None:
        """Give back what the watching took; the driver is as the allocator left it."""
        self.go_on()
        self.inner.synchronize()
        for name in ("_slots", "_ballast"):
            address = getattr(self, name)
            if address is not None:
                setattr(self, name, None)
                self.inner.free(address)

    def order(self, stream: int, *, behind: int) -> None:
        """Let `stream` wait, on the device, for all that is queued on the stream `behind`."""
        with self._unharmed():
            event = self.create_event()
            self.record_event(event, behind)
            self.wait_event(stream, event)
            self.destroy_event(event)

    @contextmanager
    def _unharmed(self) -> Iterator[None]:
        """Let no scripted fault fire: they are for the allocator's calls, not for the test's own."""
        faults = getattr(self.inner, "faults", None)
        if faults is None or faults.lost is not None:
            yield
            return
        armed, faults.alert = faults.alert, False
        try:
            yield
        finally:
            faults.alert = armed

    # ------------------------------------------------------------------ work

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Queue a fill, and note what it touches."""
        with self._unharmed():
            self.inner.fill(address, value, size, stream)
        self._note(address, size, stream)

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue a copy, and note what it touches."""
        with self._unharmed():
            self.inner.copy(destination, source, size, stream)
        self._note(source, size, stream)
        self._note(destination, size, stream)

    # ------------------------------------------------------------------ events

    def record_event(self, event: int, stream: int) -> None:
        """Let the event stand for all that the stream is behind, and its own work."""
        self.inner.record_event(event, stream)
        self._order.events[event] = self._order.now(stream)

    def wait_event(self, stream: int, event: int) -> None:
        """Let the stream be behind what the event stands for."""
        self.inner.wait_event(stream, event)
        _merge(self._order.known[stream], self._order.events.get(event, {}))

    def event_done(self, event: int) -> bool:
        """Ask; what is done is behind the host."""
        done = bool(self.inner.event_done(event))
        if done:
            _merge(self._order.host, self._order.events.get(event, {}))
        return done

    def synchronize_event(self, event: int) -> None:
        """Wait on the host; busy streams go on."""
        self.go_on()
        self.inner.synchronize_event(event)
        _merge(self._order.host, self._order.events.get(event, {}))

    def synchronize(self, stream: int | None = None) -> None:
        """Wait on the host; busy streams go on."""
        self.go_on()
        self.inner.synchronize(stream)
        for each in list(self._order.ticks) if stream is None else [stream]:
            _merge(self._order.host, self._order.now(each))

    def destroy_event(self, event: int) -> None:
        """Forget an event."""
        self.inner.destroy_event(event)
        self._order.events.pop(event, None)

    # ------------------------------------------------------------------ memory

    def allocate(self, size: int) -> int:
        """Take raw memory."""
        address = int(self.inner.allocate(size))
        self._raw[address] = size
        return address

    def free(self, address: int) -> None:
        """Give raw memory back: nothing may still run on it."""
        self._must_be_done("free", address, self._raw.get(address, 1))
        self.go_on()
        self.inner.free(address)
        size = self._raw.pop(address, 0)
        self._work = [work for work in self._work if not address <= work.address < address + size]

    def create_chunk(self, size: int) -> int:
        """Take a chunk."""
        chunk = int(self.inner.create_chunk(size))
        self._chunk_sizes[chunk] = size
        return chunk

    def release_chunk(self, chunk: int) -> None:
        """Give a chunk back; its bytes are nobody's."""
        self.inner.release_chunk(chunk)
        self._chunk_sizes.pop(chunk, None)
        self._work = [work for work in self._work if all(owner != chunk for owner, _, _ in work.bytes)]

    def map_chunk(self, address: int, chunk: int) -> None:
        """Map a chunk."""
        self.inner.map_chunk(address, chunk)
        self._mapped[address] = chunk, self._chunk_sizes[chunk]

    def unmap(self, address: int, size: int) -> None:
        """Unmap: nothing may still run through these addresses."""
        self._must_be_done("unmap", address, size)
        self.inner.unmap(address, size)
        self._mapped = {at: where for at, where in self._mapped.items() if not address <= at < address + size}

    # ------------------------------------------------------------------ inside

    def _note(self, address: int, size: int, stream: int) -> None:
        self._work.append(
            _Work(stream, self._order.tick(stream), address, size, tuple(self._bytes(address, size)))
        )

    def _pending(self) -> list[_Work]:
        """Return the work that the host does not know to be done; all other is forgotten."""
        self._work = [work for work in self._work if not self._order.behind(None, work)]
        return self._work

    def _must_be_done(self, call: str, address: int, size: int) -> None:
        for work in self._pending():
            if work.address < address + size and address < work.address + work.size:
                self.torn.append(
                    f"{call} of [{address:#x}, +{size}) under work {work.position} of stream {work.stream}, "
                    "which nobody knows to be done"
                )

    def _bytes(self, address: int, size: int) -> list[tuple[int, int, int]]:
        found = []
        for at, (chunk, length) in self._mapped.items():
            low, high = max(at, address), min(at + length, address + size)
            if low < high:
                found.append((chunk, low - at, high - at))
        return found or [(0, address, address + size)]


def _merge(clock: _Clock, other: _Clock) -> None:
    for stream, position in other.items():
        clock[stream] = max(clock.get(stream, 0), position)


def _meet(first: tuple[tuple[int, int, int], ...], second: list[tuple[int, int, int]]) -> bool:
    return any(
        owner == other and low < other_high and other_low < high
        for owner, low, high in first
        for other, other_low, other_high in second
    )
