"""Traces from CSV, one row an event: what `smartpool.trace.exporters.to_csv` writes, and anyone may.

The header names the columns, in any order: ``op``, ``id`` and ``size`` must be there; ``stream``,
``t_us``, ``address`` and ``site`` may. Numbers are decimal, addresses may be hexadecimal (``0x7f00``).
Stacks have their calls separated by `` < ``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Final

from smartpool.errors import TraceError, TraceFormatError
from smartpool.files import open_regular
from smartpool.npz import MAX_EVENTS
from smartpool.trace.trace import Trace

__all__ = ["from_csv", "is_event_header"]

_NEEDED: Final = ("op", "id", "size")
_KNOWN: Final = (*_NEEDED, "stream", "t_us", "address", "site")
_NUMBER: Final = re.compile(r"[0-9]{1,19}|0x[0-9a-fA-F]{1,16}")
_MAX_LINE: Final = 1 << 16


def is_event_header(line: str) -> bool:
    """Whether the first line of a file is the header of such a CSV.

    >>> is_event_header("op,id,size,stream"), is_event_header("id,lower,upper,size")
    (True, False)
    """
    return set(_NEEDED) <= {name.strip() for name in line.split(",")}


def from_csv(path: str | PathLike[str]) -> Trace:
    """Return the trace in a CSV file of events.

    Raises
    ------
    TraceFormatError
        When the file is no such CSV, or a line is damaged; the message names the line.
    TraceInconsistentError
        When its events contradict themselves.
    OSError
        When the file cannot be opened.
    """
    with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="", errors="replace") as file:
        rows = _rows(path, file)
        _, names = next(rows, (1, []))
        if not set(_NEEDED) <= set(names) or len(set(names)) != len(names):
            raise TraceFormatError(
                f"{path}: expected a header with the columns {', '.join(_NEEDED)}, each once, "
                f"got {','.join(names)[:100]!r}"
            )
        columns: dict[str, list[int]] = {name: [] for name in names if name in _KNOWN}
        sites: dict[str, int] = {}
        for line, row in rows:
            if len(row) != len(names):
                raise TraceFormatError(f"{path}, line {line}: expected {len(names)} fields, got {len(row)}")
            if len(columns["op"]) >= MAX_EVENTS:
                raise TraceFormatError(f"{path}: expected at most {MAX_EVENTS} events")
            for name, text in zip(names, row, strict=True):
                if name == "site":
                    columns[name].append(sites.setdefault(text, len(sites)) if text else -1)
                elif name in columns:
                    columns[name].append(_number(path, line, name, text))
    places = {"sites": ["\n".join(site.split(" < ")) for site in sites]} if "site" in columns else {}
    try:
        return Trace.from_columns(Path(path).stem, **columns, meta={"recorder": "csv", **places})
    except TraceError as error:
        raise type(error)(f"{path}: {error}") from None


def _rows(path: str | PathLike[str], file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and rows; blank lines are left out."""
    reader = csv.reader(_short_lines(path, file), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, [field.strip() for field in row]
    except csv.Error as error:
        raise TraceFormatError(f"{path}, line {reader.line_num}: expected CSV: {error}") from None


def _short_lines(path: str | PathLike[str], file: Iterator[str]) -> Iterator[str]:
    readline = getattr(file, "readline")  # noqa: B009  bounded, as iteration over a file is not
    while line := readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise TraceFormatError(f"{path}: expected lines of less than {_MAX_LINE} characters")
        yield line


def _number(path: str | PathLike[str], line: int, name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise TraceFormatError(f"{path}, line {line}: expected {name!r} to be a number, got {text[:60]!r}")
    return int(text, 0) if text.startswith("0x") else int(text)
