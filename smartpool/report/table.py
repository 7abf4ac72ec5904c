"""The table of runs in the terminal, by `rich`: one section a trace, then all traces side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from smartpool.report.comparison import (
    COLUMNS,
    FAILED,
    FRAGMENTATION,
    PEAK_LIVE,
    Column,
    Comparison,
    best_of,
    best_text,
)
from smartpool.report.text import printable
from smartpool.trace.replay import Run
from smartpool.units import format_bytes

if TYPE_CHECKING:  # rich is an extra: this module is imported by commands that may not need it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "comparison_table",
    "fit",
    "natural_width",
    "new_table",
    "print_runs",
    "print_table",
    "runs_table",
    "trace_table",
]

_UNLIMITED: Final = 1 << 20
_MARK: Final = "*"
_BEST_STYLE: Final = "bold green"
_FAILED_STYLE: Final = "red"
_SPARE: Final = ("us/op", "driver\ntime", "failed", "fragmentation")  # of a table of one trace
_LEGEND: Final = f"{_MARK} least of its trace, among the allocators that served every request"


def print_runs(runs: Iterable[Run], console: Console) -> None:
    """Print the table of runs, and with several traces the fragmentation side by side.

    Of runs of several passes, the first pass and the last are printed, one after the other.

    Parameters
    ----------
    runs
        Any number, all of as many passes; nothing is printed for none.
    console
        Where to print (`smartpool.cli.console.make_console`). Where it is too narrow for one table of all
        runs, there is one a trace.
    """
    from rich.text import Text  # noqa: PLC0415

    runs = tuple(runs)
    passes = runs[0].passes if runs else 0
    if passes == 1:
        _print_tables(Comparison(runs), console)
    for number in (0, passes - 1) if passes > 1 else ():
        if number:
            console.print()
        console.print(Text(f"pass {number + 1} of {passes}", style="bold"))
        _print_tables(Comparison(run.of_pass(number) for run in runs), console)


def _print_tables(comparison: Comparison, console: Console) -> None:
    """Print one table of all runs, or one a trace where that is too wide, and the traces side by side."""
    from rich.text import Text  # noqa: PLC0415

    table = runs_table(comparison)
    if _fits(table, console):
        console.print(table)
    else:
        for trace in comparison.traces:
            print_table(trace_table(comparison.of_trace(trace)), console, spare=_SPARE)
    if len(comparison.runs) > len(comparison.traces):
        console.print(Text(_LEGEND, style="dim"))
    if len(comparison.traces) > 1:
        for allocators in _fitting_groups(comparison, console):
            console.print()
            print_table(comparison_table(comparison, allocators), console)


def print_table(table: Table, console: Console, *, spare: Sequence[str] = ()) -> None:
    """Print a table that loses columns where the screen is narrow, and no digits; and say which it lost.

    Parameters
    ----------
    table
        The table. It is changed.
    console
        Where to print.
    spare
        The titles of the columns that go, the first one first.
    """
    from rich.text import Text  # noqa: PLC0415

    gone = fit(table, console, spare=spare)
    console.print(table)
    if gone:
        console.print(Text(f"the screen is too narrow for: {', '.join(gone)}", style="dim"))


def fit(table: Table, console: Console, *, spare: Sequence[str]) -> list[str]:
    """Take columns out of a table, in the order of `spare`, until it fits; return which."""
    gone = []
    for title in spare:
        if _fits(table, console):
            break
        for column in [column for column in table.columns if column.header == title]:
            table.columns.remove(column)
            gone.append(title.replace("\n", " "))
        for index, column in enumerate(table.columns):  # the first and the last have no padding outside
            column._index = index  # noqa: SLF001 - rich has no way to take a column out
    return gone


def runs_table(comparison: Comparison) -> Table:
    """Return the table of every run, its best figures marked within each trace."""
    table = new_table("trace", "allocator")
    for column in COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True)
    for trace in comparison.traces:
        runs = comparison.of_trace(trace)
        for number, cells in enumerate(_rows(runs, COLUMNS)):
            shown = "" if number else trace
            table.add_row(_name(shown), *cells, end_section=number == len(runs) - 1)
    return table


def trace_table(runs: Sequence[Run]) -> Table:
    """Return the table of one trace for a narrow screen: what is the same for all is its title."""
    live = max(run.peak_live_bytes for run in runs)
    failed = any(run.failed_requests for run in runs)
    columns = [column for column in COLUMNS if column is not PEAK_LIVE and (failed or column is not FAILED)]
    table = new_table("allocator")
    table.title = _name(f"{runs[0].trace}: {format_bytes(live)} live at its peak")
    table.title_justify = "left"
    for column in columns:
        table.add_column(_narrow(column), justify="right", no_wrap=True, vertical="bottom")
    for cells in _rows(runs, columns):
        table.add_row(*cells)
    return table


def comparison_table(comparison: Comparison, allocators: Sequence[str] | None = None) -> Table:
    """Return the fragmentation of allocators on every trace, with the mean over the traces.

    Parameters
    ----------
    comparison
        All runs: the best is marked among all of them.
    allocators
        Which columns; None for all.
    """
    shown = comparison.allocators if allocators is None else allocators
    table = new_table("fragmentation")
    for allocator in shown:
        table.add_column(_name(allocator), justify="right", no_wrap=True)
    for trace in comparison.traces:
        best = best_of(comparison.of_trace(trace), FRAGMENTATION)
        cells = []
        for allocator in shown:
            run = comparison.cell(trace, allocator)
            text = "" if run is None else FRAGMENTATION.text(FRAGMENTATION.value(run))
            failed = run is not None and run.failed_requests > 0
            cells.append(_cell(text, marked=text == best and not failed, warned=failed))
        table.add_row(_name(trace), *cells, end_section=trace == comparison.traces[-1])
    means = {name: comparison.mean(name, FRAGMENTATION) for name in comparison.allocators}
    known = [mean for mean in means.values() if mean is not None]
    best = best_text(known, FRAGMENTATION) if len(known) > 1 else None
    cells = []
    for mean in (means[name] for name in shown):
        text = "" if mean is None else FRAGMENTATION.text(mean)
        cells.append(_cell(text, marked=bool(text) and text == best))
    table.add_row(_name("mean"), *cells)
    return table


def _fitting_groups(comparison: Comparison, console: Console) -> Iterator[Sequence[str]]:
    """Yield all allocators, as many at a time as fit side by side."""
    left = list(comparison.allocators)
    while left:
        count = len(left)
        while count > 1 and not _fits(comparison_table(comparison, left[:count]), console):
            count -= 1
        yield left[:count]
        del left[:count]


def _narrow(column: Column) -> str:
    return column.title.replace(" ", "\n")


def _fits(table: Table, console: Console) -> bool:
    """Whether the table can be printed with no cell cut short."""
    return natural_width(table, console) <= console.width


def natural_width(table: Table, console: Console) -> int:
    """Return the columns of the screen that a table takes where there are enough."""
    unlimited = console.options.update(max_width=_UNLIMITED)
    return console.measure(table, options=unlimited).maximum


def _rows(runs: Sequence[Run], columns: Sequence[Column]) -> Iterator[list[Text]]:
    """Yield the cells of each run of one trace, beginning with the allocator's name."""
    best = {column.title: best_of(runs, column) for column in columns}
    for run in runs:
        failed = run.failed_requests > 0
        cells = [_name(run.allocator)]
        for column in columns:
            text = column.text(column.value(run))
            marked = text == best[column.title] and not failed
            cells.append(_cell(text, marked=marked, warned=failed and column is FAILED))
        yield cells


def new_table(*names: str) -> Table:
    """Return an empty table in our style, with a column a name."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title_style="bold")
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
