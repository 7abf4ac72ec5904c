"""Frames of a pool (`smartpool.live.view`) drawn in a terminal with `rich`.

The memory map is drawn in half blocks: a character shows two cells, one above the other, each in the
color of what fills it. Without colors the letters of `_SHADES` say how full a cell is.

Where the screen is narrow, what stands side by side goes below one another, and a table loses a column
before it loses a digit. What comes from a frame may be anybody's: it is shown as text, never read as markup.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from smartpool.drawing.assets import palette, tier_color
from smartpool.report.table import fit, natural_width
from smartpool.report.text import counted, printable
from smartpool.units import format_size

if TYPE_CHECKING:  # rich is an extra
    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = ["MAP_LINES", "TerminalView"]

MAP_LINES: Final = 8
_HISTORY: Final = 240
_SHADES: Final = " .:-=+*#%@"
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH: Final = 30
_HOLDERS: Final = 5
_BETWEEN: Final = 4
_LONGEST_NAME: Final = 60
_SHORTEST_NAME: Final = 8


class TerminalView:
    """Remembers a few minutes of frames and draws the last.

    Parameters
    ----------
    console
        Where it will be drawn: its width and colors count.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._history: deque[tuple[float, int, int, dict[str, int]]] = deque(maxlen=_HISTORY)

    @property
    def columns(self) -> int:
        """Cells in a row of the memory map."""
        return max(16, self._console.width - 4)

    @property
    def cells(self) -> int:
        """Cells to ask for."""
        return self.columns * (2 * MAP_LINES if self._colored else MAP_LINES)

    @property
    def _colored(self) -> bool:
        return self._console.color_system is not None and not self._console.no_color

    def take(self, frame: Mapping[str, Any]) -> RenderableType:
        """Take a frame in, and return what to show."""
        from rich.console import Group  # noqa: PLC0415  an extra

        figures, cells = frame["figures"], frame["map"]
        self._history.append(
            (frame["time"], figures["live_bytes"], figures["reserved_bytes"], figures["counters"])
        )
        title = frame["devices"][frame["device"]] + (", closed" if frame["closed"] else "")
        mapped = f"{format_size(cells['extent_bytes'])} mapped in {counted(cells['chunks'], 'chunk')}"
        return Group(
            self._panel(self._figures(frame), f"SmartPool on {title}"),
            self._panel(self._map(cells), mapped),
            *self._tables(frame),
        )

    def _panel(self, content: RenderableType, title: str) -> RenderableType:
        from rich.panel import Panel  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        return Panel(content, title=Text(printable(title)), title_align="left", border_style="dim")

    # ------------------------------------------------------------------ figures

    def _figures(self, frame: Mapping[str, Any]) -> RenderableType:
        """Return four groups of three lines: side by side, in pairs, or one below the other, as they fit."""
        from rich.table import Table  # noqa: PLC0415

        f = frame["figures"]
        parts = f["fragmentation"]
        shares = [parts[name] for name in ("interval_graph", "pool", "gpu")]
        used = 1 - f["device_free_bytes"] / f["device_total_bytes"]
        groups = (
            (
                f"[b]live[/] {format_size(f['live_bytes'])}",
                f"[dim]peak {format_size(f['peak_live_bytes'])}[/]",
                f"[dim]{self._rate('searches')} searches/s[/]",
            ),
            (
                f"[b]reserved[/] {format_size(f['reserved_bytes'])}",
                f"[dim]peak {format_size(f['peak_reserved_bytes'])}[/]",
                f"[dim]{self._rate('driver_calls')} driver calls/s[/]",
            ),
            (
                f"[b]fragmentation[/] {parts['overall']:.2%}",
                f"[dim]graph {shares[0]:.1%}  pool {shares[1]:.1%}  GPU {shares[2]:.1%}[/]",
                f"[dim]{self._rate('step_hits')} planned/s[/]",
            ),
            (
                f"[b]device[/] {used:.1%} of {format_size(f['device_total_bytes'])}",
                f"[dim]largest free {format_size(f['largest_free_bytes'])}[/]",
                f"[cyan]{self._sparks(_SPARK_WIDTH)}[/] [dim]live[/]",
            ),
        )
        for beside in (4, 2, 1):
            grid = Table.grid(padding=(0, 3))
            for _ in range(beside):
                grid.add_column(no_wrap=beside > 1)
            for first in range(0, len(groups), beside):
                for line in zip(*groups[first : first + beside], strict=True):
                    grid.add_row(*line)
            if natural_width(grid, self._console) <= self.columns:
                break
        return grid

    def _rate(self, name: str) -> str:
        if len(self._history) < 2:
            return "-"
        (then, _, _, before), (now, _, _, after) = self._history[-2], self._history[-1]
        return f"{max(0.0, (after[name] - before[name]) / max(now - then, 1e-9)):,.0f}"

    def _sparks(self, width: int) -> str:
        values = [live for _, live, _, _ in self._history][-width:]
        most = max(values, default=0) or 1
        return "".join(_SPARKS[min(7, 8 * value // most)] for value in values).rjust(width)

    # ------------------------------------------------------------------ the map

    def _map(self, cells: Mapping[str, Any]) -> RenderableType:
        from rich.style import Style  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        columns = self.columns
        parts = {name: base64.b64decode(cells[name]) for name in ("tier", "live", "cached", "planned")}
        count = len(parts["tier"])
        text = Text(no_wrap=True)
        if not self._colored:
            for start in range(0, count, columns):
                live = parts["live"][start : start + columns]
                text.append("".join(_SHADES[min(9, value * 10 // 256)] for value in live) + "\n")
            text.rstrip()
            return text
        styles: dict[tuple[str, str], Style] = {}
        for start in range(0, count, 2 * columns):
            for cell in range(start, min(start + columns, count)):
                above, below = _color(parts, cell), _color(parts, min(cell + columns, count - 1))
                style = styles.get((above, below))
                if style is None:
                    style = styles[above, below] = Style(color=above, bgcolor=below)
                text.append("▀", style)
            text.append("\n")
        text.rstrip()
        return text

    # ------------------------------------------------------------------ tables

    def _tables(self, frame: Mapping[str, Any]) -> Iterator[RenderableType]:
        from rich.columns import Columns  # noqa: PLC0415

        tables = [self._tiers(frame), self._holders(frame)]
        yield ""
        if sum(natural_width(table, self._console) for table in tables) + _BETWEEN <= self._console.width:
            yield Columns(tables, padding=(0, _BETWEEN))
            return
        fit(tables[0], self._console, spare=("live blocks", "cached"))
        fit(tables[1], self._console, spare=("blocks",))
        over = natural_width(tables[1], self._console) - self._console.width
        if over > 0:  # names may be of any length
            tables[1] = self._holders(frame, shorter=over)
            fit(tables[1], self._console, spare=("blocks",))
        yield from (tables[0], "", tables[1])

    def _tiers(self, frame: Mapping[str, Any]) -> Table:
        from rich.text import Text  # noqa: PLC0415

        table = _new_table("tier", "live blocks", "live", "cached")
        for number, tier in enumerate(frame["tiers"]):
            mark = Text("■ ", style=_hex(palette(dark=True)[tier_color(number)]))
            table.add_row(
                mark.append(printable(tier["name"]), style="default"),
                f"{tier['live_blocks']:,}",
                format_size(tier["live_bytes"]),
                format_size(tier["cached_bytes"]),
            )
        return table

    def _holders(self, frame: Mapping[str, Any], shorter: int = 0) -> Table:
        from rich.text import Text  # noqa: PLC0415

        table = _new_table("largest holders", "blocks", "bytes")
        holders = frame["holders"][:_HOLDERS]
        labels = [Text(printable(held["label"])) for held in holders]
        longest = min(_LONGEST_NAME, max((label.cell_len for label in labels), default=0))
        for label, held in zip(labels, holders, strict=True):
            label.truncate(max(_SHORTEST_NAME, longest - shorter), overflow="ellipsis")
            table.add_row(label, f"{held['blocks']:,}", format_size(held["bytes"]))
        return table


def _new_table(first: str, *figures: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, header_style="dim", padding=(0, 2), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in figures:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _color(parts: Mapping[str, bytes], cell: int) -> str:
    """Return the color of a cell: shares of its tier's, paler where cached, and of the gap's."""
    colors = palette(dark=True)
    names = (tier_color(parts["tier"][cell]), "s-free", "planned")
    live, cached, planned = (parts[name][cell] / 255 for name in ("live", "cached", "planned"))
    gap = max(0.0, 1 - live - cached - planned)
    mixed = (
        live * t + cached * (0.38 * t + 0.62 * g) + planned * p + gap * g
        for t, g, p in zip(*(colors[name] for name in names), strict=True)
    )
    return _hex(tuple(min(255, round(channel / 8) * 8) for channel in mixed))  # few styles, not millions


def _hex(color: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in color)
