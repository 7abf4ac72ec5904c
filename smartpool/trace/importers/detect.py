"""Reading any file that holds allocations, by what is in it and not by what it is called."""

from __future__ import annotations

from os import PathLike
from typing import Final

from smartpool.errors import TraceError, TraceFormatError
from smartpool.files import open_regular
from smartpool.trace.importers.events_csv import from_csv, is_event_header
from smartpool.trace.importers.rmm_log import RMM_HEADER, from_rmm_log
from smartpool.trace.importers.torch_snapshot import from_torch_snapshot
from smartpool.trace.trace import Trace

__all__ = ["read_any"]

_HEAD_BYTES: Final = 512


def read_any(
    path: str | PathLike[str], *, device: int | None = None, drop_unknown_frees: bool = False
) -> Trace:
    """Return the trace in a file of any format that SmartPool knows.

    Parameters
    ----------
    path
        A trace (``.npz``), a PyTorch snapshot (pickle), an RMM log, or events as CSV.
    device
        Which device of a snapshot of several.
    drop_unknown_frees
        Whether an RMM log may free what it did not allocate.

    Raises
    ------
    TraceFormatError
        When the file is of none of these formats, or damaged.
    TraceError
        As the reader of the format says; and when a device is named, and the file is of one.
    OSError
        When the file cannot be opened.
    """
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"\x80"):
        return from_torch_snapshot(path, device=device)
    known = head.startswith((b"PK", RMM_HEADER.encode())) or is_event_header(_first_line(head))
    if known and device is not None:
        raise TraceError(
            f"{path}: expected a PyTorch snapshot where a device is named, got {device} for a file of one "
            "device; leave the device out"
        )
    if head.startswith(b"PK"):
        return Trace.load(path)
    if head.startswith(RMM_HEADER.encode()):
        return from_rmm_log(path, drop_unknown_frees=drop_unknown_frees)
    if known:
        return from_csv(path)
    raise TraceFormatError(
        f"{path}: expected a SmartPool trace (.npz), a PyTorch memory snapshot (.pickle), an RMM log "
        f"(.csv beginning with {RMM_HEADER}) or events as CSV (with columns op, id, size), "
        f"got a file that begins with {head[:16]!r}"
    )


def _first_line(head: bytes) -> str:
    return head.decode("utf-8-sig", errors="replace").partition("\n")[0]
