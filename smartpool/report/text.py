"""Names and figures as text: what other people put into files must not steer a terminal or a page."""

from __future__ import annotations

import math
from typing import Final

from smartpool.values import three_digits

__all__ = ["counted", "format_count", "format_duration", "format_share", "printable"]

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    r"""Return `text` with everything that does not print replaced: controls, escapes, surrogates.

    Trace names come from files. A terminal would obey an escape sequence in one, a bidirectional
    override would turn a line around, and a lone surrogate cannot be written as UTF-8 at all.

    Examples
    --------
    >>> printable("llama-train"), printable("\x1b[2J"), printable("a\ud800b")
    ('llama-train', '\ufffd[2J', 'a\ufffdb')
    """
    return "".join(character if character.isprintable() else _REPLACEMENT for character in text)


def counted(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural where there is not exactly one.

    >>> counted(1, "stream"), counted(392526, "event")
    ('1 stream', '392,526 events')
    """
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"


def format_share(share: float | None) -> str:
    """Return a share in [0, 1] as a percentage with one decimal; a dash for one of nothing (None, NaN).

    >>> format_share(0.4939), format_share(0.0004), format_share(None)
    ('49.4 %', '0.0 %', '-')
    """
    return "-" if share is None or math.isnan(share) else f"{share * 100:.1f} %"


def format_duration(seconds: float) -> str:
    """Return seconds in the unit that leaves three digits.

    >>> format_duration(0), format_duration(12.34e-6), format_duration(0.1324), format_duration(75)
    ('0 s', '12.3 us', '132 ms', '75.0 s')
    """
    if seconds == 0:
        return "0 s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        value = seconds * factor
        if abs(value) >= 1:
            return f"{three_digits(value)} {unit}"
    return f"{seconds * 1e6:.2f} us"


def format_count(count: int) -> str:
    """Return a whole number with its thousands apart.

    >>> format_count(392526)
    '392,526'
    """
    return f"{count:,}"
