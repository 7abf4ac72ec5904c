"""``smartpool serve`` plays a trace against a pool and serves its live page until Ctrl-C.

In a program of your own, ``pool.serve(port=8765)`` serves the same page of your pool. With SMARTPOOL_PASSWORD
in the environment the page asks for that password; listening elsewhere than on this machine, set one.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Final

from smartpool.cli.arguments import add_command
from smartpool.cli.traffic import add_traffic_arguments, played

__all__ = ["add_parser", "run"]

_PORT: Final = 8765


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers,
        __name__,
        run,
        help="a live page of a pool's memory, in the browser",
        examples="examples:\n  smartpool serve\n  smartpool serve trace.npz --port 9000 --rate 10000\n",
    )
    parser.add_argument(
        "trace", nargs="?", default="llama-train", metavar="TRACE", help="default: %(default)s"
    )
    add_traffic_arguments(parser)
    parser.add_argument("--port", type=int, default=_PORT, help="default: %(default)s; 0: one that is free")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    password = os.environ.get("SMARTPOOL_PASSWORD") or None
    with played(args.trace, args) as pool, pool.serve(args.port, host=args.host, password=password) as server:
        print(f"{args.trace} on {args.device}: {server.url}   (Ctrl-C ends it)", file=sys.stderr, flush=True)
        server.join()
    return 0
