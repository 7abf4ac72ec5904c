"""``smartpool advise`` replays a trace with changes and tells what is worth changing, with the figures.

The same of a pool that records in your program: ``smartpool.recommendations.recommend(pool)``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import smartpool
from smartpool.cli.arguments import add_command, add_policy
from smartpool.cli.replays import find_trace
from smartpool.config import SmartPoolConfig
from smartpool.recommendations import recommend
from smartpool.report.text import counted, printable

__all__ = ["add_parser", "run"]

_SCHEMA = 1


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, __name__, run, help="what is worth changing, by replays with the change")
    parser.add_argument("trace", metavar="TRACE", help="a trace, a log, or the name of a bundled one")
    add_policy(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    trace = find_trace(args.trace)
    found = recommend(trace, config=SmartPoolConfig(policy=args.policy))
    if args.json:
        head = {"schema": _SCHEMA, "version": smartpool.__version__, "trace": trace.name}
        print(json.dumps({**head, "recommendations": [asdict(advice) for advice in found]}, indent=1))
        return 0
    print(f"{printable(trace.name)}: {counted(len(found), 'recommendation')}")
    for advice in found:
        print(f"- {advice.kind}: {printable(advice.text)}")
    return 0
