"""From what recorders and logs know (pointers, any stream handles, clocks) to a `Trace`.

Logs begin in the middle of a program's life, miss events, and hand out one address many times. The
builder numbers allocations and streams in the order in which they are first seen, and settles what a
trace may not hold. It counts what it settles, by name, and the counts go into the trace's metadata, so
that a reader can judge the recording:

``unknown_frees``
    frees of pointers that were allocated before the recording began: dropped (or refused, where the
    caller says so).
``implied_frees``
    an address came up again without a free between: the log has lost it. The free is put in just
    before the allocation, with its time, because the address was certainly free by then.
``empty_requests``
    requests of no bytes, and their frees: dropped, as they hold no memory.
``events_of_further_streams``
    a trace has room for 256 streams: further ones share the last number.
``sites_left_out``
    requests of further places in the program, for whose stacks there was no room: theirs is unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Final, cast

import numpy as np

from smartpool.errors import TraceInconsistentError
from smartpool.trace.trace import ALLOCATE, FREE, MAX_ADDRESS, MAX_STREAMS, Trace

__all__ = ["Places", "TraceBuilder"]

_MAX_SITE_CHARACTERS: Final = 500_000
"""Of all places together, as JSON: they go into the metadata, which may hold 2**20 characters."""


class TraceBuilder:
    """Collects events and makes a trace of them. Amortized O(1) an event.

    Parameters
    ----------
    where
        What the events come from, for messages; may be set anew for each event.
    ticks_per_us
        How many units of the caller's clock make a microsecond.
    refuse_unknown_frees
        Raise at a free of what was never allocated, instead of dropping it.

    Examples
    --------
    >>> builder = TraceBuilder("an example")
    >>> builder.allocate(0x7F00, 512, stream="main", time=10)
    >>> builder.free(0x7F00, stream="main", time=12)
    >>> builder.build("tiny").t_us.tolist()
    [0, 2]
    """

    def __init__(self, where: str, *, ticks_per_us: int = 1, refuse_unknown_frees: bool = False) -> None:
        self.where = where
        self.counts: Final[Counter[str]] = Counter()
        self._ticks_per_us: Final = ticks_per_us
        self._refuse: Final = refuse_unknown_frees
        # pointer -> id, size, stream number, site number
        self._live: dict[Hashable, tuple[int, int, int, int]] = {}
        self._empty: Counter[Hashable] = Counter()  # pointers of live requests of no bytes
        self._streams: dict[Hashable, int] = {}
        self._allocations = 0
        self._op = bytearray()
        self._id: list[int] = []
        self._size: list[int] = []
        self._stream = bytearray()
        self._time: list[int] = []
        self._pointer: list[Hashable] = []
        self._site: list[int] = []
        self._sites = Places()

    def __len__(self) -> int:
        return len(self._op)

    def allocate(
        self, pointer: Hashable, size: int, *, stream: Hashable, time: int, site: str | None = None
    ) -> None:
        """Add an allocation of `size` bytes at `pointer`, asked for by the place `site` in the program."""
        if size == 0:
            self.counts["empty_requests"] += 1
            self._empty[pointer] += 1
            return
        number = self._stream_number(stream)
        if pointer in self._live:
            self.counts["implied_frees"] += 1
            self._end(pointer, self._live[pointer][2], time)
        held = (self._allocations, size, number, self._site_number(site))
        self._live[pointer] = held
        self._add(ALLOCATE, pointer, held, number, time)
        self._allocations += 1

    def free(self, pointer: Hashable, *, stream: Hashable = None, time: int, size: int | None = None) -> None:
        """Add a free, on the stream of its allocation where `stream` is None; one of no bytes is dropped."""
        held = self._live.get(pointer)
        if held is not None:
            self._end(pointer, held[2] if stream is None else self._stream_number(stream), time)
        elif self._empty[pointer] > 0:
            self._empty[pointer] -= 1
        elif size == 0:
            pass
        elif self._refuse:
            shown = hex(pointer) if isinstance(pointer, int) else repr(pointer)
            raise TraceInconsistentError(
                f"{self.where}: frees {shown}, which is not live there; the log may have begun later than "
                "the program (then have such frees dropped: drop_unknown_frees=True, or on the command line "
                "convert it with --drop-unknown-frees), or be damaged"
            )
        else:
            self.counts["unknown_frees"] += 1

    def size_of(self, pointer: Hashable) -> int | None:
        """Return the bytes that are live at `pointer`, None where nothing is."""
        held = self._live.get(pointer)
        return None if held is None else held[1]

    def build(self, name: str, meta: Mapping[str, object] | None = None) -> Trace:
        """Return the trace of all events so far; what was settled is counted in its metadata."""
        ticks = np.array(self._time, dtype=np.int64)
        if ticks.size:
            # Clocks of several threads may disagree by a little: the order of events is what counts.
            ticks = np.maximum.accumulate(ticks - ticks[0]) // self._ticks_per_us
        names = self._sites.names()
        sites = {"sites": names} if names else {}
        return Trace.from_columns(
            name,
            op=np.frombuffer(bytes(self._op), np.uint8),
            id=self._id,
            size=self._size,
            stream=np.frombuffer(bytes(self._stream), np.uint8),
            t_us=ticks,
            meta={**(meta or {}), "streams": len(self._streams), "settled": dict(+self.counts), **sites},
            address=_addresses(self._pointer, self._size),
            site=self._site if sites else None,
        )

    def _end(self, pointer: Hashable, stream_number: int, time: int) -> None:
        self._add(FREE, pointer, self._live.pop(pointer), stream_number, time)

    def _add(
        self, op: int, pointer: Hashable, held: tuple[int, int, int, int], stream_number: int, time: int
    ) -> None:
        allocation, size, _, site = held
        self._op.append(op)
        self._id.append(allocation)
        self._size.append(size)
        self._stream.append(stream_number)
        self._time.append(time)
        self._pointer.append(pointer)
        self._site.append(site)

    def _site_number(self, site: str | None) -> int:
        """Return the number of a place, -1 for one that is not known or for which there is no room."""
        number = -1 if site is None else self._sites.number(site)
        self.counts["sites_left_out"] += site is not None and number < 0
        return number

    def _stream_number(self, stream: Hashable) -> int:
        number = self._streams.setdefault(stream, len(self._streams))
        if number < MAX_STREAMS:
            return number
        self.counts["events_of_further_streams"] += 1
        return MAX_STREAMS - 1


class Places:
    """Numbers of places in the program, as many as the metadata of a trace has room for."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._characters = 0

    def number(self, site: str) -> int:
        """Return the number of a place; -1 where there is no room for another."""
        number = self._numbers.get(site)
        if number is None:
            written = len(json.dumps(site))  # some characters are six there
            if self._characters + written > _MAX_SITE_CHARACTERS:
                return -1
            self._characters += written
            number = self._numbers[site] = len(self._numbers)
        return number

    def names(self) -> list[str]:
        """Return the places by number."""
        return list(self._numbers)


def _addresses(pointers: list[Hashable], sizes: list[int]) -> list[int] | None:
    """Return pointers as addresses, None where any is something else: a test's name, an odd log's text."""
    for pointer, size in zip(pointers, sizes, strict=True):
        if type(pointer) is not int or not 0 <= pointer <= MAX_ADDRESS - size:
            return None
    return cast("list[int]", pointers)
