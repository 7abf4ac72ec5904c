"""Intervals from CSV, and plans to CSV: the format that planners exchange.

The header names the columns: ``id,lower,upper,size`` must be there, ``alignment``, ``priority``,
``fixed_offset`` and ``offset`` may; others are passed over. Lines that are blank are skipped.

``fixed_offset`` is an order: the interval must lie there; an empty cell leaves the choice to the planner.
``offset`` is one too where some of its cells are empty. A column ``offset`` without an empty cell is
somebody's whole plan (ours, from `write_csv`, or another tool's): nothing would be left to plan, so it is
checked, since a file that contradicts itself should not pass, and then left aside.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from smartpool.errors import PlanningError
from smartpool.planner.intervals import FREE, IntervalSet
from smartpool.planner.sweeps import Int64s

__all__ = ["read_csv", "write_csv"]

REQUIRED: Final = ("id", "lower", "upper", "size")
OPTIONAL: Final = ("alignment", "priority", "offset", "fixed_offset")


def read_csv(path: str | PathLike[str]) -> IntervalSet:
    """Read intervals from a CSV file; see the module for its columns.

    Raises
    ------
    PlanningError
        When a column is missing, a cell is no integer, or `IntervalSet.from_arrays` refuses an
        interval. The message names the file and the line.
    OSError
        When the file cannot be read.
    """
    name = Path(path).name
    with open(path, newline="", encoding="utf-8-sig") as file:  # noqa: PTH123  str and PathLike alike
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
    reader = csv.reader(file)
    header = [cell.strip().lower() for cell in next(reader, [])]
    for column in REQUIRED:
        if column not in header:
            found = ", ".join(header) or "nothing"
            raise PlanningError(f"{name}: line 1: expected a column {column!r} in the header, got {found}")
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
        id=_names(cells["id"]),
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
                f"{place(row)}: expected {column} to be an integer below 2**63, got {cell.strip()!r}"
            ) from None
    raise AssertionError("some cell is wrong")


def _names(cells: Sequence[str]) -> np.ndarray:
    """Return ids as integers where they are, else as text."""
    try:
        return np.array(list(map(int, cells)), dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array([cell.strip() for cell in cells])
