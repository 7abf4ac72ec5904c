"""Intervals from CSV, and plans to CSV: the format that planners exchange.

The header names the columns, in any order. ``id``, ``lower``, ``upper`` and ``size`` must be there, under
this or another name that is in use (`_NAMES`). ``end`` is one: its times are the last of a lifetime, not the
first after it. ``alignment``, ``priority``, ``gaps``, ``fixed_offset`` and ``offset`` may be there, and an
empty cell of theirs is as good as none. Other columns are passed over. Blank lines are skipped.

``gaps`` are the rests of an interval: ``2-8`` leaves all its bytes to others at ``2 <= t < 8``, ``2-8@0:16``
all but its first 16. Several stand with spaces between them. Beside ``end`` they name last times, too.

``fixed_offset`` is an order: the interval must lie there; an empty cell leaves the choice to the planner.
``offset`` is one too where some of its cells are empty. A column ``offset`` without an empty cell is
somebody's whole plan (ours, from `write_csv`, or another tool's): nothing would be left to plan, so it is
checked, since a file that contradicts itself should not pass, and then left aside.

The file may be anybody's: it is a regular one of at most `MAX_BYTES`, an id has at most `MAX_ID` characters
and comes once, and what is read takes at most some 50 times the file's length in memory.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np

from smartpool.csv_rows import cell_of, mistaken, read_rows, text_of, whole_number
from smartpool.errors import PlanningError
from smartpool.planner.intervals import FREE, IntervalSet
from smartpool.planner.pieces import Pieces
from smartpool.planner.sweeps import Int64s
from smartpool.units import GiB

__all__ = ["is_interval_header", "read_csv", "write_csv"]

MAX_BYTES: Final = 1 * GiB
MAX_ID: Final = 200
_NAMES: Final = {
    "id": ("id", "buffer", "buffer_id"),
    "lower": ("lower", "start", "begin"),
    "upper": ("upper", "end"),
    "size": ("size",),
    "alignment": ("alignment",),
    "priority": ("priority",),
    "gaps": ("gaps",),
    "offset": ("offset",),
    "fixed_offset": ("fixed_offset",),
}
_NEEDED: Final = ("id", "lower", "upper", "size")
_DEFAULTS: Final = {"alignment": 1, "priority": 0}
_GAP: Final = re.compile(r"(-?[0-9]{1,19})-(-?[0-9]{1,19})(?:@([0-9]{1,19}):([0-9]{1,19}))?")
_PLAIN: Final = re.compile("[0-9-]*")
_SHOWN: Final = 60

_Place = Callable[[int], str]


def is_interval_header(cells: Iterable[str]) -> bool:
    """Return whether the first row of a file is the header of such a CSV.

    >>> is_interval_header(["id", "lower", "upper", "size"]), is_interval_header(["op", "id", "size"])
    (True, False)
    """
    found = {cell.lower() for cell in cells}
    return all(found & set(_NAMES[column]) for column in _NEEDED)


def read_csv(path: str | PathLike[str]) -> IntervalSet:
    """Read intervals from a CSV file; see the module for its columns.

    Raises
    ------
    PlanningError
        When a column is missing, a cell is no integer, an id comes twice, or `IntervalSet`
        refuses an interval. The message names the file and the line.
    OSError
        When the file cannot be read.
    """
    name = Path(path).name
    rows = read_rows(path, most_bytes=MAX_BYTES, error=PlanningError)
    _, header = next(rows, (1, []))
    columns, inclusive = _columns(header, name)
    lines: list[int] = []
    table: list[list[str]] = []
    for line, row in rows:
        if len(row) != len(header):
            raise PlanningError(
                f"{name}: line {line}: expected {len(header)} cells, as in the header, got {len(row)}"
            )
        lines.append(line)
        table.append(row)

    def place(row: int) -> str:
        return f"{name}: line {lines[row]}"

    cells = {column: [row[at] for row in table] for column, at in columns.items()}
    return _intervals(cells, place, inclusive=inclusive)


def write_csv(path: str | PathLike[str], intervals: IntervalSet, offsets: Int64s) -> None:
    """Write a plan: ``id,lower,upper,size,offset``, and before the last what else is not as usual.

    What is written reads back equal, `read_csv` leaving the plan itself aside. Ids come back as integers
    where all are written so, and else as text.

    Raises
    ------
    PlanningError
        When an id is longer than `MAX_ID` or comes twice: such a file could not be read.
    """
    names = [cell_of(name) if isinstance(name, str) else str(name) for name in intervals.id.tolist()]
    _names(names, lambda row: f"interval {row}")
    columns: dict[str, Sequence[object]] = {
        "id": names,
        "lower": intervals.start.tolist(),
        "upper": intervals.end.tolist(),
        "size": intervals.size.tolist(),
    }
    for column, usual in _DEFAULTS.items():
        values: Int64s = getattr(intervals, column)
        if (values != usual).any():
            columns[column] = values.tolist()
    if intervals.rests is not None:
        columns["gaps"] = _gap_cells(intervals)
    if (intervals.fixed != FREE).any():
        columns["fixed_offset"] = ["" if at == FREE else at for at in intervals.fixed.tolist()]
    columns["offset"] = np.asarray(offsets).tolist()
    with open(path, "w", newline="", encoding="utf-8") as file:  # noqa: PTH123  str and PathLike alike
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _columns(header: list[str], name: str) -> tuple[dict[str, int], bool]:
    """Return where each column stands, and whether the last instant of a lifetime is named."""
    found: dict[str, int] = {}
    cells = [cell.lower() for cell in header]
    for column, known in _NAMES.items():
        named = [at for at, cell in enumerate(cells) if cell in known]
        if len(named) > 1:
            twice = ", ".join(dict.fromkeys(cells[at] for at in named))
            raise PlanningError(f"{name}: line 1: expected the column {column!r} once, got it twice: {twice}")
        if named:
            found[column] = named[0]
        elif column in _NEEDED:
            got = ", ".join(cells)[:_SHOWN] or "nothing"
            raise PlanningError(
                f"{name}: line 1: expected a column {' or '.join(map(repr, known))} in the header, got {got}"
            )
    wrong = mistaken(
        cells, [known for column, names in _NAMES.items() for known in names if column not in found]
    )
    if wrong:
        raise PlanningError(f"{name}: line 1: expected a header with {', '.join(_NAMES)}, got {wrong}")
    return found, cells[found["upper"]] == "end"


def _intervals(cells: dict[str, list[str]], place: _Place, *, inclusive: bool) -> IntervalSet:
    numbers = {
        column: _integers(column, cells[column], place, empty=_DEFAULTS.get(column))
        for column in ("lower", "upper", "size", *_DEFAULTS)
        if column in cells
    }
    if inclusive:
        numbers["upper"] = _after(numbers["upper"], place)
    ordered, plan = _offsets(cells, place)
    intervals = IntervalSet(
        numbers["lower"],
        numbers["upper"],
        numbers["size"],
        alignment=numbers.get("alignment"),
        priority=numbers.get("priority"),
        fixed=ordered,
        rests=_rests(cells["gaps"], place, inclusive=inclusive) if "gaps" in cells else None,
        id=_names(cells["id"], place),
        place=place,
    )
    if plan is not None:
        _check_plan(intervals, plan, place)
    return intervals


def _offsets(cells: dict[str, list[str]], place: _Place) -> tuple[Int64s | None, Int64s | None]:
    """Return the offsets that are ordered, and those that are a whole plan; None where there are none."""
    ordered = _fixed("fixed_offset", cells["fixed_offset"], place) if "fixed_offset" in cells else None
    if "offset" not in cells:
        return ordered, None
    offsets = _fixed("offset", cells["offset"], place)
    if ordered is None and (offsets == FREE).any():
        return offsets, None
    return ordered, None if (offsets == FREE).any() else offsets


def _check_plan(intervals: IntervalSet, plan: Int64s, place: _Place) -> None:
    """Refuse a file whose plan is none, and name its lines."""
    intervals.with_fixed(plan, place)
    wrong = (intervals.fixed != FREE) & (intervals.fixed != plan)
    if wrong.any():
        row = int(wrong.argmax())
        raise PlanningError(
            f"{place(row)}: expected offset to be the fixed one, {intervals.fixed[row]}, got {plan[row]}"
        )


def _fixed(column: str, cells: list[str], place: _Place) -> Int64s:
    """Return a column of offsets, `FREE` where a cell is empty."""
    fixed = _integers(column, cells, place, empty=FREE)
    wrong = (fixed < 0) & np.array([bool(cell) for cell in cells], bool)
    if wrong.any():
        row = int(wrong.argmax())
        raise PlanningError(f"{place(row)}: expected {column} to be at least 0, got {fixed[row]}")
    return fixed


def _after(last: Int64s, place: _Place) -> Int64s:
    """Return the times after the last ones of lifetimes."""
    wrong = last == np.iinfo(np.int64).max
    if wrong.any():
        raise PlanningError(f"{place(int(wrong.argmax()))}: expected an end below 2**63 - 1")
    return last + 1


def _integers(column: str, cells: Sequence[str], place: _Place, *, empty: int | None = None) -> Int64s:
    """Return the cells of a column as integers; `empty` stands for empty ones, None refuses them."""
    numbers = _numbers(cells)
    if empty is not None:
        numbers = [number if cell else empty for cell, number in zip(cells, numbers, strict=True)]
    try:
        return np.array(numbers, dtype=np.int64)
    except (TypeError, OverflowError):
        pass
    for row, number in enumerate(numbers):
        if number is None or not -(1 << 63) <= number < 1 << 63:
            raise PlanningError(
                f"{place(row)}: expected {column} to be an integer below 2**63, got {_shown(cells[row])}"
            )
    raise AssertionError("some cell is wrong")


def _numbers(cells: Sequence[str]) -> list[int | None]:
    """Return what `whole_number` says of each, of a million cells a few times as fast where it can."""
    if _PLAIN.fullmatch("".join(cells)):
        with suppress(ValueError):
            return list(map(int, cells))
    return [whole_number(cell) for cell in cells]


def _rests(cells: list[str], place: _Place, *, inclusive: bool) -> list[list[tuple[int, int, int, int]]]:
    """Return the rests of each interval, as `IntervalSet` takes them."""
    rests = []
    for row, cell in enumerate(cells):
        of_row = []
        for text in cell.split():
            found = _GAP.fullmatch(text)
            if found is None:
                raise PlanningError(
                    f"{place(row)}: expected gaps as LOWER-UPPER or LOWER-UPPER@LOW:HIGH with spaces between "
                    f"them, got {_shown(text)}"
                )
            lower, upper, low, high = (int(part or 0) for part in found.groups())
            of_row.append((lower, upper + inclusive, low, high))
        if any(not -(1 << 63) <= number < 1 << 63 for rest in of_row for number in rest):
            raise PlanningError(f"{place(row)}: expected gaps of integers below 2**63, got {_shown(cell)}")
        rests.append(of_row)
    return rests


def _gap_cells(intervals: IntervalSet) -> list[str]:
    cells: list[list[str]] = [[] for _ in range(len(intervals))]
    columns = (getattr(intervals.rests, name).tolist() for name in Pieces.__slots__)
    for row, start, end, low, high in zip(*columns, strict=True):
        cells[row].append(f"{start}-{end}" + (f"@{low}:{high}" if low < high else ""))
    return [" ".join(of_row) for of_row in cells]


def _names(cells: Sequence[str], place: _Place) -> np.ndarray:
    """Return ids, each of which must come once, as integers where they are, else as text."""
    numbers = _numbers(cells)
    names: np.ndarray
    if all(number is not None and -(1 << 63) <= number < 1 << 63 for number in numbers):
        names = np.array(numbers, dtype=np.int64)
    else:
        texts = [text_of(cell) for cell in cells]
        for row, text in enumerate(texts):
            if len(text) > MAX_ID:  # an array of text is as wide as its longest
                raise PlanningError(
                    f"{place(row)}: expected an id of at most {MAX_ID} characters, got {len(text)}: "
                    f"{_shown(text)}"
                )
        names = np.array(texts, dtype=np.str_)
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[number] != np.arange(len(names)))
    if len(again):
        row = int(again[0])
        raise PlanningError(
            f"{place(row)}: expected every id once, got {_shown(cells[row])} again, as in "
            f"{place(int(first[number[row]]))}; name each interval for itself"
        )
    return names


def _shown(cell: str) -> str:
    """Return a cell for a message: it may be of any length."""
    return repr(cell) if len(cell) <= _SHOWN else f"{cell[:_SHOWN]!r}..."
