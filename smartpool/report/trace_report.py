"""The report of one trace: a page that answers who held the memory, and what each allocator made of it.

The page is drawn by its script from the columns that it carries (`packing`), at whatever resolution the
screen has; what a reader needs in words and figures is there as text and tables, without the script too.
`trace.html` has what is the same on every page.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Template
from typing import Final

import numpy as np
from numpy.typing import NDArray

from smartpool._version import __version__
from smartpool.drawing.assets import asset
from smartpool.report.analysis import Analysis, title_of
from smartpool.report.chart import swatch
from smartpool.report.comparison import COLUMNS, FRAGMENTATION, PEAK_LIVE, best_of
from smartpool.report.packing import packed
from smartpool.report.page import NO_SCRIPT, data_block, escaped, html_page, text_block
from smartpool.report.text import counted, format_count, format_duration, format_share
from smartpool.report.trace_data import about, columns_of, slot_of, tag_of
from smartpool.tiers import LARGEST, Tier
from smartpool.trace.layouts import RECORDED, Layout
from smartpool.trace.optimum import OPTIMUM
from smartpool.trace.trace import Trace
from smartpool.units import format_bytes

__all__ = ["trace_report"]

STYLES: Final = ("tokens.css", "base.css", "report.css")
SCRIPTS: Final = (
    "format.js", "columns.js", "series.js", "raster.js", "data.js", "kit.js", "view.js", "curves.js",
    "overview.js", "timeline.js", "maps.js", "moment.js", "report.js",
)  # fmt: skip
_SAMPLES: Final = 24


def trace_report(found: Analysis, *, title: str | None = None) -> str:
    """Return the report of a trace as the text of an HTML page.

    Parameters
    ----------
    found
        The trace, and what allocators did with it.
    title
        The heading; None for the trace's name.
    """
    trace = found.trace
    heading = trace.name if title is None else title
    directory, columns = packed(columns_of(found))
    plan = next(layout for layout in found.layouts if layout.allocator == OPTIMUM)
    gap = 1 - trace.peak_live_bytes / plan.span_bytes if plan.span_bytes else 0.0
    heads, rows = _table(found)
    body = Template(asset("trace.html", __package__)).substitute(
        heading=escaped(heading),
        lead=_lead(found),
        cards=_cards(found),
        no_script=NO_SCRIPT,
        keys=_keys(found),
        time_groups=_options(_groups(found)),
        samples=_samples(found),
        map_groups=_options(_map_groups(found)),
        maps=_maps(found),
        peak_text=_peak_text(trace),
        moment_groups=_options(_moment_groups(found)),
        peak_rows=_peak_rows(trace),
        plan_bytes=format_bytes(plan.span_bytes),
        plan_gap=format_share(max(0.0, gap)),
        table_heads=heads,
        table_rows=rows,
        fragmentation=escaped(FRAGMENTATION.title),
        meaning=escaped(FRAGMENTATION.meaning),
        version=escaped(__version__),
        about=data_block({**about(found), "columns": directory}, name="about"),
        columns=text_block(columns, kind="application/octet-stream", name="columns"),
    )
    return html_page(heading, body, styles=STYLES, scripts=SCRIPTS)


def _lead(found: Analysis) -> str:
    trace = found.trace
    seconds = int(trace.t_us[-1]) / 1e6 if trace.events else 0.0
    recorder = trace.meta.get("recorder")
    by = f", recorded by {escaped(recorder)}" if isinstance(recorder, str) else ""
    return (
        f"{counted(trace.events, 'event')}, {counted(trace.allocations, 'allocation')} on "
        f"{counted(trace.streams, 'stream')} in {format_duration(seconds)}{by}; replayed on "
        f"{escaped(found.device)}."
    )


def _cards(found: Analysis) -> str:
    cards = [("peak live", format_bytes(found.trace.peak_live_bytes), "", "")]
    for run, layout in zip(found.runs, found.layouts, strict=False):
        note = f"{format_share(run.fragmentation)} fragmentation"
        kind = ' class="ours"' if slot_of(found, layout) == 0 else ""
        cards.append(
            (f"{escaped(title_of(layout))} reserved", format_bytes(run.peak_reserved_bytes), note, kind)
        )
    return "".join(
        f"<li{kind}><span>{name}</span><b>{value}</b><span>{note or '&nbsp;'}</span></li>"
        for name, value, note, kind in cards[:4]
    )


def _keys(found: Analysis) -> str:
    """Return a button for each allocator that was replayed, which shows and hides its lines."""
    return "".join(
        f'<button type="button" class="key" aria-pressed="true" data-name="{index}">'
        f"{_pen(found, layout)}{escaped(title_of(layout))}</button>"
        for index, layout in enumerate(found.layouts)
        if slot_of(found, layout) is not None
    )


def _pen(found: Analysis, layout: Layout) -> str:
    slot = slot_of(found, layout)
    return "" if slot is None else swatch(slot)


def _options(values: Sequence[tuple[str, str]]) -> str:
    return "".join(f'<option value="{value}">{escaped(text)}</option>' for value, text in values)


def _groups(found: Analysis) -> list[tuple[str, str]]:
    """Return the ways to tell allocations apart that this trace knows."""
    groups = [("tier", "tier"), ("size", "size")]
    if found.trace.streams > 1:
        groups.append(("stream", "stream"))
    if found.trace.sites:
        groups.append(("site", "place in the program"))
    if any(map(tag_of, found.trace.sites)):
        groups.append(("tag", "tag"))
    return groups


def _maps(found: Analysis) -> str:
    names = [layout.allocator for layout in found.layouts]
    first = names.index(RECORDED) if RECORDED in names else 0
    figures = []
    for index, chosen in enumerate((first, names.index(OPTIMUM))):
        options = "".join(
            f'<option value="{number}"{" selected" if number == chosen else ""}>{escaped(title_of(layout))}'
            "</option>"
            for number, layout in enumerate(found.layouts)
        )
        figures.append(
            f'<figure><figcaption><label>layout <select aria-label="layout of map {index + 1}">{options}'
            '</select></label><span>highest address <b class="height"></b></span></figcaption></figure>'
        )
    return "".join(figures)


def _map_groups(found: Analysis) -> list[tuple[str, str]]:
    """Return the same for maps: tags first, where there are any, and otherwise sizes."""
    tier, size, *others = _groups(found)
    tags = [group for group in others if group[0] == "tag"]
    return [*tags, size, tier, *(group for group in others if group not in tags)]


def _moment_groups(found: Analysis) -> list[tuple[str, str]]:
    """Return the same for the table of a moment, with the age: tags and places first."""
    groups = [*_map_groups(found), ("age", "age")]
    return sorted(
        groups, key=lambda group: ("tag", "site").index(group[0]) if group[0] in ("tag", "site") else 2
    )


def _peak_numbers(trace: Trace) -> NDArray[np.int64]:
    """Return the numbers of the allocations that are live at the peak."""
    if not trace.events:
        return np.zeros(0, np.int64)
    peak = int(np.argmax(trace.live_bytes()))
    lifetimes = trace.lifetimes()
    return np.flatnonzero((lifetimes.start <= peak) & (lifetimes.end > peak))


def _peak_text(trace: Trace) -> str:
    blocks = counted(len(_peak_numbers(trace)), "block")
    return f"{format_bytes(trace.peak_live_bytes)} live in {blocks}, the most of the run."


def _peak_rows(trace: Trace) -> str:
    """Return the tiers at the peak: what the table shows until its script fills it."""
    sizes = trace.lifetimes().size[_peak_numbers(trace)]
    tiers = np.searchsorted(LARGEST, sizes)
    rows = []
    for number, tier in enumerate(Tier):
        chosen = sizes[tiers == number]
        share = format_share(int(chosen.sum()) / max(1, trace.peak_live_bytes))
        rows.append(
            f'<tr><th scope="row">{tier.title}</th><td>{format_count(len(chosen))}</td>'
            f"<td>{format_bytes(int(chosen.sum()))}</td><td>{share}</td><td></td></tr>"
        )
    return "".join(rows)


def _table(found: Analysis) -> tuple[str, str]:
    """Return the heads and the rows of the table of allocators."""
    runs = found.runs
    most = max((run.peak_reserved_bytes for run in runs), default=1) or 1
    columns = [column for column in COLUMNS if column is not PEAK_LIVE and column.title != "us/op"]
    best = {column.title: best_of(runs, column) for column in columns}
    heads = "".join(
        f'<th scope="col" title="{escaped(column.meaning)}">{escaped(column.title)}</th>'
        for column in columns
    )
    rows = []
    for run, layout in zip(runs, found.layouts, strict=False):
        cells = []
        for column in columns:
            text = column.text(column.value(run))
            marked = "failed" if run.failed_requests else "best" if text == best[column.title] else ""
            cells.append(f'<td class="{marked}">{text}</td>')
        calls = format_count(sum(run.driver_calls.values()))
        live, reserved = run.peak_live_bytes / most, run.peak_reserved_bytes / most
        slot = slot_of(found, layout)
        meter = (
            f'<td class="meter" style="--color:var(--c{slot})"><div>'
            f'<i style="width:{live:.2%}"></i><i style="width:{reserved - live:.2%}"></i></div></td>'
        )
        ours = ' class="ours"' if slot == 0 else ""
        name = f"{_pen(found, layout)}{escaped(title_of(layout))}"
        rows.append(f'<tr{ours}><th scope="row">{name}</th>{meter}{"".join(cells)}<td>{calls}</td></tr>')
    return heads, "".join(rows)


def _samples(found: Analysis) -> str:
    """Return memory over time as a table: what the picture shows, for those who cannot see it."""
    trace = found.trace
    if not trace.events:
        return ""
    live = trace.live_bytes()
    starts = np.unique(np.linspace(0, trace.events, _SAMPLES + 1, dtype=np.int64)[:-1])
    ends = np.append(starts[1:], trace.events)
    peaks = [int(start + np.argmax(live[start:end])) for start, end in zip(starts, ends, strict=True)]
    replayed = found.layouts[: len(found.runs)]
    heads = "".join(f'<th scope="col">{escaped(title_of(layout))}</th>' for layout in replayed)
    rows = "".join(
        f'<tr><th scope="row">{format_count(int(start))} to {format_count(int(end))}</th>'
        f"<td>{format_bytes(int(live[peak]))}</td>"
        f"{''.join(f'<td>{format_bytes(_reserved_at(layout, peak))}</td>' for layout in replayed)}</tr>"
        for start, end, peak in zip(starts, ends, peaks, strict=True)
    )
    return (
        '<details><summary>The same as a table</summary><p class="hint">The highest moment of each stretch '
        'of events.</p><div class="scroll"><table><thead><tr><th scope="col">events</th>'
        f'<th scope="col">live</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _reserved_at(layout: Layout, event: int) -> int:
    index = int(np.searchsorted(layout.change, event, side="right")) - 1
    return int(layout.reserved[index]) if index >= 0 else 0
