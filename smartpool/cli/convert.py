"""``smartpool convert`` turns a recording of another tool into a trace.

It reads PyTorch memory snapshots, RMM logs and traces, told apart by their contents, and runs
nothing that they hold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from smartpool.errors import TraceError
from smartpool.report.text import counted, format_bytes, printable
from smartpool.trace.importers import read_any
from smartpool.trace.trace import Trace

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "convert",
        help="turn a PyTorch snapshot or an RMM log into a trace",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="a PyTorch snapshot, an RMM log, or a trace")
    parser.add_argument("target", metavar="OUT", help="the trace to write (.npz)")
    parser.add_argument("--gpu", type=int, metavar="N", help="which device of a snapshot of several")
    parser.add_argument(
        "--drop-unknown-frees",
        action="store_true",
        help="leave out the frees of an RMM log that began after their allocations",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    target = Path(args.target)
    if target.suffix != ".npz":
        raise TraceError(f"expected a trace to write, with a name that ends in .npz, got {args.target!r}")
    trace = read_any(args.source, device=args.gpu, drop_unknown_frees=args.drop_unknown_frees)
    trace.save(target)
    if args.json:
        print(json.dumps({"path": str(target), **_facts(trace)}, indent=1))
    else:
        print(
            f"{printable(str(target))}: {counted(trace.events, 'event')}, "
            f"{counted(trace.allocations, 'allocation')}, {counted(trace.streams, 'stream')}, "
            f"peak live {format_bytes(trace.peak_live_bytes)}"
        )
    return 0


def _facts(trace: Trace) -> dict[str, object]:
    return {
        "trace": trace.name,
        "events": trace.events,
        "allocations": trace.allocations,
        "streams": trace.streams,
        "peak_live_bytes": trace.peak_live_bytes,
    }
