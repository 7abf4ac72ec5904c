"""Rows of CSV: those of others read within bounds, and our own written so that they read back equal.

Numbers are plain. Text that a cell would not keep (line breaks, spaces at an end), or that a spreadsheet
would run (a formula begins with one of ``= + - @``), is written as a JSON string, quotes and all, and read as
one. Every other text stands as it is.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from os import PathLike
from typing import Final

from smartpool.errors import SmartPoolError, TraceFormatError
from smartpool.files import open_regular

__all__ = ["cell_of", "first_row", "mistaken", "read_rows", "text_of", "whole_number"]

_MAX_LINE: Final = 1 << 16
_NEAR: Final = 0.8
_NUMBER: Final = re.compile(r"-?[0-9]{1,19}")
_FORMULA: Final = ("=", "+", "-", "@", '"')


def read_rows(
    path: str | PathLike[str],
    *,
    most_bytes: int | None = None,
    error: type[SmartPoolError] = TraceFormatError,
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row, without the spaces around them; no blank rows.

    Raises
    ------
    SmartPoolError
        Of the class `error`, as `smartpool.files.open_regular` raises it; and when the file is no CSV, no
        text in UTF-8, or has a line of 65,536 characters. The message names the line.
    OSError
        When the file cannot be opened.
    """
    opened = open_regular(path, most_bytes=most_bytes, error=error)
    with io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_short_lines(path, file, error), strict=True)
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
        except UnicodeDecodeError as wrong:
            raise error(
                f"{path}, after line {reader.line_num}: expected text in UTF-8, got {wrong.reason}; save it "
                "in UTF-8"
            ) from None
        except csv.Error as wrong:
            raise error(f"{path}, line {reader.line_num}: expected CSV, got {wrong}") from None


def first_row(head: bytes) -> list[str]:
    """Return the cells of the first row in the first bytes of a file; whatever is in them, some cells."""
    line = next(iter(head.decode("utf-8-sig", errors="replace").splitlines()), "")
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def mistaken(header: Iterable[str], known: Iterable[str]) -> str | None:
    """Return in words a column that is nearly called like one that is known and missing; None where none is.

    Columns that are not known are passed over, but not one that would have changed the meaning.

    >>> mistaken(["id", "aligment", "note"], ["id", "alignment"])
    "a column 'aligment', which is not known; did you mean 'alignment'?"
    """
    names = list(header)
    missing = [name for name in known if name not in names]
    for name in names:
        near = [] if name in known else get_close_matches(name, missing, 1, _NEAR)
        if near:
            return f"a column {name!r:.40}, which is not known; did you mean {near[0]!r}?"
    return None


def whole_number(text: str) -> int | None:
    """Return the number that a cell holds in decimal digits, None for anything else.

    Not what `int` reads: that takes underscores, and the digits of every script.

    >>> whole_number("-12"), whole_number("1_000"), whole_number("1e3"), whole_number("٣")
    (-12, None, None, None)
    """
    return int(text) if _NUMBER.fullmatch(text) else None


def cell_of(text: str) -> str:
    r"""Return a text as a cell; `text_of` gives it back.

    >>> cell_of("model.py:3 forward"), cell_of("=1+1"), cell_of("two\nlines")
    ('model.py:3 forward', '"=1+1"', '"two\\nlines"')
    """
    plain = text and text.isprintable() and text == text.strip() and not text.startswith(_FORMULA)
    return text if plain else json.dumps(text)


def text_of(cell: str) -> str:
    """Return the text of a cell.

    >>> text_of('"=1+1"'), text_of("a"), text_of('"no JSON')
    ('=1+1', 'a', '"no JSON')
    """
    if cell.startswith('"'):
        try:
            text = json.loads(cell)
        except ValueError:
            return cell
        if isinstance(text, str):
            return text
    return cell


def _short_lines(
    path: str | PathLike[str], file: io.TextIOWrapper, error: type[SmartPoolError]
) -> Iterator[str]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise error(f"{path}, line {number}: expected less than {_MAX_LINE} characters")
        yield line
