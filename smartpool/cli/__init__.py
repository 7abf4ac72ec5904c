"""The command line: one module a subcommand, and here what they share, the way in and the way out.

A subcommand is a module with ``add_parser(subparsers)``, which adds itself and sets the default
``run``, and ``run(args) -> int``, which returns the exit status. Whatever goes wrong leaves through
`main`, so that every command fails alike: one line on standard error, and a status that a script
can tell apart.

====== ==========================================================================
status meaning
====== ==========================================================================
0      done
2      unusable arguments, files, devices or packages
3      a request failed for lack of memory
130    interrupted (Ctrl-C)
141    the reader of our output went away (``smartpool ... | head``)
====== ==========================================================================
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from smartpool._version import __version__
from smartpool.cli import advise, completion, convert, demo, info, plan, replay, report, serve, watch
from smartpool.cli.targets import explain
from smartpool.errors import OutOfMemoryError, SmartPoolError
from smartpool.report.text import printable

__all__ = ["main"]

_SUBCOMMANDS: Final = (demo, replay, report, advise, plan, convert, watch, serve, info, completion)

OK: Final = 0
UNUSABLE: Final = 2
OUT_OF_MEMORY: Final = 3
INTERRUPTED: Final = 130
NOBODY_READS: Final = 141

_EPILOG: Final = """\
examples:
  smartpool demo                          see it work, on a machine without a GPU
  smartpool replay trace.npz              what would each allocator have reserved?
  smartpool replay trace.npz --json       the same for programs
  smartpool report trace.npz              a page to open in a browser: who held the memory, and when
  smartpool advise trace.npz              what is worth changing for this program?
  smartpool plan graph.csv                where to put buffers whose lifetimes are known
  smartpool serve                         a page in the browser that shows memory as it changes
  smartpool watch http://127.0.0.1:8765   the same in the terminal
  smartpool info                          versions and devices of this machine

Tables go to standard output, progress and errors to standard error. NO_COLOR turns colours off.
Exit status: 0 done, 2 unusable arguments or files, 3 out of memory, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv
        The arguments without the program's name; None for those of the process.

    Examples
    --------
    >>> main(["--version"])
    smartpool 0.1.0
    0
    """
    try:
        status = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_standard_output()
        return NOBODY_READS
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    parser = argparse.ArgumentParser(
        prog="smartpool",
        description="A GPU memory pool in pure Python: see what allocators do with your memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"smartpool {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for subcommand in _SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    parser.set_defaults(whole=parser)  # which `completion` prints a script for
    return parser


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as leaving:  # argparse leaves so after --help, --version and usage errors
        return leaving.code if isinstance(leaving.code, int) else UNUSABLE
    if args.command is None:
        parser.print_help(sys.stderr)
        return UNUSABLE
    try:
        return int(args.run(args))
    except OutOfMemoryError as error:
        return _fail(error, OUT_OF_MEMORY)
    except BrokenPipeError:
        raise
    except SmartPoolError as error:
        return _fail(error, UNUSABLE)
    except OSError as error:
        return _fail(explain(error), UNUSABLE)
    except KeyboardInterrupt:
        print("smartpool: interrupted", file=sys.stderr)
        return INTERRUPTED


def _fail(error: Exception | str, status: int) -> int:
    """Tell the error in one line: messages hold file names, and those may hold anything."""
    print(f"smartpool: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return status


def _silence_standard_output() -> None:
    """Keep the interpreter from flushing into the closed pipe once more at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):  # standard output is no file: there is nothing to flush
        pass
