"""The tiers: requests grouped by size, because their traffic differs.

A tier is one line here, the smallest first. Statistics, metrics, tables, pages and their colors follow.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum
from typing import Final

from smartpool.units import KiB, MiB, format_size

__all__ = ["LARGEST", "Tier", "tier_of"]


class Tier(Enum):
    """A class of sizes: its name in statistics, and the bytes of its largest request (None: no end).

    Examples
    --------
    >>> Tier.MEDIUM.value, Tier.MEDIUM.most, Tier.MEDIUM.title
    ('medium', 16777215, 'medium: 1 to 16 MiB')
    """

    SMALL = "small", MiB - 1
    MEDIUM = "medium", 16 * MiB - 1
    LARGE = "large", 256 * MiB
    HUGE = "huge", None

    most: int | None

    def __new__(cls, name: str, most: int | None) -> Tier:  # noqa: PYI034 - an enumeration has no further classes
        """Make the member of a name."""
        member = object.__new__(cls)
        member._value_ = name
        member.most = most
        return member

    @property
    def title(self) -> str:
        """The name and the sizes, for a reader."""
        tiers = list(Tier)
        below = tiers[tiers.index(self) - 1].most if self is not tiers[0] else None
        low, high = _edge(below), _edge(self.most)
        if low and high:
            unit = high[high.index(" ") :]
            return f"{self.value}: {low.removesuffix(unit)} to {high}"
        return f"{self.value}: below {high}" if high else f"{self.value}: above {low}"


LARGEST: Final = tuple(tier.most for tier in Tier if tier.most is not None)
"""Bytes of the largest request of each tier but the last, which has no end."""

_TIERS: Final = tuple(Tier)


def tier_of(size: int) -> Tier:
    """Return the tier of a request of `size` bytes.

    >>> [tier_of(size).value for size in (512, 1 << 20, 16 << 20, 256 << 20, (256 << 20) + 1)]
    ['small', 'medium', 'large', 'large', 'huge']
    """
    return _TIERS[bisect_left(LARGEST, size)]


def _edge(most: int | None) -> str:
    """Return where a tier ends: the round number at its last byte or behind it."""
    return "" if most is None else format_size(most if most % KiB == 0 else most + 1)
