"""The four tiers: requests grouped by size, because their traffic differs."""

from __future__ import annotations

from enum import Enum
from typing import Final

from smartpool.units import MiB

__all__ = ["LARGEST", "Tier", "tier_of"]


class Tier(Enum):
    """A class of sizes. The value is the name that statistics show."""

    SMALL = "small"
    """Below 1 MiB."""
    MEDIUM = "medium"
    """From 1 MiB up to 16 MiB."""
    LARGE = "large"
    """From 16 MiB up to and with 256 MiB."""
    HUGE = "huge"
    """Above 256 MiB."""


LARGEST: Final = (MiB - 1, 16 * MiB - 1, 256 * MiB)
"""Bytes of the largest request of each tier but the last, which has no end."""


def tier_of(size: int) -> Tier:
    """Return the tier of a request of `size` bytes.

    >>> [tier_of(size).value for size in (512, 1 << 20, 16 << 20, 256 << 20, (256 << 20) + 1)]
    ['small', 'medium', 'large', 'large', 'huge']
    """
    small, medium, large = LARGEST
    if size <= small:
        return Tier.SMALL
    if size <= medium:
        return Tier.MEDIUM
    return Tier.LARGE if size <= large else Tier.HUGE
