"""``smartpool watch`` shows a pool's memory in the terminal as it changes.

Of a pool that is served (``pool.serve()``, ``smartpool serve``) by its address; or of a pool made here,
against which a trace is played. Ctrl-C ends it. A password is read from SMARTPOOL_PASSWORD.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import smartpool
from smartpool.cli.console import make_console
from smartpool.cli.replay import find_trace
from smartpool.cli.terminal import TerminalView
from smartpool.errors import InvalidRequestError
from smartpool.live.traffic import Traffic
from smartpool.live.view import LiveView

__all__ = ["add_parser", "add_traffic_arguments", "played", "run"]

DEFAULT_RATE: Final = 2000.0
_PATIENCE_S: Final = 5.0
_EXAMPLES: Final = """\
examples:
  smartpool watch http://127.0.0.1:8765/
  smartpool watch llama-train --rate 5000
"""

_Question = Callable[[dict[str, Any]], dict[str, Any]]


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
    if args.what.startswith(("http://", "https://")):
        _show(_asker(args.what), args)
    else:
        with played(args.what, args) as pool:
            _show(LiveView(pool).frame, args)
    return 0


@contextmanager
def played(trace: str, args: argparse.Namespace) -> Iterator[smartpool.SmartPool]:
    """Yield a pool against which a trace is played meanwhile."""
    if args.rate <= 0:
        raise InvalidRequestError(f"--rate: expected events a second above 0, got {args.rate:g}")
    config = smartpool.SmartPoolConfig(policy=args.policy)
    with smartpool.SmartPool(args.device, config) as pool:
        traffic = Traffic(pool, find_trace(trace), args.rate)
        traffic.start()
        try:
            yield pool
        finally:
            traffic.stop()


def _show(question: _Question, args: argparse.Namespace) -> None:
    console = make_console()
    view = TerminalView(console)
    left = args.frames

    def next_frame() -> dict[str, Any]:
        return question({"device": 0, "first": 0, "last": None, "cells": view.cells, "after": 0})

    if args.json:
        while left is None or left > 0:
            print(json.dumps(next_frame()), flush=True)
            left = None if left is None else left - 1
            time.sleep(args.every if left != 0 else 0)
        return
    from rich.live import Live  # noqa: PLC0415  an extra: make_console said so if it is missing

    terminal = console.is_terminal
    with Live(console=console, auto_refresh=False, screen=terminal and left is None) as live:
        while left is None or left > 0:
            live.update(view.take(next_frame()), refresh=terminal or left == 1)
            left = None if left is None else left - 1
            time.sleep(args.every if left != 0 else 0)


def _asker(url: str) -> _Question:
    """Return what asks the server at `url` for frames."""
    headers = {"Content-Type": "application/json"}
    password = os.environ.get("SMARTPOOL_PASSWORD")
    if password:
        headers["Authorization"] = "Basic " + base64.b64encode(f":{password}".encode()).decode()

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            url.rstrip("/") + "/frame", data=json.dumps(question).encode(), headers=headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:  # noqa: S310
                frame: dict[str, Any] = json.load(answer)
                return frame
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace").strip()
            raise InvalidRequestError(f"{url} answered {error.code}: {reason}") from None
        except (OSError, ValueError) as error:
            raise InvalidRequestError(
                f"expected a served pool at {url}, got: {getattr(error, 'reason', error)}; "
                "start one with pool.serve() or 'smartpool serve'"
            ) from None

    return ask
