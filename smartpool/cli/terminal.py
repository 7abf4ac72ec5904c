"""Frames of a pool (`smartpool.live.view`) drawn in a terminal with `rich`.

The memory map is drawn in half blocks: a character shows two cells, one above the other, each in the
colour of what fills it. Without colours the letters of `_SHADES` say how full a cell is.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from smartpool.report.text import printable
from smartpool.units import format_size

if TYPE_CHECKING:  # rich is an extra
    from rich.console import Console, RenderableType

__all__ = ["MAP_LINES", "TerminalView"]

MAP_LINES: Final = 8
_HISTORY: Final = 240
_TIERS: Final = ((226, 189, 74), (47, 211, 192), (122, 167, 255), (199, 155, 245))
_GAP: Final = (48, 56, 68)
_PLANNED: Final = (90, 104, 132)
_SHADES: Final = " .:-=+*#%@"
_SPARKS: Final = "▁▂▃▄▅▆▇█"


class TerminalView:
    """Remembers a few minutes of frames and draws the last.

    Parameters
    ----------
    console
        Where it will be drawn: its width and colours count.
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
        rows = 2 * MAP_LINES if self._console.color_system else MAP_LINES
        return self.columns * rows

    def take(self, frame: Mapping[str, Any]) -> RenderableType:
        """Take a frame in, and return what to show."""
        from rich.console import Group  # noqa: PLC0415  an extra
        from rich.panel import Panel  # noqa: PLC0415

        figures = frame["figures"]
        self._history.append(
            (frame["time"], figures["live_bytes"], figures["reserved_bytes"], figures["counters"])
        )
        title = printable(frame["devices"][frame["device"]]) + (", closed" if frame["closed"] else "")
        mapped = f"{format_size(frame['map']['extent_bytes'])} mapped in {frame['map']['chunks']} chunks"
        return Group(
            Panel(
                self._figures(frame), title=f"SmartPool on {title}", title_align="left", border_style="dim"
            ),
            Panel(self._map(frame["map"]), title=mapped, title_align="left", border_style="dim"),
            self._tables(frame),
        )

    # ------------------------------------------------------------------ figures

    def _figures(self, frame: Mapping[str, Any]) -> RenderableType:
        from rich.table import Table  # noqa: PLC0415

        f = frame["figures"]
        parts = f["fragmentation"]
        used = 1 - f["device_free_bytes"] / f["device_total_bytes"]
        grid = Table.grid(padding=(0, 3))
        for _ in range(4):
            grid.add_column(no_wrap=True)
        grid.add_row(
            f"[b]live[/] {format_size(f['live_bytes'])}",
            f"[b]reserved[/] {format_size(f['reserved_bytes'])}",
            f"[b]fragmentation[/] {parts['overall']:.2%}",
            f"[b]device[/] {used:.1%} of {format_size(f['device_total_bytes'])}",
        )
        grid.add_row(
            f"[dim]peak {format_size(f['peak_live_bytes'])}[/]",
            f"[dim]peak {format_size(f['peak_reserved_bytes'])}[/]",
            f"[dim]graph {parts['interval_graph']:.1%}  pool {parts['pool']:.1%}  GPU {parts['gpu']:.1%}[/]",
            f"[dim]largest free {format_size(f['largest_free_bytes'])}[/]",
        )
        grid.add_row(
            f"[dim]{self._rate('searches')} searches/s[/]",
            f"[dim]{self._rate('driver_calls')} driver calls/s[/]",
            f"[dim]{self._rate('step_hits')} planned/s[/]",
            f"[cyan]{self._sparks(30)}[/] [dim]live[/]",
        )
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
        if not self._console.color_system:
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

    def _tables(self, frame: Mapping[str, Any]) -> RenderableType:
        from rich.columns import Columns  # noqa: PLC0415
        from rich.markup import escape  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        tiers = Table(
            "tier", *("live blocks", "live", "cached"), box=None, header_style="dim", padding=(0, 2)
        )
        holders = Table("largest holders", "blocks", "bytes", box=None, header_style="dim", padding=(0, 2))
        for table in (tiers, holders):
            for column in table.columns[1:]:
                column.justify = "right"
        for color, tier in zip(_TIERS, frame["tiers"], strict=True):
            tiers.add_row(
                f"[{_hex(color)}]■[/] {tier['name']}",
                f"{tier['live_blocks']:,}",
                format_size(tier["live_bytes"]),
                format_size(tier["cached_bytes"]),
            )
        for held in frame["holders"][:5]:
            holders.add_row(
                escape(printable(held["label"])), f"{held['blocks']:,}", format_size(held["bytes"])
            )
        return Columns([tiers, holders], padding=(0, 4))


def _color(parts: Mapping[str, bytes], cell: int) -> str:
    """Return the colour of a cell: shares of its tier's, paler where cached, and of the gap's."""
    tier = _TIERS[parts["tier"][cell]]
    live, cached, planned = (parts[name][cell] / 255 for name in ("live", "cached", "planned"))
    gap = max(0.0, 1 - live - cached - planned)
    mixed = (
        live * t + cached * (0.38 * t + 0.62 * g) + planned * p + gap * g
        for t, g, p in zip(tier, _GAP, _PLANNED, strict=True)
    )
    return _hex(tuple(min(255, round(channel / 8) * 8) for channel in mixed))  # few styles, not millions


def _hex(color: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in color)
