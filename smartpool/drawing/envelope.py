"""A long step series at the resolution of a screen, with no peak lost.

A trace has up to millions of events and a chart a thousand columns of pixels. Sampling every n-th
event would drop the very peaks that the picture is about, so each column keeps the least, the
greatest and the last value that the series takes within it (Jugel et al., "M4: a
visualization-oriented time series data aggregation", VLDB 2014; the first value of a column is the
last of the one before, since the series is a step function). O(n) in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Envelope", "envelope"]


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """Least, greatest and last value in every column; arrays of one length."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    last: NDArray[np.int64]

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.last)


def envelope(event: ArrayLike, value: ArrayLike, *, events: int, columns: int) -> Envelope:
    """Reduce a step series over `events` events to at most `columns` columns.

    Parameters
    ----------
    event
        Where the series changes: event numbers in [0, events), never decreasing.
    value
        What it is from that event on, until the next. Before the first it is 0.
    events
        Length of the axis, at least 1.
    columns
        Most columns wanted; a series of fewer events gets one column an event. Column `c` of `C`
        holds the events `e` with ``e * C // events == c``.

    Examples
    --------
    >>> reduced = envelope([0, 1, 2, 3], [5, 9, 1, 4], events=4, columns=2)
    >>> reduced.low.tolist(), reduced.high.tolist(), reduced.last.tolist()
    ([5, 1], [9, 4], [9, 4])
    """
    at = np.asarray(event, dtype=np.int64)
    values = np.asarray(value, dtype=np.int64)
    columns = min(columns, events)
    starts = -(-np.arange(columns, dtype=np.int64) * events // columns)  # first event of each column
    # The value at each column's first event is one more sample there: a series that does not change
    # in a column still has a value in it.
    latest = np.searchsorted(at, starts, side="right") - 1
    carried = np.where(latest >= 0, values[latest], 0) if len(values) else np.zeros(columns, np.int64)
    all_events = np.concatenate([starts, at])
    order = np.argsort(all_events, kind="stable")  # the carried value goes before the samples
    samples = np.concatenate([carried, values])[order]
    edges = np.searchsorted(all_events[order], starts, side="left")
    last = samples[np.append(edges[1:], len(samples)) - 1]
    return Envelope(np.minimum.reduceat(samples, edges), np.maximum.reduceat(samples, edges), last)
