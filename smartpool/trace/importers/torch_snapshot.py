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
without them would see less live memory than there was. What ``torch.cuda.memory_snapshot`` returns, a list of
segments, has no history at all: all that is live in it is allocated.

PyTorch 2.0 kept a block's bytes as requested, and its stack, in the first entry of its ``history``.
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
_MAX_FRAMES: Final = 256  # of a stack that are looked at
_MAX_TEXT: Final = 2000  # characters of a file's or a function's name that are kept
_MAX_STACK: Final = 20_000  # characters of a stack that are kept, to the end of a call
_REMEMBERED: Final = 4_000_000  # characters of stacks that need not be put together again


class _Event(NamedTuple):
    action: str
    address: int
    size: int
    stream: int
    time_us: int
    frames: object


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
    traces, segments = _parts(where, PlainUnpickler(read_bytes(path), where=where).load())
    device = _chosen_device(where, _recorded(where, traces, segments), device)
    entries = [] if traces is None else traces[device]
    sites = _Sites()
    events = list(_tensor_events(f"{where}, device {device}", entries))
    builder = TraceBuilder(where)
    if include_initial:
        _allocate_initial(builder, events, _blocks(where, segments, device), sites)
    initial = len(builder)
    for event in events:
        if event.action == _ALLOC:
            site = sites.of(event.frames)
            builder.allocate(event.address, event.size, stream=event.stream, time=event.time_us, site=site)
        else:
            builder.free(event.address, stream=event.stream, time=event.time_us, size=event.size)
    return builder.build(
        Path(path).stem,
        {
            "recorder": "pytorch",
            "device": device,
            "actions": _count_actions(entries),
            "initial_allocations": initial,
        },
    )


def _parts(where: str, snapshot: object) -> tuple[list[Any] | None, object]:
    """Return the events of each device, None where nobody ever records them, and the segments."""
    if isinstance(snapshot, dict):
        traces, segments = snapshot.get("device_traces", []), snapshot.get("segments", [])
        if isinstance(traces, list) and snapshot.keys() & {"device_traces", "segments"}:
            return traces, segments
    elif isinstance(snapshot, list) and snapshot:
        return None, snapshot
    raise TraceFormatError(
        f"{where}: expected a dictionary with 'device_traces', as torch.cuda.memory._dump_snapshot "
        "writes after _record_memory_history"
    )


def _recorded(where: str, traces: list[Any] | None, segments: object) -> list[int]:
    """Return the numbers of the devices that something is known of."""
    if traces is not None:
        return [number for number, trace in enumerate(traces) if isinstance(trace, list) and trace]
    held = _dictionaries(where, "segments", segments)
    return sorted({_integer(f"{where}, segments", segment, "device") for segment in held})


def _chosen_device(where: str, recorded: list[int], device: int | None) -> int:
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
        f"{where}: expected device to be one of those with events, {recorded[:64]}, got {device}; name one, "
        "with --gpu on the command line (convert has it, where another command has not)"
    )


class _Sites:
    """Stacks as text. A snapshot has one stack many times over: as one object, after unpickling."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, str | None]] = {}  # by identity; the object is kept alive
        self._left = _REMEMBERED

    def of(self, frames: object) -> str | None:
        """Return where something was asked for, None where that was not recorded."""
        known = self._known.get(id(frames))
        if known is not None:
            return known[1]
        text = _stack(frames)
        self._left -= len(text or "")
        if self._left > 0:
            self._known[id(frames)] = frames, text
        return text


def _stack(frames: object) -> str | None:
    """Return a stack as lines of text, the innermost call first; None for what is no stack."""
    if not isinstance(frames, list):
        return None
    lines: list[str] = []
    room = _MAX_STACK
    for frame in frames[:_MAX_FRAMES]:
        if isinstance(frame, dict):
            file, line, name = (_short(frame.get(key, "")) for key in ("filename", "line", "name"))
            text = f"{file}:{line} {name}" if file or line != "0" else name  # a name alone, as we write it
            room -= len(text) + 1
            if room < 0:
                break
            lines.append(text)
    return "\n".join(lines) if lines else None


def _short(value: object) -> str:
    """Return a part of a frame on one line; nothing for what is neither text nor number."""
    return str(value)[:_MAX_TEXT].replace("\n", " ") if isinstance(value, str | int) else ""


def _tensor_events(where: str, entries: list[Any]) -> Iterator[_Event]:
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
            yield _Event(action, address, size, stream, time_us, entry.get("frames"))


class _Held(NamedTuple):
    """A block that a tensor holds: bytes as requested, stream, and stack."""

    size: int
    stream: int
    frames: object


def _blocks(where: str, segments: object, device: int) -> dict[int, _Held]:
    """Return the blocks that tensors hold at the end, by address."""
    held: dict[int, _Held] = {}
    seen: set[int] = set()  # by identity: what a file names again and again is walked once
    for segment in _dictionaries(where, "segments", segments):
        place = f"{where}, segments"
        if _integer(place, segment, "device") != device or id(segment) in seen:
            continue
        seen.add(id(segment))
        address = _integer(place, segment, "address")
        blocks = _dictionaries(where, "blocks", segment.get("blocks", []))
        if id(blocks) in seen and blocks:
            raise TraceFormatError(f"{place}: expected blocks of its own in every segment, got some again")
        seen.add(id(blocks))
        for block in blocks:
            # Older snapshots do not give addresses: blocks lie one behind the other.
            address = _integer(place, block, "address", default=address)
            size = _integer(place, block, "size")
            if block.get("state") == "active_allocated":
                held[address] = _held(place, segment, block, size)
            address += size
    return held


def _held(place: str, segment: dict[Any, Any], block: dict[Any, Any], size: int) -> _Held:
    history = block.get("history")
    last = history[0] if isinstance(history, list) and history and isinstance(history[0], dict) else {}
    if "requested_size" in block:
        requested = _integer(place, block, "requested_size")
    else:
        requested = _integer(f"{place}, history", last, "real_size", default=size)
    stream = _integer(place, segment, "stream", default=0)
    return _Held(requested, stream, block.get("frames", last.get("frames")))


def _allocate_initial(
    builder: TraceBuilder, events: list[_Event], held: Mapping[int, _Held], sites: _Sites
) -> None:
    """Allocate what was live before the first event, in the order of addresses."""
    seen: set[int] = set()
    initial: dict[int, _Held] = {}
    for event in events:
        if event.address not in seen:
            seen.add(event.address)
            if event.action == _FREE:
                initial[event.address] = _Held(event.size, event.stream, None)  # its stack is the free's
    initial.update({address: block for address, block in held.items() if address not in seen})
    begin = events[0].time_us if events else 0
    for address in sorted(initial):
        size, stream, frames = initial[address]
        builder.allocate(address, size, stream=stream, time=begin, site=sites.of(frames))


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
