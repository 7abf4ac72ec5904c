"""Sizes in bytes: constants, reading what people write, and writing what people read.

``GiB`` is 2**30 bytes and ``GB`` is 10**9, as the standards have it (IEC 80000-13), and so for every
unit from k to E. A letter alone is binary (``80G`` is ``80GiB``), as in ``ls`` and ``dd``. What SmartPool
prints is binary and says so.
"""

from __future__ import annotations

import re
from operator import index
from typing import Final

from smartpool.errors import InvalidSizeError
from smartpool.values import BINARY_UNITS, as_integer, in_units

__all__ = [
    "BINARY_UNITS",
    "GiB",
    "KiB",
    "MiB",
    "TiB",
    "align_down",
    "align_up",
    "format_bytes",
    "format_size",
    "parse_size",
]

KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30
TiB: Final = 1 << 40

_LETTERS: Final = " kmgtpe"
_DIGITS: Final = "[0-9](?:_?[0-9]){0,39}"  # more are no size, and Python refuses to convert thousands
_SIZE: Final = re.compile(
    rf"\s*(?P<whole>{_DIGITS})(?:\.(?P<part>{_DIGITS}))?(?:e(?P<power>[+-]?[0-9]{{1,2}}))?\s*"
    r"(?:(?P<letter>[kmgtp]|e(?=i?b))(?P<kind>i?b)?|b|bytes?)?\s*",
    re.ASCII | re.IGNORECASE,
)


def parse_size(text: str | int) -> int:
    """Return the number of bytes that `text` names.

    Parameters
    ----------
    text
        An integer, NumPy's too, or a number with or without a unit: ``"80GiB"``, ``"80GB"``, ``"512 kib"``,
        ``"1.5G"``, ``"1e9"``, ``"85_899_345_920"``.

    Raises
    ------
    InvalidSizeError
        When the text is not a size, or does not come to a whole number of bytes.

    Examples
    --------
    >>> parse_size("80GiB"), parse_size("80GB"), parse_size("1.5 KiB"), parse_size("1e9"), parse_size(512)
    (85899345920, 80000000000, 1536, 1000000000, 512)
    """
    number = as_integer(text)
    if number is not None:
        if number < 0:
            raise InvalidSizeError(f"expected a size of at least 0 bytes, got {in_units(number)}")
        return number
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidSizeError(
            f"expected a size such as '80GiB', '512 KiB' or 85899345920, got {text!r:.80}; "
            "write a number and one of B, KiB, MiB, GiB, TiB, PiB, EiB, or kB, MB, GB, TB, PB, EB"
        )
    letter, kind = (match["letter"] or " ").lower(), (match["kind"] or "ib").lower()
    factor: int = (1024 if kind == "ib" else 1000) ** _LETTERS.index(letter)
    whole, part = match["whole"].replace("_", ""), (match["part"] or "").replace("_", "")
    power = int(match["power"] or 0) - len(part)
    upper, lower = int(whole + part) * factor * 10 ** max(0, power), 10 ** max(0, -power)
    if upper % lower:
        raise InvalidSizeError(
            f"expected a whole number of bytes, got {text!r:.80} = {upper / lower} bytes; "
            "choose a smaller unit"
        )
    return int(upper // lower)


def format_size(nbytes: int) -> str:
    """Return `nbytes` for a reader: three significant digits and a binary unit.

    Raises
    ------
    InvalidSizeError
        When it is no integer. NumPy's are accepted.

    Examples
    --------
    >>> format_size(512), format_size(10 * MiB), format_size(85899345920), format_size(1234567)
    ('512 B', '10 MiB', '80 GiB', '1.18 MiB')
    """
    try:
        nbytes = index(nbytes)
    except TypeError:
        raise InvalidSizeError(
            f"expected a number of bytes as an integer, got {nbytes!r} of type {type(nbytes).__name__}; "
            "round it, or read text with parse_size()"
        ) from None
    return in_units(nbytes)


def format_bytes(nbytes: float) -> str:
    """Return a number of bytes for a column: always three digits, so that columns line up.

    >>> format_bytes(1215 * MiB), format_bytes(11 * GiB), format_bytes(0)
    ('1.19 GiB', '11.0 GiB', '0 B')
    """
    return in_units(nbytes, zeros=True)


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` (a power of two) that is at least `value`.

    >>> align_up(513, 512), align_up(512, 512)
    (1024, 512)
    """
    return (value + alignment - 1) & -alignment


def align_down(value: int, alignment: int) -> int:
    """Return the largest multiple of `alignment` (a power of two) that is at most `value`.

    >>> align_down(1023, 512)
    512
    """
    return value & -alignment
