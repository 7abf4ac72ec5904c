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
from contextlib import contextmanager
from typing import Any, Final

import smartpool
from smartpool.cli.common import find_trace
from smartpool.cli.console import make_console
from smartpool.cli.served import Question, asker
from smartpool.cli.terminal import TerminalView
from smartpool.errors import InvalidRequestError
from smartpool.live.traffic import Traffic
from smartpool.live.view import LiveView

__all__ = ["add_parser", "add_traffic_arguments", "played", "run"]

DEFAULT_RATE: Final = 2000.0
SCHEMA: Final = 1

_JSON_CELLS: Final = 1024
_LONGEST_PAUSE_S: Final = 86_400.0
_FASTEST: Final = 1e9
_EXAMPLES: Final = """\
examples:
  smartpool watch http://127.0.0.1:8765/
  smartpool watch llama-train --rate 5000
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "watch",
        help="show a pool's memory in the terminal as it changes",
        description=(__doc__ or "").replace("``", ""),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="URL|TRACE", help="the address of a served pool, or a trace to play")
    add_traffic_arguments(parser)
    parser.add_argument(
        "--every", type=float, default=0.25, metavar="SECONDS", help="how often (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="end after N frames; default: never")
    parser.add_argument("--json", action="store_true", help="print one JSON object a frame, a line each")
    parser.set_defaults(run=run)


def add_traffic_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that play a trace."""
    parser.add_argument(
        "--device", default="model:141GiB", help="where to play a trace (default: %(default)s)"
    )
    parser.add_argument("--policy", default="balanced", help="SmartPool's policy (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=DEFAULT_RATE, metavar="N", help="events a second (default: %(default)g)"
    )


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


@contextmanager
def played(trace: str, args: argparse.Namespace) -> Iterator[smartpool.SmartPool]:
    """Yield a pool against which a trace is played meanwhile."""
    if not 0 < args.rate <= _FASTEST:
        raise InvalidRequestError(
            f"--rate: expected events a second above 0 and up to {_FASTEST:g}, got {args.rate:g}"
        )
    config = smartpool.SmartPoolConfig(policy=args.policy)
    with smartpool.SmartPool(args.device, config) as pool:
        traffic = Traffic(pool, find_trace(trace), args.rate)
        traffic.start()
        try:
            traffic.wait_begun()  # the first frame is to show something
            yield pool
        finally:
            traffic.stop()


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
