"""The drawing of memory over time: scales, step paths, labels that do not collide.

Everything here is geometry and text. Names come from other people's files, so each passes through
`escaped`; numbers are formatted by this module and never taken as text from outside.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smartpool.drawing.envelope import Envelope
from smartpool.report.text import printable

__all__ = ["Plot", "area_path", "escaped", "line_path", "shortened", "spread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """The rectangle that data is drawn in, and what its upper edge stands for.

    Parameters
    ----------
    left, top, width, height
        The rectangle in units of the drawing.
    top_bytes
        The bytes at its upper edge, above 0; the lower edge is 0.
    """

    left: float
    top: float
    width: float
    height: float
    top_bytes: int

    @property
    def right(self) -> float:
        """The right edge: the end of the trace."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge: 0 bytes."""
        return self.top + self.height

    def y(self, nbytes: float) -> float:
        """Return how far down `nbytes` is drawn."""
        return self.bottom - self.height * (nbytes / self.top_bytes)


def line_path(series: Envelope, plot: Plot) -> str:
    """Return the path data of a step series: where a column moves, one stroke through its extremes."""
    edges = _edges(series, plot)
    low, high, last = (_heights(values, plot) for values in (series.low, series.high, series.last))
    at = last[0]
    parts = [f"M{edges[0]} {at}"]
    for column in range(series.columns):
        moves = [y for y in (low[column], high[column], last[column]) if y != at]
        if moves:
            parts.append(f"H{edges[column]}")
            for y in (*moves, last[column]):
                if y != at:
                    parts.append(f"V{y}")
                    at = y
    parts.append(f"H{edges[-1]}")
    return "".join(parts)


def area_path(series: Envelope, plot: Plot) -> str:
    """Return the path data of the area under the greatest value of each column."""
    edges = _edges(series, plot)
    parts, at = [f"M{edges[0]} {_number(plot.bottom)}"], ""
    for x, y in zip(edges, _heights(series.high, plot), strict=False):
        if y != at:
            parts.append(f"H{x}V{y}")
            at = y
    parts.append(f"H{edges[-1]}V{_number(plot.bottom)}Z")
    return "".join(parts)


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return positions near those wanted, in their order, `gap` apart and within [low, high].

    Where there is no room for all, they are spread evenly and the gap is smaller.

    Examples
    --------
    >>> spread([10, 11, 50], gap=10, low=0, high=100)
    [5.5, 15.5, 50.0]
    """
    if len(wanted) * gap > high - low:
        gap = (high - low) / max(1, len(wanted))
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    # Groups of labels that touch, each centred on the mean of what its members want.
    groups: list[tuple[list[int], float]] = []
    for index in order:
        members, centre = [index], min(max(wanted[index], low), high)
        while True:
            reach = gap * (len(members) - 1) / 2
            centre = min(max(centre, low + reach), high - reach)
            if not groups or groups[-1][1] + gap * len(groups[-1][0]) / 2 <= centre - gap * len(members) / 2:
                break
            before, before_centre = groups.pop()
            total = len(before) + len(members)
            centre = (before_centre * len(before) + centre * len(members)) / total
            members = before + members
        groups.append((members, centre))
    placed = [0.0] * len(wanted)
    for members, centre in groups:
        for number, index in enumerate(members):
            placed[index] = centre + gap * (number - (len(members) - 1) / 2)
    return placed


def escaped(text: str) -> str:
    """Return text that is safe inside an element and inside a quoted attribute.

    >>> escaped('<b a="1">')
    '&lt;b a=&quot;1&quot;&gt;'
    """
    return html.escape(printable(text), quote=True)


def shortened(text: str, length: int) -> str:
    """Return `text` in at most `length` characters, its middle left out.

    >>> shortened("pytorch-expandable-segments", 16)
    'pytorch-…egments'
    """
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def _edges(series: Envelope, plot: Plot) -> list[str]:
    """Where the columns begin, and where the last one ends."""
    fractions = np.arange(series.columns + 1) / series.columns
    return [_number(x) for x in (plot.left + plot.width * fractions).tolist()]


def _heights(values: NDArray[np.int64], plot: Plot) -> list[str]:
    rows: NDArray[np.float64] = plot.bottom - plot.height * (values / plot.top_bytes)
    return [_number(y) for y in rows.tolist()]


def _number(value: float) -> str:
    """Return a coordinate: a tenth of a pixel is finer than a screen, and short."""
    return f"{value:.1f}".removesuffix(".0")
