"""PyTorch memory snapshots: what ``torch.cuda.memory._dump_snapshot`` writes.

A snapshot is a pickled dictionary. Under ``device_traces`` it has, for each device, a list of events in
order; under ``segments`` the state at the end. Of the events, three are about tensors:

``alloc``
    with the bytes that were asked for, before rounding;
``free_requested``
    the program let go of the block: here the lifetime ends, as it does for any pool;
``free_completed``
    the allocator may hand it out again. Later than the request only for blocks that other streams
    still used, and a matter of the allocator that recorded it: ignored.

The history is a ring buffer, and may have been switched on late. What was live at its beginning shows
itself by a free without an allocation, or by a block at the end without an event. PyTorch's own viewer
draws those from the beginning, and so they are allocated here before the first event, since a replay
without them would see less live memory than there was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

from smartpool.errors import TraceError, TraceFormatError
from smartpool.files import read_bytes
from smartpool.trace.builder import TraceBuilder
from smartpool.trace.importers.plain_pickle import PlainUnpickler
from smartpool.trace.trace import Trace

__all__ = ["from_torch_snapshot"]

_ALLOC: Final = "alloc"
_FREE: Final = "free_requested"
_OTHER_ACTIONS: Final = (
    *("free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap"),
    *("oom", "snapshot", "workspace_snapshot"),
)
_MAX_FIELD: Final = 1 << 62
_MAX_FRAMES: Final = 48  # of a stack that are kept
_MAX_TEXT: Final = 300  # characters of a file's or a function's name that are kept


class _Event(NamedTuple):
    action: str
    address: int
    size: int
    stream: int
    time_us: int
    site: str | None


def from_torch_snapshot(
    path: str | PathLike[str], *, device: int | None = None, include_initial: bool = True
) -> Trace:
    """Return the allocations of one device in a PyTorch memory snapshot.

    Parameters
    ----------
    path
        The pickle. Only plain data are read from it; nothing in it can run.
    device
        Number of the device; None for the only one that has events.
    include_initial
        Begin with what was live when the history begins. Without, frees of such memory are dropped
        and counted.

    Raises
    ------
    UnsafePickleError
        When the pickle holds anything but plain containers, strings and numbers.
    TraceFormatError
        When it is damaged, or no snapshot.
    TraceError
        When the device has no events, or several have and none was named.
    OSError
        When the file cannot be opened.
    """
    where = str(path)
    snapshot = PlainUnpickler(read_bytes(path), where=where).load()
    if not isinstance(snapshot, dict) or not isinstance(snapshot.get("device_traces"), list):
        raise TraceFormatError(
            f"{where}: expected a dictionary with 'device_traces', as torch.cuda.memory._dump_snapshot "
            "writes after _record_memory_history"
        )
    traces = snapshot["device_traces"]
    device = _chosen_device(where, traces, device)
    sites = _Sites()
    events = list(_tensor_events(f"{where}, device {device}", traces[device], sites))
    builder = TraceBuilder(where)
    if include_initial:
        _allocate_initial(builder, events, _blocks(where, snapshot.get("segments", []), device, sites))
    initial = len(builder)
    for event in events:
        if event.action == _ALLOC:
            builder.allocate(
                event.address, event.size, stream=event.stream, time=event.time_us, site=event.site
            )
        else:
            builder.free(event.address, stream=event.stream, time=event.time_us)
    return builder.build(
        Path(path).stem,
        {
            "recorder": "pytorch",
            "device": device,
            "actions": _count_actions(traces[device]),
            "initial_allocations": initial,
        },
    )


def _chosen_device(where: str, traces: list[Any], device: int | None) -> int:
    recorded = [number for number, trace in enumerate(traces) if isinstance(trace, list) and trace]
    if device is None and len(recorded) == 1:
        return recorded[0]
    if device in recorded:
        assert device is not None
        return device
    if not recorded:
        raise TraceError(
            f"{where}: expected a history of allocations, got none; call "
            "torch.cuda.memory._record_memory_history() before the part that is to be seen"
        )
    raise TraceError(
        f"{where}: expected device to be one of those with events, {recorded[:64]}, got {device}"
    )


class _Sites:
    """Stacks as text. A snapshot has one stack many times over: as one object, after unpickling."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, str | None]] = {}  # by identity; the object is kept alive

    def of(self, entry: dict[Any, Any]) -> str | None:
        """Return where an event or a block was asked for, None where that was not recorded."""
        frames = entry.get("frames")
        known = self._known.get(id(frames))
        if known is None:
            known = self._known[id(frames)] = (frames, _stack(frames))
        return known[1]


def _stack(frames: object) -> str | None:
    """Return a stack as lines of text, the innermost call first; None for what is no stack."""
    if not isinstance(frames, list):
        return None
    lines = []
    for frame in frames[:_MAX_FRAMES]:
        if isinstance(frame, dict):
            file, line, name = (_short(frame.get(key, "")) for key in ("filename", "line", "name"))
            lines.append(f"{file}:{line} {name}")
    return "\n".join(lines) or None


def _short(value: object) -> str:
    """Return a part of a frame on one line; nothing for what is neither text nor number."""
    return " ".join(str(value)[:_MAX_TEXT].split()) if isinstance(value, str | int) else ""


def _tensor_events(where: str, entries: list[Any], sites: _Sites) -> Iterator[_Event]:
    """Yield the events about tensors, each checked."""
    for row, entry in enumerate(entries):
        action = entry.get("action") if isinstance(entry, dict) else None
        if not isinstance(action, str):
            raise TraceFormatError(f"{where}, event {row}: expected a dictionary with an 'action'")
        if action in (_ALLOC, _FREE):
            place = f"{where}, event {row}"
            address, size = _integer(place, entry, "addr"), _integer(place, entry, "size")
            time_us = _integer(place, entry, "time_us", default=row)
            stream = _integer(place, entry, "stream", default=0)
            yield _Event(action, address, size, stream, time_us, sites.of(entry))


def _blocks(
    where: str, segments: object, device: int, sites: _Sites
) -> dict[int, tuple[int, int, str | None]]:
    """Return size, stream and site of the blocks that tensors hold at the end, by address."""
    held: dict[int, tuple[int, int, str | None]] = {}
    for segment in _dictionaries(where, "segments", segments):
        if segment.get("device") != device:
            continue
        place = f"{where}, segments"
        address = _integer(place, segment, "address")
        for block in _dictionaries(where, "blocks", segment.get("blocks", [])):
            # Older snapshots do not give addresses: blocks lie one behind the other.
            address = _integer(place, block, "address", default=address)
            size = _integer(place, block, "size")
            if block.get("state") == "active_allocated":
                requested = _integer(place, block, "requested_size", default=size)
                stream = _integer(place, segment, "stream", default=0)
                held[address] = requested, stream, sites.of(block)
            address += size
    return held


def _allocate_initial(
    builder: TraceBuilder, events: list[_Event], held: Mapping[int, tuple[int, int, str | None]]
) -> None:
    """Allocate what was live before the first event, in the order of addresses."""
    seen: set[int] = set()
    initial: dict[int, tuple[int, int, str | None]] = {}
    for event in events:
        if event.address not in seen:
            seen.add(event.address)
            if event.action == _FREE:
                initial[event.address] = event.size, event.stream, None  # its stack is that of the free
    initial.update({address: block for address, block in held.items() if address not in seen})
    begin = events[0].time_us if events else 0
    for address in sorted(initial):
        size, stream, site = initial[address]
        builder.allocate(address, size, stream=stream, time=begin, site=site)


def _count_actions(entries: list[Any]) -> dict[str, int]:
    counts = Counter(entry["action"] for entry in entries)
    known = {action: counts[action] for action in (_ALLOC, _FREE, *_OTHER_ACTIONS) if counts[action]}
    other = counts.total() - sum(known.values())
    return {**known, "other": other} if other else known


def _dictionaries(where: str, what: str, values: object) -> list[dict[Any, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise TraceFormatError(f"{where}: expected {what!r} to be a list of dictionaries")
    return values


def _integer(where: str, entry: dict[Any, Any], key: str, *, default: int | None = None) -> int:
    value = entry.get(key, default)
    if type(value) is not int or not 0 <= value < _MAX_FIELD:
        raise TraceFormatError(
            f"{where}: expected {key!r} to be an integer in [0, 2**62), got {_shown(value)}"
        )
    return value


def _shown(value: object) -> str:
    """Return a value for a message; a container by its type, as it may hold itself, or 2**1000 leaves."""
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__}"
    return f"{value[:60]!r}" if isinstance(value, str) else repr(value)
