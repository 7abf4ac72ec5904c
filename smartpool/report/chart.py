"""The charts of one trace: all allocators in one, and a small panel for each. `picture.js` draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smartpool.report.page import escaped
from smartpool.report.text import format_share, printable
from smartpool.trace.replay import Run
from smartpool.trace.targets import SMARTPOOL

__all__ = ["chart", "chart_columns", "chart_facts", "panels", "slots_of", "swatch"]

_LINES: Final = 8
"""Lines that can be told apart: `c0` to `c7` in tokens.css. The first is ours."""


def chart(runs: Sequence[Run], slots: Mapping[str, int], number: int) -> str:
    """Return the place of the chart of all `runs`, which are of one trace, with a legend.

    Parameters
    ----------
    runs
        At least one.
    slots
        The number of each allocator's color in the page's style.
    number
        Of the chart within the page.
    """
    keys = "".join(
        f'<button type="button" disabled class="key" aria-pressed="true" data-series="{index}">'
        f"{swatch(slots[run.allocator])}{escaped(run.allocator)}</button>"
        for index, run in enumerate(runs)
    )
    return (
        f'<figure class="chart" data-chart="{number}"><figcaption class="legend">'
        f'<span class="key">{_drawn("live", "M1 1H25V9H1Z")}live, as requested</span>'
        f'<span class="key">{_drawn("peak", "M1 5H25")}peak live</span>{keys}</figcaption></figure>'
    )


def panels(runs: Sequence[Run], slots: Mapping[str, int], number: int) -> str:
    """Return the places of a small chart a run, each with the run's fragmentation."""
    figures = []
    for index, run in enumerate(runs):
        name, share = escaped(run.allocator), format_share(run.fragmentation)
        figures.append(
            f'<figure class="panel" data-chart="{number}" data-series="{index}"><figcaption>'
            f'<span class="name" title="{name}">{swatch(slots[run.allocator])}{name}</span><b>{share}</b>'
            "</figcaption></figure>"
        )
    columns = len(runs) if len(runs) <= 5 else 3 if len(runs) in (6, 9) else 4
    return f'<div class="panels" style="--columns:{columns}">{"".join(figures)}</div>'


def slots_of(allocators: Iterable[str]) -> dict[str, int]:
    """Return the number of each allocator's color, the same in every part of a page: 0 is ours.

    >>> slots_of(["cupy", "smartpool", "rmm"])
    {'smartpool': 0, 'cupy': 1, 'rmm': 2}
    """
    others = [name for name in allocators if name != SMARTPOOL]
    return {SMARTPOOL: 0} | {name: 1 + number % (_LINES - 1) for number, name in enumerate(others)}


def swatch(slot: int) -> str:
    """Return a short piece of an allocator's line, to stand before its name."""
    return _drawn(f"line c{slot}", "M1 5H25")


def _drawn(kind: str, path: str) -> str:
    box = 'class="swatch" viewBox="0 0 26 10" aria-hidden="true"'
    return f'<svg {box}><path class="{kind}" d="{path}"/></svg>'


def chart_facts(runs: Sequence[Run], slots: Mapping[str, int]) -> dict[str, Any]:
    """Return what the script needs to know of a chart beside its columns."""
    # Requests that failed are not live: the run that served most shows what the program wanted.
    wanted = max(range(len(runs)), key=lambda index: runs[index].peak_live_bytes)
    return {
        "events": max(1, *(run.events for run in runs)),
        "peak": runs[wanted].peak_live_bytes,
        "wanted": wanted,
        "series": [
            {"name": printable(run.allocator), "slot": slots[run.allocator], "peak": run.peak_live_bytes}
            for run in runs
        ],
    }


def chart_columns(runs: Sequence[Run], number: int) -> dict[str, NDArray[np.int64]]:
    """Return the timelines of the runs of a chart, in columns: last event, most live, most reserved."""
    return {
        f"{number}.{index}.{name}": np.array(column, np.int64)
        for index, run in enumerate(runs)
        for name, column in zip(
            ("end", "live", "reserved"), zip(*run.timeline, strict=True) if run.timeline else ((), (), ()),
            strict=True,
        )
    }  # fmt: skip
