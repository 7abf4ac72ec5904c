"""The table of runs in the terminal, by `rich`: one section a trace, then all traces side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from smartpool.report.comparison import COLUMNS, FRAGMENTATION, Comparison, best_of, best_text
from smartpool.report.text import printable
from smartpool.trace.replay import Run

if TYPE_CHECKING:  # rich is an extra: this module is imported by commands that may not need it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["comparison_table", "new_table", "print_runs", "runs_table"]

_MARK = "*"
_BEST_STYLE = "bold green"
_FAILED_STYLE = "red"


def print_runs(runs: Iterable[Run], console: Console) -> None:
    """Print the table of runs, and with several traces the fragmentation side by side.

    Parameters
    ----------
    runs
        Any number; nothing is printed for none.
    console
        Where to print (`smartpool.cli.console.make_console`).
    """
    comparison = Comparison(runs)
    if not comparison.runs:
        return
    console.print(runs_table(comparison))
    if len(comparison.traces) > 1:
        console.print()
        console.print(comparison_table(comparison))


def runs_table(comparison: Comparison) -> Table:
    """Return the table of every run, its best figures marked within each trace."""
    table = new_table("trace", "allocator")
    for column in COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True)
    for trace in comparison.traces:
        runs = comparison.of_trace(trace)
        best = {column.title: best_of(runs, column) for column in COLUMNS}
        for number, run in enumerate(runs):
            failed = run.failed_requests > 0
            cells = []
            for column in COLUMNS:
                text = column.text(column.value(run))
                marked = text == best[column.title] and not failed
                warned = failed and column.title == "failed"
                cells.append(_cell(text, marked=marked, warned=warned))
            table.add_row(
                _name(trace if number == 0 else ""), _name(run.allocator), *cells,
                end_section=number == len(runs) - 1,
            )  # fmt: skip
    if len(comparison.runs) > len(comparison.traces):
        table.caption = f"{_MARK} least of its trace, among the allocators that served every request"
        table.caption_justify = "left"
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Return the fragmentation of every allocator on every trace, with the mean over the traces."""
    table = new_table("fragmentation")
    for allocator in comparison.allocators:
        table.add_column(_name(allocator), justify="right")
    for trace in comparison.traces:
        best = best_of(comparison.of_trace(trace), FRAGMENTATION)
        cells = []
        for allocator in comparison.allocators:
            run = comparison.cell(trace, allocator)
            text = "" if run is None else FRAGMENTATION.text(FRAGMENTATION.value(run))
            failed = run is not None and run.failed_requests > 0
            cells.append(_cell(text, marked=text == best and not failed, warned=failed))
        table.add_row(_name(trace), *cells, end_section=trace == comparison.traces[-1])
    means = {name: comparison.mean(name, FRAGMENTATION) for name in comparison.allocators}
    known = [mean for mean in means.values() if mean is not None]
    best = best_text(known, FRAGMENTATION) if len(known) > 1 else None
    cells = []
    for mean in means.values():
        text = "" if mean is None else FRAGMENTATION.text(mean)
        cells.append(_cell(text, marked=bool(text) and text == best))
    table.add_row(_name("mean"), *cells)
    return table


def new_table(*names: str) -> Table:
    """Return an empty table in our style, with a column a name."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", caption_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _name(name: str) -> Text:
    """Return a name as it stands: as `Text`, because a string in brackets would be read as markup."""
    from rich.text import Text  # noqa: PLC0415

    return Text(printable(name))


def _cell(text: str, *, marked: bool, warned: bool = False) -> Text:
    """Return a figure with room for the mark, so that the digits stay below one another."""
    from rich.text import Text  # noqa: PLC0415

    style = _BEST_STYLE if marked else _FAILED_STYLE if warned else ""
    return Text(f"{text}{_MARK if marked else ' '}", style=style)
