"""Memory over time, allocators against one another, as one page to show and to keep.

For each trace: one chart in which every allocator's reserved memory is a line above the program's
live memory, a small panel an allocator in which memory held for nothing is a shaded area, and the
figures in a table. The lines differ in color, dash and label, so that nobody needs the color, and
every value can be read with the pointer or the arrow keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smartpool._version import __version__
from smartpool.report.chart import chart, chart_columns, chart_facts, panels, slots_of, swatch
from smartpool.report.comparison import COLUMNS, FRAGMENTATION, Column, Comparison, best_of, best_text
from smartpool.report.packing import packed
from smartpool.report.page import NO_SCRIPT, data_block, escaped, html_page, text_block
from smartpool.report.text import counted
from smartpool.trace.replay import Run
from smartpool.units import format_bytes

__all__ = ["picture"]

STYLES: Final = ("tokens.css", "base.css", "page.css")
SCRIPTS: Final = (
    "format.js", "kit.js", "columns.js", "series.js", "view.js", "curves.js", "picture.js",
)  # fmt: skip
_PANELS_TEXT: Final = (
    "Shaded: reserved, and not live. Dashed: the peak of live memory, the least that an allocator can "
    "reserve. All panels have the same scale."
)


def picture(runs: Iterable[Run], *, title: str | None = None) -> str:
    """Return the picture of `runs` as the text of an HTML page."""
    comparison = Comparison(runs)
    heading = title if title is not None else _heading(comparison)
    slots = slots_of(comparison.allocators)
    parts = [f'<header><p class="brand">SmartPool</p><h1>{escaped(heading)}</h1></header>']
    parts.append(f'<main><section class="problem" id="problem" hidden></section>{NO_SCRIPT}')
    if len(comparison.traces) > 1:
        parts.append(_overview(comparison, slots))
    charts: list[dict[str, Any]] = []
    columns: dict[str, NDArray[np.int64]] = {}
    for number, trace in enumerate(comparison.traces):
        runs = comparison.of_trace(trace)
        parts.append(_trace_section(trace, runs, slots, number))
        charts.append(chart_facts(runs, slots))
        columns |= chart_columns(runs, number)
    if not comparison.runs:
        parts.append("<section><p>There are no runs to show.</p></section>")
    directory, text = packed(columns)
    parts += [
        "</main>",
        _footer(),
        data_block({"charts": charts, "columns": directory}, name="about"),
        text_block(text, kind="application/octet-stream", name="columns"),
    ]
    return html_page(heading, "\n".join(parts), styles=STYLES, scripts=SCRIPTS)


def _heading(comparison: Comparison) -> str:
    names = comparison.traces
    return "Memory over time" if len(names) < 2 else f"Memory over time: {len(names)} traces"


# ---------------------------------------------------------------------- sections


def _trace_section(trace: str, runs: Sequence[Run], slots: Mapping[str, int], number: int) -> str:
    parts = [
        f'<section><h2>{escaped(trace)}</h2><p class="lead">{_lead(runs)}</p>',
        chart(runs, slots, number),
        "<h3>Memory held for nothing</h3>",
        f'<p class="lead">{_PANELS_TEXT}</p>',
        panels(runs, slots, number),
        "<h3>Figures</h3>",
        _table(runs, slots),
        "</section>",
    ]
    return "\n".join(parts)


def _lead(runs: Sequence[Run]) -> str:
    """Say in words what the chart shows."""
    first = runs[0]
    devices = " and ".join(dict.fromkeys(escaped(run.device) for run in runs))
    passes = f" in {first.passes} passes" if first.passes > 1 else ""
    text = (
        f"{counted(first.events, 'event')}{passes} on {counted(first.streams, 'stream')}, "
        f"replayed on {devices}. "
        f"At its peak the program held <b>{format_bytes(max(run.peak_live_bytes for run in runs))}</b>"
    )
    served = [run for run in runs if run.failed_requests == 0]
    if len(served) < 2:
        return f"{text}."
    least = min(served, key=lambda run: run.peak_reserved_bytes)
    most = max(served, key=lambda run: run.peak_reserved_bytes)
    return (
        f"{text}. For that, {escaped(least.allocator)} reserved "
        f"<b>{format_bytes(least.peak_reserved_bytes)}</b>, and {escaped(most.allocator)} "
        f"<b>{format_bytes(most.peak_reserved_bytes)}</b>."
    )


def _overview(comparison: Comparison, slots: Mapping[str, int]) -> str:
    """Return the fragmentation of every allocator on every trace, with the means."""
    rows = []
    for trace in comparison.traces:
        best = best_of(comparison.of_trace(trace), FRAGMENTATION)
        runs = [comparison.cell(trace, name) for name in comparison.allocators]
        cells = ["<td></td>" if run is None else _figure(run, FRAGMENTATION, best) for run in runs]
        rows.append(f'<tr><th scope="row">{escaped(trace)}</th>{"".join(cells)}</tr>')
    means = [comparison.mean(name, FRAGMENTATION) for name in comparison.allocators]
    known = [mean for mean in means if mean is not None]
    best = best_text(known, FRAGMENTATION) if len(known) > 1 else None
    texts = ["" if mean is None else FRAGMENTATION.text(mean) for mean in means]
    cells = [f"<td{' class=best' if text and text == best else ''}>{text}</td>" for text in texts]
    rows.append(f'<tr class="mean"><th scope="row">mean</th>{"".join(cells)}</tr>')
    heads = [f'<th scope="col">{swatch(slots[name])}{escaped(name)}</th>' for name in comparison.allocators]
    return (
        '<section><h2>Fragmentation</h2><div class="scroll"><table class="even">'
        f'<thead><tr><th scope="col">trace</th>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _table(runs: Sequence[Run], slots: Mapping[str, int]) -> str:
    """Return the figures of one trace, a row an allocator."""
    best = {column.title: best_of(runs, column) for column in COLUMNS}
    heads = [
        f'<th scope="col" title="{escaped(column.meaning)}">{escaped(column.title)}</th>'
        for column in COLUMNS
    ]
    rows = []
    for run in runs:
        cells = "".join(_figure(run, column, best[column.title]) for column in COLUMNS)
        name = f"{swatch(slots[run.allocator])}{escaped(run.allocator)}"
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">allocator</th>'
        f"{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(run: Run, column: Column, best: str | None) -> str:
    """Return one cell; fragmentation also as a bar behind the figure."""
    value = column.value(run)
    text = column.text(value)
    classes = []
    if run.failed_requests:
        classes.append("failed")
    elif text == best:
        classes.append("best")
    bar = ""
    if column is FRAGMENTATION:
        classes.append("share")
        bar = f' style="--share:{min(max(run.fragmentation or 0.0, 0.0), 1.0) * 100:.2f}%"'
    return f'<td class="{" ".join(classes)}"{bar}>{text}</td>'


def _footer() -> str:
    meanings = "".join(
        f"<dt>{escaped(column.title)}</dt><dd>{escaped(column.meaning)}.</dd>" for column in COLUMNS
    )
    return (
        f"<footer><dl>{meanings}</dl><p>A line shows the most that was reserved, and the area the most that "
        "was live, within each step of the drawing. Allocators other than SmartPool are models of their "
        f"policies. Made by SmartPool {escaped(__version__)}.</p></footer>"
    )
