"""A pool against which a trace is played meanwhile: what `watch` and `serve` show by themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import smartpool
from smartpool.cli.arguments import add_policy
from smartpool.cli.replays import DEFAULT_DEVICE, find_trace
from smartpool.errors import InvalidRequestError
from smartpool.live.traffic import Traffic

__all__ = ["add_traffic_arguments", "played"]

_RATE: Final = 2000.0
_FASTEST: Final = 1e9


def add_traffic_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that play a trace."""
    parser.add_argument(
        "--device", default=DEFAULT_DEVICE, help="where to play a trace (default: %(default)s)"
    )
    add_policy(parser)
    parser.add_argument(
        "--rate", type=float, default=_RATE, metavar="N", help="events a second (default: %(default)g)"
    )


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
