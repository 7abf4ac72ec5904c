"""What callers pass, as plain values of Python: an integer of NumPy's is an integer, True is none.

The plain value is kept, never the caller's object, which may change or behave otherwise. Text is kept so
that UTF-8 can encode it: whatever writes it later, to a file, a page or a socket, need not think of it.
"""

from __future__ import annotations

import math
from numbers import Real
from operator import index
from typing import Final

__all__ = ["BINARY_UNITS", "as_integer", "as_number", "encodable", "in_units", "shown", "three_digits"]

BINARY_UNITS: Final = tuple((f"{letter}iB", 1 << 60 - 10 * power) for power, letter in enumerate("EPTGMK"))
"""Names and factors, the largest first."""

_LONG_BITS: Final = 1024
_LONGEST_SIZE: Final = 80  # bits; more is no size of anything


def as_integer(value: object) -> int | None:
    """Return `value` as an `int`, or None when it is none: no ``__index__``, or True or False.

    >>> import numpy
    >>> as_integer(numpy.int64(7)), as_integer(True), as_integer(7.0), as_integer("7")
    (7, None, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return int(index(value))  # type: ignore[arg-type]  # members of enumerations become plain
    except TypeError:
        return None


def as_number(value: object) -> float | None:
    """Return `value` as a `float`, or None when it is no real number, or one that no float can hold.

    >>> import numpy
    >>> as_number(numpy.float32(0.5)), as_number(3), as_number(10**400), as_number("3"), as_number(False)
    (0.5, 3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def shown(value: object) -> str:
    """Return `value` as a message shows it: Python refuses to write integers of thousands of digits.

    >>> shown("7"), shown(7), shown(10**5000)
    ("'7'", '7', 'an integer of 16610 bits')
    """
    number = as_integer(value)
    if number is not None and number.bit_length() > _LONG_BITS:
        return f"an integer of {number.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:  # there is such an integer in it
        return f"a {type(value).__name__} with an integer of thousands of digits"


def encodable(text: str) -> str:
    r"""Return `text` with what UTF-8 cannot encode as its escape: lone surrogates.

    `os.fsdecode` makes them of file names that are no UTF-8, and JSON may hold them. Text is passed through
    this where it comes in, and not where it goes out, so that what is written reads back equal.

    >>> encodable("caf\udce9"), encodable("café")
    ('caf\\udce9', 'café')
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def in_units(nbytes: float, *, zeros: bool = False) -> str:
    """Return `nbytes` as `smartpool.units.format_size` does, which says more; or with `zeros` at its end.

    >>> in_units(629145600), in_units(-3), in_units(10**400), in_units(10 << 20, zeros=True)
    ('600 MiB', '-3 B', '2**1328 B or more', '10.0 MiB')
    """
    if isinstance(nbytes, int) and nbytes.bit_length() > _LONGEST_SIZE:
        return f"{'-' if nbytes < 0 else ''}2**{nbytes.bit_length() - 1} B or more"
    for unit, factor in BINARY_UNITS:
        if abs(nbytes) >= factor:
            value = nbytes / factor
            short = f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
            return f"{three_digits(value) if zeros else short} {unit}"
    return f"{round(nbytes)} B"


def three_digits(value: float) -> str:
    """Return a number of at least 1 with three digits, or with all digits before the point.

    >>> three_digits(1.5), three_digits(1023)
    ('1.50', '1023')
    """
    return f"{value:.{max(0, 2 - int(math.log10(abs(value))))}f}"
