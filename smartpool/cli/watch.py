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
from smartpool.cli.common import find_trace
from smartpool.cli.console import make_console
from smartpool.cli.terminal import TerminalView
from smartpool.errors import InvalidRequestError
from smartpool.files import explain
from smartpool.live.traffic import Traffic
from smartpool.live.view import LiveView

__all__ = ["add_parser", "add_traffic_arguments", "played", "run"]

DEFAULT_RATE: Final = 2000.0
SCHEMA: Final = 1

_PATIENCE_S: Final = 5.0
_JSON_CELLS: Final = 1024
_LONGEST_REASON: Final = 500
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
    if args.frames is not None and args.frames <= 0:
        raise InvalidRequestError(f"--frames: expected a number of frames above 0, got {args.frames}")
    if not 0 <= args.every < float("inf"):
        raise InvalidRequestError(f"--every: expected seconds of at least 0, got {args.every:g}")
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
    left = args.frames

    def next_frame(cells: int) -> dict[str, Any]:
        return question({"device": 0, "first": 0, "last": None, "cells": cells, "after": 0})

    if args.json:
        while left is None or left > 0:
            print(json.dumps({"schema": SCHEMA, **next_frame(_JSON_CELLS)}), flush=True)
            left = None if left is None else left - 1
            time.sleep(args.every if left != 0 else 0)
        return
    console = make_console()
    view = TerminalView(console)
    from rich.live import Live  # noqa: PLC0415  an extra: make_console said so if it is missing

    terminal = console.is_terminal
    with Live(console=console, auto_refresh=False, screen=terminal and left is None) as live:
        while left is None or left > 0:
            live.update(view.take(next_frame(view.cells)), refresh=terminal or left == 1)
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
                return _checked(json.load(answer))
        except urllib.error.HTTPError as error:
            raise InvalidRequestError(f"{url} answered {error.code}: {_reason(error)}") from None
        except (OSError, ValueError) as error:
            raise InvalidRequestError(
                f"expected a served pool at {url}, got: {explain(getattr(error, 'reason', error))}; "
                "start one with pool.serve() or 'smartpool serve'"
            ) from None

    return ask


def _checked(frame: Any) -> dict[str, Any]:
    if not isinstance(frame, dict) or not {"figures", "map"} <= frame.keys():
        raise ValueError("an answer that is no frame of a pool")
    return frame


def _reason(error: urllib.error.HTTPError) -> str:
    """Return the line in which our server says why not; what another server says is not for a terminal."""
    body = error.read(_LONGEST_REASON + 1).decode(errors="replace").strip()
    ours = error.headers.get_content_type() == "text/plain" and 0 < len(body) <= _LONGEST_REASON
    return body if ours and len(body.splitlines()) == 1 else "this is no SmartPool page"
