"""``smartpool plan``: offsets for intervals with known lifetimes.

The input is CSV with the columns ``id,lower,upper,size`` (``alignment``, ``priority``, ``gaps`` and
``fixed_offset`` may follow), or a trace, bundled or in any format that ``smartpool replay`` reads. Lifetimes
are half-open. A file named - is standard input or standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Final

from smartpool.cli.arguments import add_command, seconds_of, size_of
from smartpool.cli.replays import find_trace
from smartpool.cli.targets import check_target, read_from, tell, written_to
from smartpool.csv_rows import first_row
from smartpool.errors import InvalidRequestError
from smartpool.files import open_regular
from smartpool.planner.intervals import IntervalSet
from smartpool.planner.plans import Plan
from smartpool.planner.portfolio import solve
from smartpool.planner.reading import is_interval_header, read_csv, write_csv
from smartpool.report.text import counted, printable
from smartpool.trace.importers.events_csv import is_event_header
from smartpool.trace.importers.rmm_log import is_rmm_header
from smartpool.units import format_size

__all__ = ["add_parser", "run"]

DOES_NOT_FIT: Final = 3
_HEAD_BYTES: Final = 4096

_EPILOG: Final = """\
examples:
  smartpool plan graph.csv                            the lowest plan in 10 s
  smartpool plan graph.csv --capacity 1MiB            any plan that fits; status 3 when none was found
  smartpool plan multistream-mix --picture plan.svg   how a recorded run could have been laid out
  smartpool plan graph.csv --output placed.csv --json

Exit status: 0 done, 2 unusable input, 3 the capacity was not met. Ctrl-C ends the search and keeps
the best plan so far.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``plan`` to the command line."""
    parser = add_command(
        subparsers, __name__, run, help="give intervals with known lifetimes their offsets", examples=_EPILOG
    )
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="intervals as CSV, or a trace (a file, or a bundled one)"
    )
    parser.add_argument(
        "--capacity",
        metavar="SIZE",
        type=size_of,
        help="bytes at hand, such as 80GiB: stop at a plan that fits",
    )
    parser.add_argument(
        "--time-limit", metavar="S", type=seconds_of, help="seconds (default: 10, and 50 us an interval)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="same seed, same plan (default: 0)")
    parser.add_argument(
        "-o", "--output", metavar="FILE.csv", type=Path, help="write the intervals with their offsets"
    )
    parser.add_argument("--picture", metavar="FILE.svg", type=Path, help="draw the plan as SVG")
    parser.add_argument("--progress", action="store_true", help="tell each better plan on standard error")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Plan a file and return the exit status."""
    prints = "--json" if args.json else None
    check_target(args.output, reads=[args.file], endings=(".csv",), prints=prints)
    check_target(
        args.picture, reads=[args.file], endings=(".svg",), prints=prints or (args.output and "the plan")
    )
    if args.output and args.picture and args.output.resolve() == args.picture.resolve():
        raise InvalidRequestError(f"{args.output}: expected a file for --output and another for --picture")
    with read_from(args.file) as path:
        intervals = _read(str(args.file), path)
    plan = solve(
        intervals,
        capacity=args.capacity,
        time_limit=args.time_limit,
        seed=args.seed,
        progress=_ProgressPrinter() if args.progress else None,
    )
    if args.output is not None:
        with written_to(args.output) as target:
            write_csv(target, intervals, plan.offsets)
    if args.picture is not None:
        # Drawing is for those who ask.
        from smartpool.report.page import write_page  # noqa: PLC0415
        from smartpool.report.plan_picture import plan_picture  # noqa: PLC0415

        with written_to(args.picture) as target:
            write_page(target, plan_picture(intervals, plan, title=path.stem, capacity=args.capacity))
    if args.json:
        print(json.dumps(_document(path.stem, intervals, plan), indent=1))
    else:
        tell(_text(path.name, intervals, plan), args.output, args.picture)
    return DOES_NOT_FIT if plan.fits is False else 0


def _read(name: str, path: Path) -> IntervalSet:
    """Read CSV of intervals, or whatever the trace readers know: by what is in the file."""
    if path.is_file() and _has_intervals(path):
        return read_csv(path)
    trace = find_trace(str(path) if path.is_file() else name)
    return IntervalSet.from_events(trace.op, trace.allocation_numbers(), trace.size)


def _has_intervals(path: Path) -> bool:
    """Whether a file is CSV of intervals, or is to be told what it lacks as such."""
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    cells = first_row(head)
    is_table = len(cells) > 1 and not cells[0].startswith(("{", "["))  # which is JSON
    is_table &= not is_event_header(cells) and not is_rmm_header(cells)
    return is_interval_header(cells) or (is_table and all(map(str.isprintable, cells)))


def _document(instance: str, intervals: IntervalSet, plan: Plan) -> dict[str, object]:
    return {
        "schema": 1,
        "instance": instance,
        "intervals": len(intervals),
        "load_bytes": plan.load,
        "height_bytes": plan.height,
        "gap": plan.gap,
        "seconds": plan.seconds,
        "method": plan.method,
        "proved_optimal": plan.proved_optimal,
        "capacity_bytes": plan.capacity,
        "fits": plan.fits,
    }


def _text(name: str, intervals: IntervalSet, plan: Plan) -> str:
    proof = "optimal" if plan.proved_optimal else "not proved optimal"
    lines = [
        f"{printable(name)}: {counted(len(intervals), 'interval')}",
        f"  load    {plan.load:>18,} bytes  ({format_size(plan.load)}): no plan is lower",
        f"  height  {plan.height:>18,} bytes  ({format_size(plan.height)}), {plan.gap:.3%} above it, {proof}",
    ]
    if plan.capacity is not None:
        verdict = "fits" if plan.fits else "does not fit"
        lines.append(f"  {verdict} into {counted(plan.capacity, 'byte')} ({format_size(plan.capacity)})")
    lines.append(f"  by {plan.method} in {plan.seconds:.2f} s")
    return "\n".join(lines)


class _ProgressPrinter:
    """Tell better plans on standard error, but not more often than a reader follows."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, plan: Plan) -> None:
        now = time.monotonic()
        if now - self.last >= 0.1 or plan.proved_optimal:
            self.last = now
            print(f"{plan.seconds:8.2f} s  {plan.gap:9.4%} above the load  {plan.method}", file=sys.stderr)
