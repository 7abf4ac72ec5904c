"""A report of whatever there is: a trace, a file, a pool that records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smartpool.errors import InvalidRequestError
from smartpool.report.analysis import analysis
from smartpool.report.dump import is_dump, read_dump
from smartpool.report.dump_report import dump_report
from smartpool.report.page import write_page
from smartpool.report.trace_report import trace_report
from smartpool.trace.importers import read_any
from smartpool.trace.trace import Trace

if TYPE_CHECKING:
    from smartpool.smart_pool import SmartPool

__all__ = ["report"]


def report(
    source: Trace | SmartPool | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    device_id: int = 0,
    **options: Any,
) -> Path:
    """Write a report as one HTML page and return its path.

    Parameters
    ----------
    source
        A trace; a pool that records (`SmartPool.start_recording`); or a file: a recording of any tool,
        or what an out-of-memory error left.
    path
        The page to write.
    title
        The heading; None for one of the source's own.
    device_id
        Which device of a pool.
    options
        For recordings, as for `smartpool.report.analysis.analysis`: ``against``, ``device``,
        ``capacity_bytes``, ``policy``.

    Raises
    ------
    InvalidRequestError
        When the pool does not record.
    TraceError, TraceFormatError
        When the file is none that SmartPool reads.
    OSError
        When a file cannot be read or written.
    """
    if isinstance(source, str | os.PathLike):
        if is_dump(source):
            return write_page(path, dump_report(read_dump(source), title=title))
        trace = read_any(source)
    elif isinstance(source, Trace):
        trace = source
    else:
        recording = source.recording(device_id)
        if recording is None:
            raise InvalidRequestError(
                f"expected a pool that records, got {source!r}; pass what stop_recording() returned, or call "
                "start_recording() before the part that is to be seen (SmartPoolConfig(record=True) does)"
            )
        trace = recording
    return write_page(path, trace_report(analysis(trace, **options), title=title))
