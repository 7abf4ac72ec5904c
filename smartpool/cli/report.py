"""``smartpool report`` makes one HTML page that opens offline, of a trace or of an out-of-memory dump.

Of a trace it shows memory over time, what SmartPool and its peers would have reserved, where every block
lay beside the plan of the whole trace, fragmentation, and who held the bytes at the peak. Of a dump it
shows what was asked, what was in the way, and what would help. Exit status 3 says that a request of the
trace failed for lack of memory, as with ``smartpool replay``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from smartpool.cli.arguments import add_against, add_capacity, add_command, add_policy
from smartpool.cli.console import replay_progress
from smartpool.cli.replays import DEFAULT_DEVICE, FAILED_REQUESTS, OK, find_trace
from smartpool.cli.targets import HTML, check_target, read_from, tell, written_to
from smartpool.errors import InvalidRequestError
from smartpool.report.analysis import analysis
from smartpool.report.dump import is_dump, read_dump
from smartpool.report.dump_report import dump_report
from smartpool.report.page import write_page
from smartpool.report.text import counted, printable
from smartpool.report.trace_report import trace_report
from smartpool.trace.baselines import PEERS
from smartpool.trace.bundled import bundled_names
from smartpool.trace.optimum import OPTIMUM
from smartpool.units import format_bytes

__all__ = ["add_parser", "run"]

_REPLAYS: Final = ("gpu", "against", "device", "capacity", "policy")
_EPILOG: Final = """\
examples:
  smartpool report run.npz -o run.html              a recording of any tool that convert reads
  smartpool report snapshot.pickle --against pytorch
  smartpool report smartpool-oom-...json            what an out-of-memory error left
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers,
        __name__,
        run,
        help="one page about a trace, or about an out-of-memory dump",
        examples=_EPILOG,
    )
    parser.add_argument(
        "source",
        metavar="FILE",
        help=f"a trace, a dump, - for standard input, or a bundled trace: {', '.join(bundled_names())}",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the page (default: the source's name, .html); - prints it",
    )
    parser.add_argument("--gpu", type=int, metavar="N", help="which device of a snapshot of several")
    parser.add_argument("--title", help="the heading (default: the trace's name)")
    add_against(parser, optional=True)
    parser.add_argument("--device", help=f"where to replay: model:SIZE or cpu (default: {DEFAULT_DEVICE})")
    add_capacity(parser)
    add_policy(parser, optional=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    with read_from(args.source) as source:
        target = args.output or Path(f"{source.stem}.html")
        check_target(target, reads=[source], endings=HTML, prints="--json" if args.json else None)
        is_one = source.is_file() and is_dump(source)
        facts, line = _of_dump(args, source, target) if is_one else _of_trace(args, target, source)
    if args.json:
        print(json.dumps({"schema": 1, "path": str(target), **facts}, indent=1))
    else:
        tell(f"{printable(str(target))}: {format_bytes(facts['bytes'])}, {line}", target)
    return FAILED_REQUESTS if any(one["failed_requests"] for one in facts.get("runs", ())) else OK


def _of_dump(args: argparse.Namespace, source: Path, target: Path) -> tuple[dict[str, Any], str]:
    """Write the report of what an error left; return what is told of it, to programs and to people."""
    _refuse_what_replays(args)
    dump = read_dump(source)
    with written_to(target) as path:
        nbytes = write_page(path, dump_report(dump, title=args.title)).stat().st_size
    requested = dump.story["requested_bytes"]
    facts = {"bytes": nbytes, "kind": "out-of-memory", "requested_bytes": requested}
    return facts, f"{format_bytes(requested)} asked for"


def _of_trace(args: argparse.Namespace, target: Path, source: Path) -> tuple[dict[str, Any], str]:
    """Write the report of a trace; return what is told of it, to programs and to people."""
    trace = find_trace(str(source), device=args.gpu)
    peers = [
        name for name in (PEERS if args.against is None else args.against) if name != OPTIMUM
    ]  # the plan is always there
    with replay_progress(len(peers) + 2) as begin:
        found = analysis(
            trace,
            against=peers,
            device=args.device or DEFAULT_DEVICE,
            capacity_bytes=args.capacity,
            policy=args.policy,
            begin=begin,
        )
    with written_to(target) as path:
        nbytes = write_page(path, trace_report(found, title=args.title)).stat().st_size
    failed = sum(one.failed_requests for one in found.runs)
    line = f"{format_bytes(trace.peak_live_bytes)} live at the peak"
    line += f", {counted(failed, 'failed request')} among all allocators" if failed else ""
    runs = [one.as_json() for one in found.runs]
    return {"bytes": nbytes, "kind": "trace", "trace": trace.name, "runs": runs}, line


def _refuse_what_replays(args: argparse.Namespace) -> None:
    """Refuse the arguments of a replay for a dump, of which nothing is replayed."""
    given = [f"--{name}" for name in _REPLAYS if getattr(args, name) is not None]
    if given:
        raise InvalidRequestError(
            f"{', '.join(given)}: expected a trace to replay, {args.source} is an out-of-memory dump; "
            "leave it out"
        )
