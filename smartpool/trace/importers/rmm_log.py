"""Logs of RMM's logging resource adaptor (``rmm.mr.LoggingResourceAdaptor``, ``RMM_LOG_FILE``).

A CSV with the header ``Thread,Time,Action,Pointer,Size,Stream``. RMM logs an allocation after it
succeeded and a free before it happens, so the order of the lines is true of the memory on all threads.
Three actions occur: ``allocate``, ``allocate failure`` (counted in the metadata: the request was tried
again by the program, or ended it) and ``free``.

The time is that of the day, without a date: a clock that falls back by more than half a day passed
midnight. Streams are written in different ways by different versions (``0``, ``0x55d0...``,
``(nil)``), so they are compared as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Final, NamedTuple

from smartpool.errors import TraceFormatError
from smartpool.files import open_regular
from smartpool.trace.builder import TraceBuilder
from smartpool.trace.trace import Trace

__all__ = ["RMM_HEADER", "from_rmm_log"]

RMM_HEADER: Final = "Thread,Time,Action,Pointer,Size,Stream"

_MAX_LINE: Final = 1024
_DAY_US: Final = 24 * 60 * 60 * 1_000_000
# Sizes have at most 18 digits: below 2**62. Early versions wrote the fraction behind a colon.
_LINE: Final = re.compile(
    r"[^,]*,(\d\d):(\d\d):(\d\d)[.:](\d{1,9}),(allocate|allocate failure|free),([^,]+),(\d{1,18}),([^,]*)"
)


class _Row(NamedTuple):
    time_us: int
    action: str
    pointer: str
    size: int
    stream: str


def from_rmm_log(path: str | PathLike[str], *, drop_unknown_frees: bool = False) -> Trace:
    """Return the allocations in an RMM log.

    Parameters
    ----------
    path
        The CSV file; RMM writes one for each device.
    drop_unknown_frees
        Drop, and count, frees of what was not allocated in the log. By default they are an error,
        since RMM's logs begin with the pool.

    Raises
    ------
    TraceFormatError
        When the file is no such log, or a line is damaged; the message names the line.
    TraceInconsistentError
        When it frees what is not live, and `drop_unknown_frees` is off.
    OSError
        When the file cannot be opened.
    """
    builder = TraceBuilder(str(path), refuse_unknown_frees=not drop_unknown_frees)
    failures = mismatches = 0
    for number, row in _rows(path):
        builder.where = f"{path}, line {number}"
        if row.action == "allocate":
            builder.allocate(row.pointer, row.size, stream=row.stream, time=row.time_us)
        elif row.action == "free":
            mismatches += builder.size_of(row.pointer) not in (None, row.size)
            builder.free(row.pointer, stream=row.stream, time=row.time_us)
        else:
            failures += 1
    counts = {"failed_allocations": failures, "sizes_that_differ": mismatches}
    return builder.build(Path(path).stem, {"recorder": "rmm", **counts})


def _rows(path: str | PathLike[str]) -> Iterator[tuple[int, _Row]]:
    """Yield line numbers and rows, read one line at a time."""
    days = last = 0
    for number, line in _lines(path):
        match = _LINE.fullmatch(line)
        if match is None:
            raise TraceFormatError(
                f"{path}, line {number}: expected {RMM_HEADER}, got {line[:100]!r}; if the log was cut off "
                "in the middle of its last line, delete that line"
            )
        hour, minute, second, fraction, action, pointer, size, stream = match.groups()
        in_day = ((int(hour) * 60 + int(minute)) * 60 + int(second)) * 1_000_000 + int(f"{fraction:0<6.6}")
        if in_day < last - _DAY_US // 2:
            days += 1
        last = in_day
        yield number, _Row(days * _DAY_US + in_day, action, pointer, int(size), stream)


def _lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    with open_regular(path) as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE:
                raise TraceFormatError(f"{path}, line {number}: expected less than {_MAX_LINE} characters")
            try:
                text = line.decode("ascii").rstrip("\r\n")
            except UnicodeDecodeError:
                raise TraceFormatError(f"{path}, line {number}: expected ASCII text") from None
            if number == 1:
                if text != RMM_HEADER:
                    raise TraceFormatError(
                        f"{path}: expected the header {RMM_HEADER!r} of an RMM log, got {text[:100]!r}"
                    )
            elif text:
                yield number, text
    if not number:
        raise TraceFormatError(f"{path}: expected an RMM log, got an empty file")
