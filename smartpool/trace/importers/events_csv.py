"""Traces from CSV, one row an event: what `smartpool.trace.exporters.to_csv` writes, and anyone may.

The header names the columns, in any order: ``op``, ``id`` and ``size`` must be there; ``stream``,
``t_us``, ``address`` and ``site`` may; others are passed over. `op` is 0 or ``allocate``, 1 or ``free``.
Numbers are decimal, addresses may be hexadecimal (``0x7f00``). Stacks have their calls separated by `` < ``.
"""

from __future__ import annotations

import json
import re
from os import PathLike
from pathlib import Path
from typing import Final

from smartpool.csv_rows import cell_of, mistaken, read_rows, text_of
from smartpool.errors import TraceError, TraceFormatError
from smartpool.npz import MAX_EVENTS
from smartpool.trace.builder import Places
from smartpool.trace.trace import ALLOCATE, FREE, Trace

__all__ = ["from_csv", "is_event_header", "site_cell"]

_NEEDED: Final = ("op", "id", "size")
_KNOWN: Final = (*_NEEDED, "stream", "t_us", "address", "site")
_OPS: Final = {"allocate": ALLOCATE, "alloc": ALLOCATE, "malloc": ALLOCATE, "free": FREE, "deallocate": FREE}
_NUMBER: Final = re.compile(r"[0-9]{1,19}|0x[0-9a-fA-F]{1,16}")
_BETWEEN_CALLS: Final = " < "


def is_event_header(cells: list[str]) -> bool:
    """Whether the first row of a file is the header of such a CSV.

    >>> is_event_header(["op", "id", "size"]), is_event_header(["id", "lower", "upper", "size"])
    (True, False)
    """
    return set(_NEEDED) <= {cell.lower() for cell in cells}


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
    rows = read_rows(path)
    _, header = next(rows, (1, []))
    names = [name.lower() for name in header]
    if not is_event_header(names) or len(set(names)) != len(names):
        raise TraceFormatError(
            f"{path}: expected a header with the columns {', '.join(_NEEDED)}, each once, "
            f"got {','.join(names)[:100]!r}"
        )
    wrong = mistaken(names, _KNOWN)
    if wrong:
        raise TraceFormatError(f"{path}: expected a header with {', '.join(_KNOWN)}, got {wrong}")
    columns: dict[str, list[int]] = {name: [] for name in names if name in _KNOWN}
    sites, left_out = Places(), 0
    for line, row in rows:
        if len(row) != len(names):
            raise TraceFormatError(f"{path}, line {line}: expected {len(names)} fields, got {len(row)}")
        if len(columns["op"]) >= MAX_EVENTS:
            raise TraceFormatError(f"{path}: expected at most {MAX_EVENTS} events")
        for name, cell in zip(names, row, strict=True):
            if name == "site":
                columns[name].append(sites.number(_site_of(cell)) if cell else -1)
                left_out += bool(cell) and columns[name][-1] < 0
            elif name in columns:
                columns[name].append(_number(path, line, name, cell))
    places = {"sites": sites.names()} if "site" in columns else {}
    settled = {"settled": {"sites_left_out": left_out}} if left_out else {}
    try:
        return Trace.from_columns(Path(path).stem, **columns, meta={"recorder": "csv", **places, **settled})
    except TraceError as error:
        raise type(error)(f"{path}: {error}") from None


def site_cell(site: str) -> str:
    r"""Return a place in the program as a cell, its calls on one line where that can be read back.

    >>> site_cell("model.py:3 forward\ntrain.py:9 step"), site_cell("one.cc:1 operator < (a, b)")
    ('model.py:3 forward < train.py:9 step', '"one.cc:1 operator < (a, b)"')
    """
    cell = site.replace("\n", _BETWEEN_CALLS)
    whole = cell == cell_of(cell) and _site_of(cell) == site
    return cell if whole else json.dumps(site)


def _site_of(cell: str) -> str:
    text = text_of(cell)
    return text.replace(_BETWEEN_CALLS, "\n") if text == cell else text


def _number(path: str | PathLike[str], line: int, name: str, text: str) -> int:
    if name == "op" and text.lower() in _OPS:
        return _OPS[text.lower()]
    if not _NUMBER.fullmatch(text):
        expected = "0 or allocate, or 1 or free" if name == "op" else "a number"
        raise TraceFormatError(f"{path}, line {line}: expected {name!r} to be {expected}, got {text[:60]!r}")
    return int(text, 0) if text.startswith("0x") else int(text)
