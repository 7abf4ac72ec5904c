"""Logs of RMM's logging resource adaptor (``rmm.mr.LoggingResourceAdaptor``, ``RMM_LOG_FILE``).

A CSV with the header ``Thread,Time,Action,Pointer,Size,Stream``, which may come again where logs were put
together. The columns may stand in any order, beside others, in quotes, as tools leave them that saved the log
again. RMM logs an allocation after it succeeded and a free before it happens, so the order of the lines is
true of the memory on all threads. Three actions occur: ``allocate``, ``allocate failure`` (counted in the
metadata: the program tried again, or ended) and ``free``, which RMM's guide calls ``deallocate``.

The time is that of the day without a date, or seconds since 1970. Of threads that write at the same time the
later may come first, and a clock may be set back an hour. So only a time that falls back by more than
`_DISORDER_US` passed midnight, and one that leaps ahead by nearly a day is from before it. The order of the
lines is what counts: where they disagree with time, time stands still.

Streams and pointers are written in different ways by different versions (``0``, ``0x0``, ``(nil)``) and are
compared as numbers. Pointers become addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from smartpool.csv_rows import read_rows
from smartpool.errors import TraceFormatError
from smartpool.trace.builder import TraceBuilder
from smartpool.trace.trace import Trace

__all__ = ["RMM_HEADER", "from_rmm_log", "is_rmm_header"]

RMM_HEADER: Final = "Thread,Time,Action,Pointer,Size,Stream"

_NEEDED: Final = ("time", "action", "pointer", "size", "stream")
_DAY_US: Final = 24 * 60 * 60 * 1_000_000
_DISORDER_US: Final = 2 * 60 * 60 * 1_000_000
_MAX_SIZE: Final = 1 << 62
_FAILED: Final = "allocate failure"
_FREED: Final = "free"
_ACTIONS: Final = {name: name for name in ("allocate", _FAILED, _FREED)} | {"deallocate": _FREED}
# Early versions wrote the fraction behind a colon.
_OF_DAY: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)[.:]([0-9]{1,9})")
_SINCE_1970: Final = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?")
_ADDRESS: Final = re.compile(r"(?:0x)?[0-9a-f]{1,16}|\(nil\)", re.IGNORECASE)
_SIZE: Final = re.compile(r"[0-9]{1,40}")


class _Row(NamedTuple):
    time_us: int
    action: str
    pointer: int
    size: int
    stream: int


def is_rmm_header(cells: Iterable[str]) -> bool:
    """Whether a row is the header of such a log.

    >>> is_rmm_header(RMM_HEADER.split(",")), is_rmm_header(["op", "id", "size"])
    (True, False)
    """
    return set(_NEEDED) <= {cell.lower() for cell in cells}


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
        When the file is no such log, or a line is damaged; the message names the line and the field.
    TraceInconsistentError
        When it frees what is not live, and `drop_unknown_frees` is off.
    OSError
        When the file cannot be opened.
    """
    builder = TraceBuilder(str(path), refuse_unknown_frees=not drop_unknown_frees)
    failures = mismatches = 0
    for number, row in _rows(path):
        builder.where = f"{path}, line {number}"
        if row.action == _FAILED:
            failures += 1
        elif row.action == _FREED:
            mismatches += builder.size_of(row.pointer) not in (None, row.size)
            builder.free(row.pointer, stream=row.stream, time=row.time_us, size=row.size)
        else:
            builder.allocate(row.pointer, row.size, stream=row.stream, time=row.time_us)
    counts = {"failed_allocations": failures, "sizes_that_differ": mismatches}
    return builder.build(Path(path).stem, {"recorder": "rmm", **counts})


def _rows(path: str | PathLike[str]) -> Iterator[tuple[int, _Row]]:
    """Yield line numbers and rows, read one line at a time."""
    lines = read_rows(path)
    _, header = next(lines, (1, []))
    if not is_rmm_header(header):
        raise TraceFormatError(
            f"{path}: expected the header {RMM_HEADER!r} of an RMM log, "
            f"got {repr(','.join(header)[:100]) if header else 'an empty file'}"
        )
    clock = _Clock()
    columns = _columns(header)
    for number, cells in lines:
        if is_rmm_header(cells):  # logs that were put together
            header, columns = cells, _columns(cells)
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            _refuse(
                where, f"{len(header)} fields, as in the header", f"{len(cells)}: {','.join(cells)[:100]!r}"
            )
        time, action, pointer, size, stream = (cells[column] for column in columns)
        if action not in _ACTIONS:
            _refuse(where, "the action allocate, allocate failure, free or deallocate", f"{action[:60]!r}")
        yield (
            number,
            _Row(
                clock.time_us(where, time),
                _ACTIONS[action],
                _address(where, "pointer", pointer),
                0 if action == _FAILED and _SIZE.fullmatch(size) else _size(where, size),
                _address(where, "stream", stream),
            ),
        )


def _columns(header: list[str]) -> list[int]:
    names = [cell.lower() for cell in header]
    return [names.index(name) for name in _NEEDED]


class _Clock:
    """Microseconds, of times of day without a date or of seconds since 1970."""

    def __init__(self) -> None:
        self._days = 0
        self._last: int | None = None

    def time_us(self, where: str, text: str) -> int:
        """Return the time of a line; `where` is told in the error when it is none."""
        if dated := _SINCE_1970.fullmatch(text):
            return int(dated[1]) * 1_000_000 + _microseconds(dated[2])
        found = _OF_DAY.fullmatch(text)
        if found is None:
            _refuse(where, "the time as HH:MM:SS.ffffff or as seconds since 1970", f"{text[:60]!r}")
        hour, minute, second, fraction = found.groups()
        in_day = ((int(hour) * 60 + int(minute)) * 60 + int(second)) * 1_000_000 + _microseconds(fraction)
        step = 0 if self._last is None else in_day - self._last
        if step < -_DISORDER_US:
            self._days += 1
        elif step > _DAY_US - _DISORDER_US:
            self._days -= 1
        self._last = in_day
        return self._days * _DAY_US + in_day


def _microseconds(fraction: str | None) -> int:
    return int(f"{fraction or '0':0<6.6}")


def _address(where: str, name: str, text: str) -> int:
    if not _ADDRESS.fullmatch(text):
        _refuse(where, f"the {name} as 0x..., (nil) or digits", f"{text[:60]!r}")
    return 0 if text.startswith("(") else int(text, 16)


def _size(where: str, text: str) -> int:
    size = int(text) if _SIZE.fullmatch(text) else _MAX_SIZE
    if size >= _MAX_SIZE:
        _refuse(where, "the size as bytes in digits, below 2**62", f"{text[:60]!r}")
    return size


def _refuse(where: str, expected: str, got: str) -> NoReturn:
    raise TraceFormatError(
        f"{where}: expected {expected}, got {got}; if the log was cut off in the middle of its last line, "
        "delete that line"
    )
