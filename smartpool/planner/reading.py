"""Intervals from CSV, and plans to CSV: the format that planners exchange.

The header names the columns: ``id,lower,upper,size`` must be there, ``alignment``, ``priority``,
``fixed_offset`` and ``offset`` may; others are passed over. Lines that are blank are skipped.

``fixed_offset`` is an order: the interval must lie there; an empty cell leaves the choice to the planner.
``offset`` is one too where some of its cells are empty. A column ``offset`` without an empty cell is
somebody's whole plan (ours, from `write_csv`, or another tool's): nothing would be left to plan, so it is
checked, since a file that contradicts itself should not pass, and then left aside.

The file may be anybody's: it is a regular one of at most `MAX_BYTES`, an id has at most `MAX_ID` characters
and comes once, and what is read takes at most some 50 times the file's length in memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from smartpool.errors import PlanningError
from smartpool.files import open_regular
from smartpool.planner.intervals import FREE, IntervalSet
from smartpool.planner.sweeps import Int64s
from smartpool.units import GiB

__all__ = ["is_interval_header", "read_csv", "write_csv"]

REQUIRED: Final = ("id", "lower", "upper", "size")
OPTIONAL: Final = ("alignment", "priority", "offset", "fixed_offset")
MAX_BYTES: Final = 1 * GiB
MAX_ID: Final = 200
_MAX_LINE: Final = 1 << 16
_SHOWN: Final = 60


def is_interval_header(line: str) -> bool:
    """Return whether the first line of a file is the header of such a CSV.

    >>> is_interval_header("id, lower, upper, size"), is_interval_header("op,id,size,stream")
    (True, False)
    """
    return set(REQUIRED) <= set(_header(line.split(",")))


def read_csv(path: str | PathLike[str]) -> IntervalSet:
    """Read intervals from a CSV file; see the module for its columns.

    Raises
    ------
    PlanningError
        When a column is missing, a cell is no integer, an id comes twice, or `IntervalSet.from_arrays`
        refuses an interval. The message names the file and the line.
    OSError
        When the file cannot be read.
    """
    name = Path(path).name
    opened = open_regular(path, most_bytes=MAX_BYTES, error=PlanningError)
    with io.TextIOWrapper(opened, newline="", encoding="utf-8-sig") as file:
        try:
            return _read(file, name)
        except UnicodeDecodeError as error:
            raise PlanningError(f"{name}: expected text in UTF-8, got {error}") from None
        except csv.Error as error:
            raise PlanningError(f"{name}: expected CSV, got {error}") from None


def write_csv(path: str | PathLike[str], intervals: IntervalSet, offsets: Int64s) -> None:
    """Write ``id,lower,upper,size,offset``, with ``alignment`` before the last where any matters."""
    columns: list[Iterable[object]] = [
        intervals.id.tolist(),
        intervals.start.tolist(),
        intervals.end.tolist(),
        intervals.size.tolist(),
    ]
    header = list(REQUIRED)
    if (intervals.alignment != 1).any():
        header.append("alignment")
        columns.append(intervals.alignment.tolist())
    header.append("offset")
    columns.append(offsets.tolist())
    with open(path, "w", newline="", encoding="utf-8") as file:  # noqa: PTH123  str and PathLike alike
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))


def _read(file: TextIO, name: str) -> IntervalSet:
    reader = csv.reader(_short_lines(file, name))
    header = _header(next(reader, []))
    for column in REQUIRED:
        if column not in header:
            found = ", ".join(header)[:_SHOWN] or "nothing"
            raise PlanningError(f"{name}: line 1: expected a column {column!r} in the header, got {found}")
    for column in (*REQUIRED, *OPTIONAL):
        if header.count(column) > 1:
            raise PlanningError(f"{name}: line 1: expected the column {column!r} once, got it twice")
    lines: list[int] = []
    rows: list[list[str]] = []
    for row in reader:
        if not row or not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            where = f"{name}: line {reader.line_num}"
            raise PlanningError(f"{where}: expected {len(header)} cells, as in the header, got {len(row)}")
        lines.append(reader.line_num)
        rows.append(row)

    def place(row: int) -> str:
        return f"{name}: line {lines[row]}"

    cells = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=False))
    columns = {
        column: _integers(column, cells[column], place)
        for column in ("lower", "upper", "size", "alignment", "priority")
        if column in cells
    }
    fixed, order = _fixed(cells, place)
    intervals = IntervalSet.from_arrays(
        columns["lower"],
        columns["upper"],
        columns["size"],
        alignment=columns.get("alignment"),
        priority=columns.get("priority"),
        fixed=fixed,
        id=_names(cells["id"], place),
        place=place,
    )
    return intervals if order else intervals.without_fixed()


def _fixed(cells: dict[str, tuple[str, ...]], place: Callable[[int], str]) -> tuple[Int64s | None, bool]:
    """Return the column of fixed offsets, and whether it is an order rather than a plan to check."""
    column = next((name for name in ("fixed_offset", "offset") if name in cells), None)
    if column is None:
        return None, True
    fixed = np.full(len(cells[column]), FREE)
    chosen = [row for row, cell in enumerate(cells[column]) if cell.strip()]
    values = _integers(column, [cells[column][row] for row in chosen], lambda at: place(chosen[at]))
    if (values < 0).any():
        at = int((values < 0).argmax())
        raise PlanningError(f"{place(chosen[at])}: expected {column} to be at least 0, got {values[at]}")
    fixed[chosen] = values
    return fixed, column == "fixed_offset" or len(chosen) < len(fixed)


def _integers(column: str, cells: Sequence[str], place: Callable[[int], str]) -> Int64s:
    try:
        return np.array(list(map(int, cells)), dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    for row, cell in enumerate(cells):
        try:
            np.int64(int(cell))
        except (ValueError, OverflowError):
            raise PlanningError(
                f"{place(row)}: expected {column} to be an integer below 2**63, got {_shown(cell)}"
            ) from None
    raise AssertionError("some cell is wrong")


def _names(cells: Sequence[str], place: Callable[[int], str]) -> np.ndarray:
    """Return ids, each of which must come once, as integers where they are, else as text."""
    names: np.ndarray
    try:
        names = np.array(list(map(int, cells)), dtype=np.int64)
    except (ValueError, OverflowError):
        texts = [cell.strip() for cell in cells]
        for row, text in enumerate(texts):
            if len(text) > MAX_ID:  # an array of text is as wide as its longest
                raise PlanningError(
                    f"{place(row)}: expected an id of at most {MAX_ID} characters, got {len(text)}: "
                    f"{_shown(text)}"
                ) from None
        names = np.array(texts)
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[number] != np.arange(len(names)))
    if len(again):
        row = int(again[0])
        raise PlanningError(
            f"{place(row)}: expected every id once, got {_shown(cells[row])} again, as in "
            f"{place(int(first[number[row]]))}; name each interval for itself"
        )
    return names


def _header(cells: Iterable[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _short_lines(file: TextIO, name: str) -> Iterator[str]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise PlanningError(f"{name}: line {number}: expected less than {_MAX_LINE} characters")
        yield line


def _shown(cell: str) -> str:
    """Return a cell for a message: it may be of any length."""
    text = cell.strip()
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."
