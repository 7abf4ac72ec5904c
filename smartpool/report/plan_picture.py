"""A plan as one SVG that opens anywhere: time runs across, addresses upward, every interval a rectangle.

A picture has some hundred thousand pixels and a plan may have a million intervals. So the largest
rectangles are drawn one by one, with a title that tells what they are, and the rest as a gray shape
of what they cover, at the resolution of the picture. Size of the file: at most about a megabyte.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from smartpool.drawing.raster import touched
from smartpool.drawing.ticks import byte_ticks
from smartpool.planner.intervals import IntervalSet
from smartpool.planner.pieces import Pieces
from smartpool.planner.plans import Plan
from smartpool.report.page import escaped
from smartpool.report.text import counted
from smartpool.units import format_size

__all__ = ["plan_picture"]

WIDTH: Final = 960
HEIGHT: Final = 560
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 56, 44

LINE: Final = 'fill="none" stroke="#000" stroke-width="1.2"'

DRAWN: Final = 4000
"""Rectangles that are drawn one by one."""

CELL: Final = 1.0
"""Pixels of the grid in which the rest is drawn."""

PALETTE: Final = (
    "#4477aa",
    "#66ccee",
    "#228833",
    "#bbcc33",
    "#eedd88",
    "#ee8866",
    "#ffaabb",
    "#aa3377",
    "#88aadd",
    "#77bb99",
)
"""After Paul Tol's schemes, which readers with any color vision can tell apart."""

Int64s = NDArray[np.int64]


def plan_picture(intervals: IntervalSet, plan: Plan, *, title: str = "", capacity: int | None = None) -> str:
    """Return the picture of a plan as SVG.

    Parameters
    ----------
    intervals
        What was planned.
    plan
        Where it lies.
    title
        A heading; the figures follow it.
    capacity
        Bytes at hand, drawn as a line.

    Examples
    --------
    >>> from smartpool.planner import plan
    >>> intervals = IntervalSet.from_arrays([0, 2, 4], [3, 6, 8], [10, 20, 10])
    >>> picture = plan_picture(intervals, plan(intervals), title="three")
    >>> picture.startswith("<svg"), picture.count("<title>")
    (True, 3)
    """
    frame = _Frame(intervals, plan, capacity)
    held = intervals.pieces()
    x, y, width, height = frame.rectangles(held, plan.offsets)
    real = np.flatnonzero((width > 0) & (height > 0))
    by_area = real[np.argsort(-(width * height)[real], kind="stable")]
    drawn, rest = by_area[:DRAWN], by_area[DRAWN:]
    color = _colors(intervals.size)[held.row]
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12" fill="#333">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _heading(title, intervals, plan),
        frame.axes(),
        f'<path d="{_cover(x[rest], y[rest], width[rest], height[rest])}" fill="#bbb"/>' if len(rest) else "",
        '<g stroke="#fff" stroke-width="0.4">',
    ]
    for piece in drawn.tolist():
        row = held.row[piece]
        about = (
            f"{intervals.id[row]}: {format_size(int(intervals.size[row]))} at {int(plan.offsets[row])}, "
            f"live [{int(intervals.start[row])}, {int(intervals.end[row])})"
        )
        parts.append(
            f'<rect x="{x[piece]:.2f}" y="{y[piece]:.2f}" width="{max(width[piece], 0.5):.2f}" '
            f'height="{max(height[piece], 0.5):.2f}" fill="{PALETTE[color[piece]]}">'
            f"<title>{escaped(about)}</title></rect>"
        )
    parts += ["</g>", frame.lines(intervals, plan, capacity), "</svg>"]
    return "\n".join(part for part in parts if part) + "\n"


class _Frame:
    """Scales: which time and which address stand where."""

    def __init__(self, intervals: IntervalSet, plan: Plan, capacity: int | None) -> None:
        self.begin = int(intervals.start.min(initial=np.iinfo(np.int64).max)) if len(intervals) else 0
        self.span = max(1, int(intervals.end.max(initial=0)) - self.begin) if len(intervals) else 1
        self.bytes = max(1, plan.height, capacity or 0)
        self.width, self.height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(self, time: Int64s) -> NDArray[np.float64]:
        """Return where times stand."""
        return LEFT + (time.astype(np.float64) - self.begin) * (self.width / self.span)

    def y(self, address: Int64s) -> NDArray[np.float64]:
        """Return where addresses stand."""
        return TOP + self.height - address.astype(np.float64) * (self.height / self.bytes)

    def rectangles(
        self, held: Pieces, offsets: Int64s
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return left, upper edge, width and height of every piece's rectangle."""
        base = offsets[held.row]
        x, y = self.x(held.start), self.y(base + held.high)
        return x, y, self.x(held.end) - x, self.y(base + held.low) - y

    def axes(self) -> str:
        """Return the frame, round addresses, and the first and last time."""
        size = f'width="{self.width}" height="{self.height}"'
        lines = [f'<rect x="{LEFT}" y="{TOP}" {size} fill="none" stroke="#ddd"/>']
        for nbytes, label in byte_ticks(self.bytes):
            if nbytes > self.bytes:
                break
            y = TOP + self.height * (1 - nbytes / self.bytes)
            lines.append(f'<line x1="{LEFT - 4}" x2="{LEFT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#999"/>')
            lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        base = HEIGHT - BOTTOM + 18
        lines.append(f'<text x="{LEFT}" y="{base}">{self.begin:,}</text>')
        lines.append(
            f'<text x="{WIDTH - RIGHT}" y="{base}" text-anchor="end">{self.begin + self.span:,}</text>'
        )
        lines.append(f'<text x="{LEFT + self.width / 2}" y="{base}" text-anchor="middle">time</text>')
        return "\n".join(lines)

    def lines(self, intervals: IntervalSet, plan: Plan, capacity: int | None) -> str:
        """Return the load over time, and the capacity."""
        times, load = intervals.load_over_time()
        if not len(load):
            return ""
        column = np.clip((self.x(times[:-1]) - LEFT).astype(np.int64), 0, self.width - 1)
        # The highest load of each column of pixels; columns without a cut keep the load before them.
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        highest = np.maximum(np.maximum.reduceat(load, starts), np.append(0, load[starts[1:] - 1]))
        steps = "".join(
            f"H{LEFT + at}V{level:.1f}"
            for at, level in zip(column[starts].tolist(), self.y(highest).tolist(), strict=True)
        )
        drawn = [f'<path d="M{LEFT} {TOP + self.height}{steps}H{WIDTH - RIGHT}" {LINE}/>']
        if capacity is not None:
            y = float(self.y(np.array(capacity)))
            color = "#228833" if plan.height <= capacity else "#cc3311"
            drawn.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}" '
                'stroke-width="1.5" stroke-dasharray="6 4"/>'
            )
        return "\n".join(drawn)


def _heading(title: str, intervals: IntervalSet, plan: Plan) -> str:
    figures = (
        f"{counted(len(intervals), 'interval')}, height {format_size(plan.height)}, "
        f"load {format_size(plan.load)} (black line), {plan.gap:.3%} above it, by {plan.method}"
    )
    return (
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold">{escaped(title)}</text>'
        f'<text x="{LEFT}" y="42" fill="#666">{escaped(figures)}</text>'
    )


def _colors(size: Int64s) -> Int64s:
    """Return a color number for each interval: equal sizes alike, neighbors in size apart."""
    _, rank = np.unique(size, return_inverse=True)
    result: Int64s = rank.reshape(-1) * 7 % len(PALETTE)
    return result


def _cover(
    x: NDArray[np.float64], y: NDArray[np.float64], width: NDArray[np.float64], height: NDArray[np.float64]
) -> str:
    """Return the path of the cells of a grid that many small rectangles touch."""
    edges_of = x / CELL, y / CELL, (x + width) / CELL, (y + height) / CELL
    covered = touched(*edges_of, columns=int(WIDTH / CELL) + 2, rows=int(HEIGHT / CELL) + 2)
    edges = np.diff(covered.astype(np.int8), axis=1, prepend=0)
    pieces = []
    for column in np.flatnonzero(covered.any(axis=1)).tolist():
        begins, ends = np.flatnonzero(edges[column] == 1), np.flatnonzero(edges[column] == -1)
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            pieces.append(f"M{column * CELL:g} {begin * CELL:g}h{CELL:g}v{(end - begin) * CELL:g}h-{CELL:g}z")
    return "".join(pieces)
