"""Runs side by side: which trace, which allocator, which figure is best, and the means.

A report is a matrix of traces and allocators. This module arranges a list of runs so, and knows
what each figure means for a reader: its title, how it is written, and that less of it is better.
The table and the picture only draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from smartpool.report.text import format_count, format_duration, format_share
from smartpool.trace.replay import Run
from smartpool.units import format_bytes

__all__ = ["COLUMNS", "FAILED", "FRAGMENTATION", "PEAK_LIVE", "Column", "Comparison", "best_of", "best_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure of a run.

    Parameters
    ----------
    title
        What stands above the column.
    value
        The figure of a run.
    text
        The figure as a reader sees it.
    compared
        Whether less is better and the best is marked. Peak live is the same for all.
    meaning
        One sentence for those who see the title for the first time.
    """

    title: str
    value: Callable[[Run], float]
    text: Callable[[float], str]
    compared: bool = True
    meaning: str = ""


FRAGMENTATION: Final = Column(
    title="fragmentation",
    value=lambda run: math.nan if run.fragmentation is None else run.fragmentation,
    text=format_share,
    meaning="1 - peak live / peak reserved: the share of the reserved memory that was never needed",
)

PEAK_LIVE: Final = Column(
    title="peak live",
    value=lambda run: run.peak_live_bytes,
    text=format_bytes,
    compared=False,
    meaning="the most bytes that the program held at once, as it asked for them",
)

FAILED: Final = Column(
    title="failed",
    value=lambda run: run.failed_requests,
    text=lambda value: format_count(round(value)),
    compared=False,
    meaning="requests refused for lack of memory",
)

COLUMNS: Final = (
    PEAK_LIVE,
    Column(
        title="peak reserved",
        value=lambda run: run.peak_reserved_bytes,
        text=format_bytes,
        meaning="the most bytes of device memory that the allocator held at once",
    ),
    FRAGMENTATION,
    Column(
        title="driver time",
        value=lambda run: run.driver_seconds,
        text=format_duration,
        meaning="time in the device's driver over the whole trace, on a model device by its table of costs",
    ),
    Column(
        title="us/op",
        value=lambda run: run.microseconds_per_operation,
        text=lambda value: f"{value:.2f}",
        compared=False,  # the peers' models are Python; the peers are not
        meaning="wall microseconds an allocation or free took here; for the peers, those of their models in "
        "Python, which say nothing about the peers",
    ),
    FAILED,
)


class Comparison:
    """A list of runs as a matrix of traces and allocators, in the order in which they came.

    Parameters
    ----------
    runs
        At least one run. Two runs of one allocator on one trace (on two devices, say) both stand in
        the trace's rows; the matrix takes the later one.
    """

    __slots__ = ("_cells", "allocators", "runs", "traces")

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs: Sequence[Run] = tuple(runs)
        self._cells = {(run.trace, run.allocator): run for run in self.runs}
        self.traces = tuple(dict.fromkeys(run.trace for run in self.runs))
        self.allocators = tuple(dict.fromkeys(run.allocator for run in self.runs))

    def of_trace(self, trace: str) -> Sequence[Run]:
        """Return the runs of one trace."""
        return tuple(run for run in self.runs if run.trace == trace)

    def cell(self, trace: str, allocator: str) -> Run | None:
        """Return the run of an allocator on a trace, or None where there is none."""
        return self._cells.get((trace, allocator))

    def mean(self, allocator: str, column: Column) -> float | None:
        """Return the mean over the traces; None unless the allocator served every one of them whole.

        A mean over the traces that an allocator happened to survive would flatter it.
        """
        runs = [self.cell(trace, allocator) for trace in self.traces]
        served = [run for run in runs if run is not None and run.failed_requests == 0]
        return fmean(column.value(run) for run in served) if len(served) == len(self.traces) else None


def best_text(values: Iterable[float], column: Column) -> str | None:
    """Return how the smallest of `values` is written: everything that reads so shares the mark."""
    smallest = min(values, default=None)
    return None if smallest is None or not column.compared else column.text(smallest)


def best_of(runs: Sequence[Run], column: Column) -> str | None:
    """Return how the best figure reads among the runs that served every request.

    None when there is nothing to choose between: a run that refused requests needs less memory for
    the wrong reason, and a single run is not best of anything.
    """
    served = [run for run in runs if run.failed_requests == 0]
    return best_text((column.value(run) for run in served), column) if len(runs) > 1 else None
