"""The charts of one trace: all allocators in one, and a small panel for each.

Drawn as SVG, so that the page shows them without a script; the script adds the values under the
pointer. A line is at most a thousand strokes, however long the trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from smartpool.drawing.envelope import Envelope, envelope
from smartpool.drawing.ticks import byte_ticks, count_ticks
from smartpool.report.page import data_block
from smartpool.report.svg import (
    Plot,
    area_path,
    escaped,
    line_path,
    shortened,
    spread,
)
from smartpool.report.text import format_count, format_share, printable
from smartpool.trace.replay import Run

__all__ = ["chart", "panels", "swatch"]

WIDTH: Final = 1120
HEIGHT: Final = 430
LEFT: Final = 76
RIGHT: Final = 214  # for the labels at the ends of the lines
TOP: Final = 14
BOTTOM: Final = 46
LABEL_GAP: Final = 18
LABEL_LENGTH: Final = 20

PANEL_WIDTH: Final = 352
PANEL_HEIGHT: Final = 132


@dataclass(frozen=True, slots=True, eq=False)
class _Series:
    """One run at the resolution of a chart."""

    run: Run
    slot: int
    live: Envelope
    reserved: Envelope


def chart(runs: Sequence[Run], slots: Mapping[str, int]) -> str:
    """Return one chart of all `runs`, which are of one trace, with a legend and the data for the script.

    Parameters
    ----------
    runs
        At least one.
    slots
        The number of each allocator's colour in the page's style.
    """
    events, ticks = _events(runs), byte_ticks(_most_bytes(runs))
    plot = Plot(
        left=LEFT, top=TOP, width=WIDTH - LEFT - RIGHT, height=HEIGHT - TOP - BOTTOM, top_bytes=ticks[-1][0]
    )
    series = [_reduced(run, slots, events, round(plot.width)) for run in runs]
    # Requests that failed are not live: the run that served most shows what the program wanted.
    most = max(series, key=lambda one: one.run.peak_live_bytes)
    live, peak_bytes = most.live, most.run.peak_live_bytes
    peak_y = f"{plot.y(peak_bytes):.1f}"
    lines = [
        (
            one.slot == 0,  # ours is drawn last, on top
            f'<path class="line c{one.slot}" data-series="{number}" d="{line_path(one.reserved, plot)}"/>',
        )
        for number, one in enumerate(series)
    ]
    drawing = "".join(
        [
            _grid(plot, ticks, events),
            f'<path class="live" d="{area_path(live, plot)}"/>',
            f'<path class="peak" d="M{plot.left} {peak_y}H{plot.right}"/>',
            *(line for _, line in sorted(lines)),
            _labels(series, plot),
            f'<line class="cross" x1="0" x2="0" y1="{plot.top}" y2="{plot.bottom}" visibility="hidden"/>',
        ]
    )
    data = {
        "events": events,
        "plot": [plot.left, plot.width, WIDTH],
        "peak_live": peak_bytes,
        "live": live.high.tolist(),
        "series": [
            {
                "name": printable(one.run.allocator),
                "slot": one.slot,
                "reserved": one.reserved.high.tolist(),
            }
            for one in series
        ],
    }
    summary = f"Live memory and the memory that {len(runs)} allocators reserved for it, over {events} events"
    return (
        f'<figure class="chart">{_legend(series)}<div class="scroll"><div class="plot">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{summary}">{drawing}</svg>'
        f'<div class="tip" role="status" hidden></div></div></div>{data_block(data)}</figure>'
    )


def panels(runs: Sequence[Run], slots: Mapping[str, int]) -> str:
    """Return a small chart a run, all with one scale, what is reserved and not live shaded."""
    events, most = _events(runs), _most_bytes(runs)
    plot = Plot(left=0, top=4, width=PANEL_WIDTH, height=PANEL_HEIGHT - 5, top_bytes=most)
    figures = []
    for run in runs:
        one = _reduced(run, slots, events, PANEL_WIDTH)
        name = escaped(run.allocator)
        share = format_share(run.fragmentation)
        figures.append(
            f'<figure class="panel"><figcaption><span class="name" title="{name}">{swatch(one.slot)}'
            f"{name}</span><b>{share}</b></figcaption>"
            f'<svg viewBox="0 0 {PANEL_WIDTH} {PANEL_HEIGHT}" role="img" '
            f'aria-label="{name}: fragmentation {share}">'
            f'<path class="waste c{one.slot}" d="{area_path(one.reserved, plot)}"/>'
            f'<path class="live" d="{area_path(one.live, plot)}"/>'
            f'<path class="line solid c{one.slot}" d="{line_path(one.reserved, plot)}"/>'
            f'<path class="peak" d="M0 {plot.y(run.peak_live_bytes):.1f}H{plot.right}"/>'
            f'<path class="axis" d="M0 {plot.bottom}H{plot.right}"/></svg></figure>'
        )
    columns = len(runs) if len(runs) <= 5 else 3 if len(runs) in (6, 9) else 4
    return f'<div class="panels" style="--columns:{columns}">{"".join(figures)}</div>'


def swatch(slot: int) -> str:
    """Return a short piece of an allocator's line, to stand before its name."""
    return (
        f'<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true"><path class="line c{slot}" d="M1 5H25"/>'
        "</svg>"
    )


# ---------------------------------------------------------------------- parts of the chart


def _legend(series: Sequence[_Series]) -> str:
    """Return the legend: a button for each line, which hides and shows it once the script is there."""
    keys = [
        f'<button type="button" disabled class="key" aria-pressed="true" data-series="{number}">'
        f"{swatch(one.slot)}{escaped(one.run.allocator)}</button>"
        for number, one in enumerate(series)
    ]
    return (
        '<figcaption class="legend"><span class="key"><svg class="swatch" viewBox="0 0 26 10" '
        'aria-hidden="true"><path class="live" d="M1 1H25V9H1Z"/></svg>live, as requested</span>'
        '<span class="key"><svg class="swatch" viewBox="0 0 26 10" aria-hidden="true">'
        '<path class="peak" d="M1 5H25"/></svg>peak live</span>'
        f"{''.join(keys)}</figcaption>"
    )


def _grid(plot: Plot, ticks: Sequence[tuple[int, str]], events: int) -> str:
    parts = []
    for nbytes, label in ticks:
        y = f"{plot.y(nbytes):.1f}"
        parts.append(f'<path class="{"axis" if nbytes == 0 else "grid"}" d="M{plot.left} {y}H{plot.right}"/>')
        parts.append(_tick(label, x=plot.left - 10, y=y, anchor="end", dy=4))
    for event in count_ticks(events):
        x = f"{plot.left + plot.width * event / events:.1f}"
        parts.append(f'<path class="axis" d="M{x} {plot.bottom}v5"/>')
        parts.append(_tick(format_count(event), x=x, y=plot.bottom + 20))
    parts.append(_tick("event", x=plot.left + plot.width / 2, y=plot.bottom + 40))
    return "".join(parts)


def _tick(label: str, *, x: object, y: object, anchor: str = "middle", dy: int = 0) -> str:
    return f'<text class="tick" text-anchor="{anchor}" x="{x}" y="{y}" dy="{dy}">{label}</text>'


def _labels(series: Sequence[_Series], plot: Plot) -> str:
    """Return the names at the ends of the lines, moved apart where the lines end close together."""
    ends = [plot.y(int(one.reserved.last[-1])) for one in series]
    places = spread(ends, gap=LABEL_GAP, low=plot.top + 6, high=plot.bottom - 4)
    parts = []
    for number, (one, end, place) in enumerate(zip(series, ends, places, strict=True)):
        name = escaped(shortened(printable(one.run.allocator), LABEL_LENGTH))
        x = plot.right
        parts.append(
            f'<g class="label" data-series="{number}">'
            f'<path class="line leader c{one.slot}" d="M{x} {end:.1f}L{x + 16} {place:.1f}"/>'
            f'<text class="share" text-anchor="end" x="{x + 66}" y="{place:.1f}" dy="4">'
            f"{format_share(one.run.fragmentation)}</text>"
            f'<text x="{x + 74}" y="{place:.1f}" dy="4">{name}</text></g>'
        )
    return "".join(parts)


# ---------------------------------------------------------------------- data


def _reduced(run: Run, slots: Mapping[str, int], events: int, columns: int) -> _Series:
    """Return the run at the resolution of the chart. A point of the timeline covers what leads up to it."""
    starts = [0, *(point.event + 1 for point in run.timeline[:-1])][: len(run.timeline)]
    live = [point.live_bytes for point in run.timeline]
    reserved = [point.reserved_bytes for point in run.timeline]
    return _Series(
        run,
        slots[run.allocator],
        envelope(starts, live, events=events, columns=columns),
        envelope(starts, reserved, events=events, columns=columns),
    )


def _events(runs: Sequence[Run]) -> int:
    return max(1, *(run.events for run in runs))


def _most_bytes(runs: Sequence[Run]) -> int:
    points = (max(point.live_bytes, point.reserved_bytes) for run in runs for point in run.timeline)
    return max(1, max(points, default=1))
