"""``smartpool watch`` shows a pool's memory in the terminal as it changes.

Of a pool that is served (``pool.serve()``, ``smartpool serve``) by its address; or of a pool made here,
against which a trace is played. Ctrl-C ends it. A password is read from SMARTPOOL_PASSWORD.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from smartpool.cli.arguments import add_command
from smartpool.cli.console import make_console
from smartpool.cli.served import Question, asker
from smartpool.cli.terminal import TerminalView
from smartpool.cli.traffic import add_traffic_arguments, played
from smartpool.errors import InvalidRequestError
from smartpool.live.view import LiveView

__all__ = ["add_parser", "run"]

SCHEMA: Final = 1

_JSON_CELLS: Final = 1024
_LONGEST_PAUSE_S: Final = 86_400.0
_EXAMPLES: Final = """\
examples:
  smartpool watch http://127.0.0.1:8765/
  smartpool watch llama-train --rate 5000
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers,
        __name__,
        run,
        help="show a pool's memory in the terminal as it changes",
        examples=_EXAMPLES,
    )
    parser.add_argument("what", metavar="URL|TRACE", help="the address of a served pool, or a trace to play")
    add_traffic_arguments(parser)
    parser.add_argument(
        "--every", type=float, default=0.25, metavar="SECONDS", help="how often (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="end after N frames; default: never")
    parser.add_argument("--json", action="store_true", help="print one JSON object a frame, a line each")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if args.frames is not None and args.frames <= 0:
        raise InvalidRequestError(f"--frames: expected a number of frames above 0, got {args.frames}")
    if not 0 <= args.every <= _LONGEST_PAUSE_S:
        most = f"{_LONGEST_PAUSE_S:.0f}"
        raise InvalidRequestError(f"--every: expected seconds from 0 to {most}, got {args.every:g}")
    if args.what.startswith(("http://", "https://")):
        _show(asker(args.what), args)
    else:
        with played(args.what, args) as pool:
            _show(LiveView(pool).frame, args)
    return 0


def _show(question: Question, args: argparse.Namespace) -> None:
    def frames(cells: Callable[[], int]) -> Iterator[dict[str, Any]]:
        for number in itertools.count(1):
            yield question({"device": 0, "first": 0, "last": None, "cells": cells(), "after": 0})
            if number == args.frames:
                return
            time.sleep(args.every)

    if args.json:
        for frame in frames(lambda: _JSON_CELLS):
            print(json.dumps({"schema": SCHEMA, **frame}), flush=True)
        return
    console = make_console()
    view = TerminalView(console)
    shown = map(view.take, frames(lambda: view.cells))
    if not console.is_terminal:
        console.print(deque(shown, maxlen=1)[0])  # what a file is for is the last one
        return
    from rich.live import Live  # noqa: PLC0415  an extra: make_console said so if it is missing

    with Live(console=console, auto_refresh=False, screen=args.frames is None) as live:
        for one in shown:
            live.update(one, refresh=True)
