"""What commands print with: tables and progress bars by `rich`, an extra that may be missing.

Results go to standard output and progress to standard error. `rich` leaves colors out where the
output is not a terminal or NO_COLOR is set; there the width is that of the tables, not of a screen,
so that a file or a pipe gets whole lines.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from smartpool.errors import MissingPackageError
from smartpool.report.text import printable
from smartpool.trace.replay import Progress

if TYPE_CHECKING:  # rich is an extra
    from rich.console import Console

__all__ = ["BeginReplay", "make_console", "replay_progress"]

BeginReplay = Callable[[str, str], Progress | None]
"""Called with the names of trace and allocator before each replay; returns that replay's progress."""

_PIPE_WIDTH: Final = 200


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output, or on standard error.

    Raises
    ------
    MissingPackageError
        When `rich` is not installed; the message says how to install it.
    """
    if find_spec("rich") is None:
        raise MissingPackageError(
            "tables need the package 'rich' of the extra 'cli', which is not installed; "
            "run: pip install rich (--json works without it)"
        )
    from rich.console import Console  # noqa: PLC0415  an extra, and not needed for --json

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal or "COLUMNS" in os.environ else _PIPE_WIDTH

    class Printing(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  where it is called: `main` says what becomes of it, not rich

    return Printing(stderr=stderr, width=width, highlight=False, soft_wrap=False)


@contextmanager
def replay_progress(replays: int) -> Iterator[BeginReplay]:
    """Yield what begins each of `replays` replays: a bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield lambda *_: None
        return
    from rich import progress as bars  # noqa: PLC0415  an extra
    from rich.markup import escape  # noqa: PLC0415

    columns = (bars.BarColumn(), bars.TaskProgressColumn(), bars.TextColumn("{task.description}"))
    with bars.Progress(*columns, console=make_console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=replays)
        begun = itertools.count()

        def begin(trace: str, allocator: str) -> Progress:
            before = next(begun)
            bar.update(task, description=escape(printable(f"{trace}: {allocator}")))
            return lambda done, events: bar.update(task, completed=before + done / max(1, events))

        yield begin
