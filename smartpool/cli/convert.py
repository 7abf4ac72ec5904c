"""``smartpool convert`` turns a recording of one tool into the format of another.

It reads traces, PyTorch memory snapshots, RMM logs and CSV of events, told apart by their contents, packed by
gzip or not, and runs nothing that they hold. A file named - is standard input or standard output. It writes
what the ending of OUT says, or --to:

  npz     .npz            a trace, for every other command
  torch   .pickle, .pkl   a PyTorch memory snapshot, for pytorch.org/memory_viz
  chrome  .json           counters and lifetimes, for ui.perfetto.dev and chrome://tracing
  csv     .csv            a row an event
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from smartpool.cli.arguments import add_command
from smartpool.cli.replays import find_trace
from smartpool.cli.targets import check_target, tell, written_to
from smartpool.errors import ConfigurationError, InvalidRequestError
from smartpool.report.text import counted, printable
from smartpool.trace.exporters import FORMATS, format_of, write_any
from smartpool.trace.trace import Trace
from smartpool.units import format_bytes

__all__ = ["add_parser", "run"]

SCHEMA: Final = 1

_EPILOG: Final = """\
examples:
  smartpool convert snapshot.pickle run.npz     a PyTorch snapshot becomes a trace
  smartpool convert run.npz run.pickle          open it at pytorch.org/memory_viz
  smartpool convert rmm_log.csv run.json        open it at ui.perfetto.dev
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers,
        __name__,
        run,
        help="turn a recording of one tool into the format of another",
        examples=_EPILOG,
    )
    parser.add_argument(
        "source", metavar="IN", help="a trace, bundled or a file, a PyTorch snapshot, an RMM log, or CSV"
    )
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument("--to", choices=list(FORMATS), help="the format (default: by the ending of OUT)")
    parser.add_argument("--gpu", type=int, metavar="N", help="which device of a snapshot of several")
    parser.add_argument(
        "--drop-unknown-frees",
        action="store_true",
        help="leave out the frees of an RMM log that began after their allocations",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    target = Path(args.target)
    written = _format(target, args.to)  # before the time of reading is spent
    check_target(target, prints="--json" if args.json else None)
    trace = find_trace(args.source, device=args.gpu, drop_unknown_frees=args.drop_unknown_frees)
    with written_to(target) as path:
        write_any(trace, path, to=written)
    if args.json:
        print(
            json.dumps({"schema": SCHEMA, "path": str(target), "format": written, **_facts(trace)}, indent=1)
        )
    else:
        tell(
            f"{printable(str(target))}: {counted(trace.events, 'event')}, "
            f"{counted(trace.allocations, 'allocation')}, {counted(trace.streams, 'stream')}, "
            f"peak live {format_bytes(trace.peak_live_bytes)}",
            target,
        )
    return 0


def _format(target: Path, to: str | None) -> str:
    try:
        return format_of(target, to)
    except ConfigurationError:
        known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise InvalidRequestError(
            f"{target}: expected a file name that ends in {known}; rename it, or name its format with --to"
        ) from None


def _facts(trace: Trace) -> dict[str, object]:
    return {
        "trace": trace.name,
        "events": trace.events,
        "allocations": trace.allocations,
        "streams": trace.streams,
        "peak_live_bytes": trace.peak_live_bytes,
    }
