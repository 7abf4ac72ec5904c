"""Reading any file that holds allocations, by what is in it and not by what it is called."""

from __future__ import annotations

from os import PathLike
from typing import Final

from smartpool.csv_rows import first_row
from smartpool.errors import TraceError, TraceFormatError
from smartpool.files import open_regular
from smartpool.planner.reading import is_interval_header
from smartpool.trace.importers.events_csv import from_csv, is_event_header
from smartpool.trace.importers.rmm_log import RMM_HEADER, from_rmm_log, is_rmm_header
from smartpool.trace.importers.torch_snapshot import from_torch_snapshot
from smartpool.trace.trace import Trace

__all__ = ["read_any"]

_HEAD_BYTES: Final = 4096
_SNAPSHOT: Final = "PyTorch snapshot"
_LOG: Final = "RMM log"
_TRACE: Final = "trace"
_EVENTS: Final = "CSV of events"
_TEXT_PICKLES: Final = (b"(dp", b"(lp", b"}q", b"]q", b"(d.", b"(l.", b"}.", b"].")


def read_any(
    path: str | PathLike[str], *, device: int | None = None, drop_unknown_frees: bool = False
) -> Trace:
    """Return the trace in a file of any format that SmartPool knows.

    Parameters
    ----------
    path
        A trace (``.npz``), a PyTorch snapshot (pickle), an RMM log, or events as CSV; packed by gzip or not.
    device
        Which device of a snapshot of several.
    drop_unknown_frees
        Whether an RMM log may free what it did not allocate.

    Raises
    ------
    TraceFormatError
        When the file is of none of these formats, or damaged.
    TraceError
        As the reader of the format says; and when an option is given that the format has no use for.
    OSError
        When the file cannot be opened.
    """
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    kind = _kind(head)
    if kind is None:
        raise TraceFormatError(
            f"{path}: expected a SmartPool trace (.npz), a PyTorch memory snapshot (.pickle), an RMM log "
            f"(.csv beginning with {RMM_HEADER}) or events as CSV (with columns op, id, size), "
            f"got {_in_words(head)}"
        )
    if kind != _LOG and drop_unknown_frees:
        raise TraceError(
            f"{path}: expected an RMM log where unknown frees are to be dropped, got a {kind}; leave that out"
        )
    if kind != _SNAPSHOT and device is not None:
        raise TraceError(
            f"{path}: expected a PyTorch snapshot where a device is named, got {device} for a {kind}, "
            "which is of one device; leave the device out"
        )
    if kind == _SNAPSHOT:
        return from_torch_snapshot(path, device=device)
    if kind == _LOG:
        return from_rmm_log(path, drop_unknown_frees=drop_unknown_frees)
    return Trace.load(path) if kind == _TRACE else from_csv(path)


def _kind(head: bytes) -> str | None:
    """Return what a file is that begins so: a key of `_READERS`, or None."""
    if head.startswith(b"\x80"):
        return _SNAPSHOT
    if head.startswith(b"PK"):
        return _TRACE
    cells = first_row(head)
    return _LOG if is_rmm_header(cells) else _EVENTS if is_event_header(cells) else None


def _in_words(head: bytes) -> str:
    """Say what a file is that is none of ours, and what to do with it."""
    if not head:
        return "an empty file"
    if is_interval_header(first_row(head)):
        return "intervals as CSV, which are for 'smartpool plan' and smartpool.planner.read_csv"
    if head.lstrip().startswith(b"{"):
        return "JSON; what an out-of-memory error left is for 'smartpool report'"
    if head.startswith(b"SQLite format 3"):
        return "an SQLite database; write the snapshot with torch.cuda.memory._dump_snapshot instead"
    if head.startswith(_TEXT_PICKLES):
        return (
            "a pickle of protocol 0 or 1, which PyTorch does not write; load it and write it with protocol 4"
        )
    return f"a file that begins with {head[:16]!r}"
