"""What a history of intervals says about the next ones: size classes, lifetimes, repetition.

Problem: a pool sees requests come and go, and wants to know what to expect.

Method: columns and quantiles, and for repetition an autocorrelation. Sizes are names, not amounts, here:
each different size gets a random sign, so that the correlation of the signs at a lag counts the places
where the sequence equals itself shifted, up to noise; one Fourier transform gives all lags at once
(Fischer and Paterson, "String-matching and other products", 1974). The best lags are then compared
exactly, and the smallest that repeats is the period. O(n log n).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from smartpool.planner.sweeps import Int64s

__all__ = ["AccessPatterns", "SizeClass", "find_period", "summarize"]

REPEATS: Final = 0.9
"""A period explains at least this share of the sizes."""

WINDOW: Final = 1 << 15
"""So many of the latest opens are looked at for repetition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """Intervals of sizes ``low <= size < high``, a power of two apart."""

    low: int
    high: int
    count: int
    total_bytes: int
    median_lifetime: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPatterns:
    """A summary of a history.

    Parameters
    ----------
    intervals
        How many were looked at.
    size_classes
        Ascending, empty ones left out.
    lifetime_quantiles
        The 10th, 50th and 90th percentile of the lifetimes.
    period
        After how many opens the sequence of sizes repeats; None when it does not.
    repetition
        The share of opens that the period predicts, in [0, 1].
    """

    intervals: int
    size_classes: tuple[SizeClass, ...]
    lifetime_quantiles: tuple[float, float, float]
    period: int | None
    repetition: float


def summarize(start: Int64s, end: Int64s, size: Int64s) -> AccessPatterns:
    """Summarise a history of intervals in order of their starts; O(n log n).

    Examples
    --------
    >>> start = np.arange(48)
    >>> found = summarize(start, start + 3, np.array([8, 16, 64] * 16))
    >>> found.period, found.repetition
    (3, 1.0)
    >>> [(each.low, each.count) for each in found.size_classes]
    [(8, 16), (16, 16), (64, 16)]
    """
    lifetime = end - start
    period, share = find_period(size[-WINDOW:])
    quantiles = np.quantile(lifetime, (0.1, 0.5, 0.9)) if len(size) else np.zeros(3)
    return AccessPatterns(
        intervals=len(size),
        size_classes=_size_classes(size, lifetime),
        lifetime_quantiles=(float(quantiles[0]), float(quantiles[1]), float(quantiles[2])),
        period=period,
        repetition=share,
    )


def find_period(values: Int64s) -> tuple[int | None, float]:
    """Return the smallest lag at which a sequence repeats itself, and the share of values that do.

    At least two whole periods must be there.

    >>> find_period(np.array([1, 2, 3, 1, 2, 3, 1]))
    (3, 1.0)
    >>> find_period(np.array([1, 2, 3, 4]))
    (None, 0.0)
    """
    n = len(values)
    if n < 2:
        return None, 0.0
    _, names = np.unique(values, return_inverse=True)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(2, int(names.max()) + 1))[:, names.reshape(-1)]
    width = 1 << (2 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(signs, width)) ** 2
    score = np.fft.irfft(power.mean(axis=0), width)[: n // 2 + 1] / np.arange(n, n - n // 2 - 1, -1)
    # Noise at a lag is about one over the root of what is compared there; lags near the best are compared.
    good = np.flatnonzero(score[1:] >= max(REPEATS - 0.2, 0.0) - 2 / np.sqrt(n)) + 1
    for lag in good[:256].tolist():
        share = float((values[lag:] == values[:-lag]).mean())
        if share >= REPEATS:
            return lag, share
    return None, 0.0


def _size_classes(size: Int64s, lifetime: Int64s) -> tuple[SizeClass, ...]:
    exponent = np.frexp(np.maximum(size, 1).astype(np.float64))[1] - 1
    classes = []
    for power in np.unique(exponent).tolist():
        inside = exponent == power
        classes.append(
            SizeClass(
                low=0 if power == 0 else 1 << power,
                high=2 << power,
                count=int(inside.sum()),
                total_bytes=int(size[inside].sum()),
                median_lifetime=float(np.median(lifetime[inside])),
            )
        )
    return tuple(classes)
