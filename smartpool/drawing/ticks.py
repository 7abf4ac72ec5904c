"""Round numbers for axes. `format.js` does the same for pages that draw themselves."""

from __future__ import annotations

import math
from typing import Final

from smartpool.units import BINARY_UNITS

__all__ = ["byte_ticks"]

_UNITS: Final = (*BINARY_UNITS, ("B", 1))


def byte_ticks(most: int, *, at_most: int = 6) -> list[tuple[int, str]]:
    """Return round numbers of bytes from 0 to `most` or just past it, with their labels.

    Examples
    --------
    >>> from smartpool.units import MiB
    >>> byte_ticks(3 * MiB // 2)
    [(0, '0'), (262144, '0.25 MiB'), (524288, '0.5 MiB'), ..., (1572864, '1.5 MiB')]
    """
    most = max(most, 1)
    unit, factor = next((unit, factor) for unit, factor in _UNITS if most >= factor)
    # A quarter and a half of a unit are whole bytes and short to write; a fifth of one is neither.
    rough = most / factor / at_most
    step_units = next((step for step in (0.25, 0.5) if step >= rough), 0) or _round_step(rough)
    step = max(1, round(step_units * factor))
    count = -(-most // step)
    return [(n * step, f"{n * step / factor:g} {unit}" if n else "0") for n in range(count + 1)]


def _round_step(rough: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is at least `rough` > 0."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
