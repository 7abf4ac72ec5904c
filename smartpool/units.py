"""Sizes in bytes: constants, reading what people write, and writing what people read.

Binary units only (``KiB``, ``MiB``, ...). ``"80GB"`` and ``"80G"`` are read as ``80GiB``, as the
tools of this field (PyTorch, RMM, `nvidia-smi`) do; what SmartPool prints always says ``GiB``.
"""

from __future__ import annotations

import re
from operator import index
from typing import Final

from smartpool.errors import InvalidSizeError

__all__ = ["GiB", "KiB", "MiB", "TiB", "align_down", "align_up", "format_size", "parse_size"]

KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30
TiB: Final = 1 << 40

_FACTORS: Final = {"": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB}
_DIGITS: Final = r"[0-9]{1,40}"  # more are no size, and Python refuses to convert thousands
_SIZE: Final = re.compile(
    rf"\s*({_DIGITS}(?:\.{_DIGITS})?)\s*(?:([kmgt])(?:i?b)?|b|bytes)?\s*", re.IGNORECASE
)


def parse_size(text: str | int) -> int:
    """Return the number of bytes that `text` names.

    Parameters
    ----------
    text
        An integer, a string of digits, or a number with a unit: ``"80GiB"``, ``"512 kib"``,
        ``"1.5G"``, ``"85899345920"``.

    Raises
    ------
    InvalidSizeError
        When the text is not a size, or does not come to a whole number of bytes.

    Examples
    --------
    >>> parse_size("80GiB"), parse_size("1.5 KiB"), parse_size(512)
    (85899345920, 1536, 512)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise InvalidSizeError(f"expected a size of at least 0 bytes, got {text}")
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidSizeError(
            f"expected a size such as '80GiB', '512 KiB' or 85899345920, got {text!r}; "
            "write a number and one of B, KiB, MiB, GiB, TiB"
        )
    number, unit = match.groups()
    factor = _FACTORS[(unit or "").lower()]
    whole, _, fraction = number.partition(".")
    numerator, denominator = int(whole + fraction) * factor, int(10 ** len(fraction))
    if numerator % denominator:
        raise InvalidSizeError(
            f"expected a whole number of bytes, got {text!r} = {numerator / denominator} bytes; "
            "choose a smaller unit"
        )
    return numerator // denominator


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
    for unit, factor in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if abs(nbytes) >= factor:
            value = nbytes / factor
            return f"{value:.0f} {unit}" if abs(value) >= 999.5 else f"{value:.3g} {unit}"
    return f"{nbytes} B"


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
