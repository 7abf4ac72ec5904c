"""PyTorch memory snapshots, which pytorch.org/memory_viz opens.

The structure is that of ``torch.cuda.memory._snapshot()`` of PyTorch 2.11, field by field: ``segments``
with the blocks at the end, ``device_traces`` with the events. What a trace does not know is written as
PyTorch writes what it does not know. Three things its viewer relies on:

* blocks tile their segment: it adds up their sizes to find their addresses;
* it plays events backwards from the end, so each segment has its ``segment_alloc``;
* its reader of pickles knows the instructions of protocol 2 to 4 for plain data, and an event is an
  object of its own, as the viewer writes into it. Stacks may be shared.

A free is ``free_requested`` and, at once, ``free_completed``: the viewer makes one of the two.
"""

from __future__ import annotations

import itertools
import pickle
import re
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smartpool.errors import TraceError
from smartpool.heap.arena import ALIGNMENT
from smartpool.trace.layouts import covered_runs
from smartpool.trace.optimum import plan_of
from smartpool.trace.trace import ALLOCATE, Trace
from smartpool.units import MiB

__all__ = ["PAGE_BYTES", "addresses_of", "page_runs", "snapshot_of", "to_torch_snapshot"]

PAGE_BYTES: Final = 2 * MiB

_PROTOCOL: Final = 4  # the highest that the viewer reads
_SMALL: Final = 1 * MiB  # what PyTorch calls small
_FRAME: Final = re.compile(r"(.*):(0|[1-9][0-9]{0,8}) (.*)")

_BASE: Final = 1 << 40  # of planned addresses, which begin at 0: no tool takes 0 for an address

Entry = dict[str, Any]
Int64s = NDArray[np.int64]


def to_torch_snapshot(trace: Trace, path: str | PathLike[str]) -> None:
    """Write a trace as a PyTorch memory snapshot.

    Parameters
    ----------
    trace
        The trace. Without recorded addresses its blocks are laid out by a plan.
    path
        The pickle to write.

    Raises
    ------
    TraceError
        When two blocks that are live at the end share an address: a snapshot cannot show that.
    OSError
        When the file cannot be written.
    """
    Path(path).write_bytes(pickle.dumps(snapshot_of(trace), protocol=_PROTOCOL))


def snapshot_of(trace: Trace) -> dict[str, Any]:
    """Return the snapshot of a trace as plain dictionaries. O(n log n), and a plan where it has no addresses.

    Examples
    --------
    >>> trace = Trace.from_columns("tiny", op=[0, 0, 1], id=[0, 1, 0], size=[600, 9, 600])
    >>> snapshot = snapshot_of(trace)
    >>> [entry["action"] for entry in snapshot["device_traces"][0]]
    ['segment_alloc', 'alloc', 'alloc', 'free_requested', 'free_completed']
    >>> [block["state"] for block in snapshot["segments"][0]["blocks"]]
    ['inactive', 'active_allocated', 'inactive']
    """
    addresses = addresses_of(trace)
    lifetimes = trace.lifetimes()
    segments = [
        (begin, end)
        for begin, end in zip(*(edge.tolist() for edge in page_runs(addresses, lifetimes.size)), strict=True)
    ]
    frames = [_frames(site) for site in trace.sites]
    return {
        "segments": _segments(trace, addresses.tolist(), segments, frames),
        "device_traces": [_events(trace, addresses.tolist(), segments, frames)],
        "allocator_settings": {},
        "external_annotations": [],
    }


def addresses_of(trace: Trace, *, time_limit: float | None = None) -> Int64s:
    """Return the address of each allocation, as recorded or, where that is not known, of a plan.

    No allocator ran like a plan of the whole trace, but every block has a place of its own for as long as it
    lives, at the least memory that is possible. `time_limit` is for the planner, in seconds.

    Examples
    --------
    >>> trace = Trace.from_columns("tiny", op=[0, 1, 0], id=[0, 0, 1], size=[600, 600, 9])
    >>> addresses = addresses_of(trace)
    >>> (addresses - addresses.min()).tolist()
    [0, 0]
    """
    if trace.address is not None:
        return trace.address[trace.lifetimes().start]
    _, found = plan_of(trace, time_limit=time_limit)
    return found.offsets + _BASE


def page_runs(address: Int64s, size: Int64s, page_bytes: int = PAGE_BYTES) -> tuple[Int64s, Int64s]:
    """Return begin and end of the runs of pages that the blocks touch, ascending. O(n log n).

    Memory is shown in whole pages: a trace does not tell what the recording allocator held beyond that.

    Examples
    --------
    >>> begin, end = page_runs(np.array([0, 5000, 1500]), np.array([10, 20, 3000]), page_bytes=1000)
    >>> begin.tolist(), end.tolist()
    ([0], [6000])
    """
    first = address // page_bytes * page_bytes
    return covered_runs(first, -(-(address + size) // page_bytes) * page_bytes - first)


def _events(
    trace: Trace, addresses: list[int], segments: list[tuple[int, int]], frames: list[list[Entry]]
) -> list[Entry]:
    """Return the events, each segment's own before its first block's."""
    begins = np.array([begin for begin, _ in segments], dtype=np.int64)
    homes = (np.searchsorted(begins, addresses, side="right") - 1).tolist()
    unseen = set(range(len(segments)))
    events: list[Entry] = []
    for op, number, size, stream, time, stack in zip(
        trace.op.tolist(), trace.allocation_numbers().tolist(), trace.size.tolist(), trace.stream.tolist(),
        trace.t_us.tolist(), _stacks(trace, frames), strict=True,
    ):  # fmt: skip
        if op == ALLOCATE:
            home = homes[number]
            if home in unseen:
                unseen.remove(home)
                begin, end = segments[home]
                events.append(_event("segment_alloc", begin, end - begin, 0, time, []))
            events.append(_event("alloc", addresses[number], size, stream, time, stack))
        else:
            events.append(_event("free_requested", addresses[number], size, stream, time, []))
            events.append(_event("free_completed", addresses[number], size, stream, time, []))
    return events


def _event(  # noqa: PLR0917  six columns of one table, called side by side
    action: str, address: int, size: int, stream: int, time: int, frames: list[Entry]
) -> Entry:
    return {
        "action": action,
        "addr": address,
        "size": size,
        "stream": stream,
        "time_us": time,
        "compile_context": "N/A",
        "user_metadata": "",
        "frames": frames,
    }


def _segments(
    trace: Trace, addresses: list[int], segments: list[tuple[int, int]], frames: list[list[Entry]]
) -> list[Entry]:
    """Return the segments with the blocks that are live at the end, and the gaps between them."""
    lifetimes = trace.lifetimes()
    stacks = _stacks(trace, frames)
    held = sorted(
        (addresses[number], int(lifetimes.size[number]), stacks[int(lifetimes.start[number])])
        for number in np.flatnonzero(lifetimes.end == trace.events).tolist()
    ) if trace.events else []  # fmt: skip
    for (address, size, _), (following, _, _) in itertools.pairwise(held):
        if address + size > following:
            raise TraceError(
                f"trace {trace.name!r}: expected blocks that do not overlap at the end, got one of {size} "
                f"bytes at {address:#x} and another at {following:#x}; write another format, or record again"
            )
    rest = iter([*held, (1 << 63, 0, [])])
    block = next(rest)
    shown = []
    for begin, end in segments:
        blocks: list[Entry] = []
        at = begin
        while block[0] < end:
            address, size, stack = block
            block = next(rest)
            if address > at:
                blocks.append(_block(at, address - at, 0, "inactive", []))
            at = min(-(-(address + size) // ALIGNMENT) * ALIGNMENT, end, max(block[0], address + size))
            blocks.append(_block(address, at - address, size, "active_allocated", stack))
        if at < end:
            blocks.append(_block(at, end - at, 0, "inactive", []))
        shown.append(_segment(begin, end - begin, blocks))
    return shown


def _segment(begin: int, size: int, blocks: list[Entry]) -> Entry:
    active = sum(block["size"] for block in blocks if block["state"] != "inactive")
    return {
        "device": 0,
        "address": begin,
        "total_size": size,
        "allocated_size": active,
        "active_size": active,
        "requested_size": sum(block["requested_size"] for block in blocks),
        "stream": 0,
        "segment_type": "large" if size > 2 * _SMALL else "small",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }


def _block(address: int, size: int, requested: int, state: str, frames: list[Entry]) -> Entry:
    return {"address": address, "size": size, "requested_size": requested, "state": state, "frames": frames}


def _stacks(trace: Trace, frames: list[list[Entry]]) -> list[list[Entry]]:
    """Return the stack of each event; the same list for the same place, so that the pickle has it once."""
    none: list[Entry] = []
    if trace.site is None:
        return [none] * trace.events
    return [frames[site] if site >= 0 else none for site in trace.site.tolist()]


def _frames(site: str) -> list[Entry]:
    """Return a place in the program as PyTorch's frames; a line of another form is a name alone."""
    made = []
    for line in site.split("\n"):
        match = _FRAME.fullmatch(line)
        file, number, name = match.groups() if match and (match[1] or match[2] != "0") else ("", "0", line)
        made.append({"name": name, "filename": file, "line": int(number)})
    return made
