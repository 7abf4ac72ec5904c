"""``smartpool replay`` tells what each allocator would have reserved for recorded requests.

Every allocator plays every trace on a device of its own. Exit status 3 says that a request failed for
lack of memory, whichever allocator it was: with ``--capacity`` that is the question asked.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from smartpool.cli.arguments import add_against, add_capacity, add_command, add_policy, count_of
from smartpool.cli.console import make_console
from smartpool.cli.replays import DEFAULT_DEVICE, FAILED_REQUESTS, OK, find_trace, play, runs_as_json
from smartpool.cli.targets import HTML, check_target, written_to
from smartpool.report.page import write_page
from smartpool.report.picture import picture
from smartpool.report.table import print_runs
from smartpool.trace.bundled import bundled_names
from smartpool.trace.replay import STREAM_MODES
from smartpool.trace.targets import SMARTPOOL

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers, __name__, run, help="play traces against SmartPool and models of its peers"
    )
    parser.add_argument(
        "traces",
        nargs="+",
        metavar="TRACE",
        help=f"a file that smartpool can read, or a bundled trace: {', '.join(bundled_names())}",
    )
    parser.add_argument(
        "--device",
        default=DEFAULT_DEVICE,
        help="where to play: model:SIZE (time by the driver's measured costs) or cpu (default: %(default)s)",
    )
    add_against(parser)
    add_capacity(parser)
    parser.add_argument(
        "--passes",
        type=count_of,
        default=1,
        metavar="N",
        help="play each trace N times in one allocator, freeing what is live at the end of each pass "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--streams",
        choices=STREAM_MODES,
        default=STREAM_MODES[0],
        help="play all on one stream, or each event on its own (default: %(default)s)",
    )
    add_policy(parser)
    parser.add_argument(
        "--picture", metavar="FILE", help="draw memory over time, as an HTML page that opens offline"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    console = None if args.json else make_console()  # whether it can print is found out first
    # And whether it can write.
    check_target(args.picture, reads=args.traces, endings=HTML, prints="the table")
    runs = play(
        [find_trace(name) for name in args.traces],
        [SMARTPOOL, *args.against],
        args.device,
        passes=args.passes,
        capacity_bytes=args.capacity,
        streams=args.streams,
        policy=args.policy,
    )
    if args.picture is not None:
        with written_to(args.picture) as path:
            write_page(path, picture(runs))
    if console is None:
        print(json.dumps(runs_as_json(runs), indent=1))
    else:
        print_runs(runs, console)
    return FAILED_REQUESTS if any(one.failed_requests for one in runs) else OK
