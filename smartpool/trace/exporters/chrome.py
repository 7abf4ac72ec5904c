"""Traces in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

Each allocation is a pair of nestable asynchronous events (``b``, ``e``) under its tier: lifetimes
overlap as they like, which slices on a thread may not. Counters (``C``) have the live bytes by stream
and, by replay, what each allocator would have reserved and how much of that was not live.

Times are microseconds, as the format wants. Events of one microsecond keep their order in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np

from smartpool.tiers import tier_of
from smartpool.trace.layouts import Layout, watched_replay
from smartpool.trace.targets import SMARTPOOL, open_target
from smartpool.trace.trace import ALLOCATE, Trace
from smartpool.units import format_size

__all__ = ["CHROME_ALLOCATORS", "chrome_events", "to_chrome_trace"]

CHROME_ALLOCATORS: Final = (SMARTPOOL, "pytorch")
"""Allocators that are replayed for the counters of reserved memory, unless others are named."""

_PROCESS: Final = 1
_DEVICE: Final = "model:64TiB"  # nothing fails for lack of memory: the counters show what it would take

Event = dict[str, Any]


def to_chrome_trace(
    trace: Trace, path: str | PathLike[str], *, allocators: Sequence[str] = CHROME_ALLOCATORS
) -> None:
    """Write a trace as JSON in the Trace Event Format, an event a line.

    Parameters
    ----------
    trace
        The trace.
    path
        The file to write.
    allocators
        Names as for `smartpool.trace.targets.open_target`, whose reserved memory becomes counters.

    Raises
    ------
    ConfigurationError
        When an allocator is not known.
    OSError
        When the file cannot be written.
    """
    layouts = [_layout(trace, name) for name in allocators]
    other = {"trace": trace.name, "events": trace.events, "source": "smartpool"}
    with Path(path).open("w", encoding="ascii") as file:
        file.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(other)}, "traceEvents": [')
        events = enumerate(chrome_events(trace, layouts))
        file.writelines(f"{',' if number else ''}\n{_line(event)}" for number, event in events)
        file.write("\n]}\n")


def chrome_events(trace: Trace, layouts: Sequence[Layout] = ()) -> Iterator[Event]:
    """Yield the events in order of time: names first, then what each event of the trace changed.

    Examples
    --------
    >>> trace = Trace.from_columns("tiny", op=[0, 1], id=[3, 3], size=[4096, 4096])
    >>> [event["ph"] for event in chrome_events(trace)]
    ['M', 'b', 'C', 'e', 'C']
    """
    yield {"ph": "M", "pid": _PROCESS, "tid": 0, "name": "process_name", "args": {"name": trace.name}}
    counters = [_Counters(layout) for layout in layouts]
    live = [0] * trace.streams
    for number, (event, (change, stream)) in enumerate(_allocation_events(trace)):
        yield event
        live[stream] += change
        time = event["ts"]
        yield _counter("live bytes", time, {f"stream {name}": nbytes for name, nbytes in enumerate(live)})
        total = sum(live)
        for counter in counters:
            yield from counter.after(number, time, total)


class _Counters:
    """What one allocator reserved and how much of it is not live, each where it changes."""

    def __init__(self, layout: Layout) -> None:
        self._name = layout.allocator
        self._steps = iter(zip(layout.change.tolist(), layout.reserved.tolist(), strict=True))
        self._next = next(self._steps, None)
        self._reserved = 0
        self._percent = -1.0

    def after(self, number: int, time: int, live: int) -> Iterator[Event]:
        """Yield what changed with an event."""
        if self._next is not None and self._next[0] == number:
            self._reserved = self._next[1]
            self._next = next(self._steps, None)
            yield _counter(f"reserved bytes, {self._name}", time, {"reserved": self._reserved})
        share = max(0.0, 1 - live / self._reserved) if self._reserved else 0.0
        percent = round(share * 100, 1)
        if percent != self._percent:
            self._percent = percent
            yield _counter(f"fragmentation, {self._name}", time, {"not live, percent": percent})


def _allocation_events(trace: Trace) -> Iterator[tuple[Event, tuple[int, int]]]:
    """Yield each row as an event, with the bytes that it adds and the stream that they count for.

    A free counts for the stream of its allocation: otherwise streams would go below zero.
    """
    partner_stream = trace.stream[trace.lifetimes().start].tolist()
    sites = trace.sites
    site = np.full(trace.events, -1) if trace.site is None else trace.site
    address = np.zeros(trace.events, np.int64) if trace.address is None else trace.address
    columns = zip(
        trace.op.tolist(), trace.allocation_numbers().tolist(), trace.size.tolist(), trace.stream.tolist(),
        trace.t_us.tolist(), site.tolist(), address.tolist(), strict=True,
    )  # fmt: skip
    for op, number, size, stream, time, place, at in columns:
        event: Event = {
            "ph": "b" if op == ALLOCATE else "e",
            "cat": tier_of(size).value,
            "name": format_size(size),
            "id": hex(number),
            "pid": _PROCESS,
            "tid": 0,
            "ts": time,
        }
        if op == ALLOCATE:
            event["args"] = {"bytes": size, "stream": stream}
            if trace.address is not None:
                event["args"]["address"] = hex(at)
            if place >= 0:
                event["args"]["stack"] = sites[place]
        yield event, (size if op == ALLOCATE else -size, partner_stream[number])


def _line(event: Event) -> str:
    return json.dumps(event, separators=(",", ":"))


def _counter(name: str, time: int, values: dict[str, Any]) -> Event:
    return {"ph": "C", "pid": _PROCESS, "tid": 0, "name": name, "ts": time, "args": values}


def _layout(trace: Trace, name: str) -> Layout:
    with open_target(name, _DEVICE) as target:
        return watched_replay(trace, target)[1]
