"""The command line: one module a subcommand, and here what they share, the way in and the way out.

A subcommand is a module with ``add_parser(subparsers)``, which adds itself and sets the default
``run``, and ``run(args) -> int``, which returns the exit status. Whatever goes wrong leaves through
`main`, so that every command fails alike: one line on standard error, and a status that a script
can tell apart.

====== ==========================================================================
status meaning
====== ==========================================================================
0      done
2      unusable arguments, files, devices or packages, or an output that cannot be written
3      a request failed for lack of memory
130    interrupted (Ctrl-C)
141    the reader of our output went away (``smartpool ... | head``)
====== ==========================================================================

This module imports nothing that takes long: Ctrl-C is told in a line from the first moment on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from smartpool._version import __version__
from smartpool.errors import OutOfMemoryError, SmartPoolError
from smartpool.files import explain
from smartpool.report.text import printable

__all__ = ["main"]

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
  zcat log.csv.gz | smartpool replay -    a file named - is standard input, or standard output
  smartpool serve                         a page in the browser that shows memory as it changes
  smartpool watch http://127.0.0.1:8765   the same in the terminal
  smartpool info                          versions and devices of this machine

Tables go to standard output, progress and errors to standard error. NO_COLOR turns colors off.
Exit status: 0 done, 2 unusable arguments, files or output, 3 out of memory, 130 interrupted, 141 the
reader of the output went away.
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
        _mend_standard_streams()
        status = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_standard_output()
        return NOBODY_READS
    except OSError as error:
        _silence_standard_output()
        return _fail(f"standard output cannot be written: {explain(error)}; send it elsewhere", UNUSABLE)
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    from smartpool.cli import advise, completion, convert, demo, info, plan, replay, report, serve, watch  # noqa: PLC0415  what `main` tells in one line may happen meanwhile

    parser = _Parser(
        prog="smartpool",
        description="A GPU memory pool in pure Python: see what allocators do with your memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"smartpool {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for subcommand in (demo, replay, report, advise, plan, convert, watch, serve, info, completion):
        subcommand.add_parser(subparsers)
    parser.set_defaults(whole=parser)  # which `completion` prints a script for
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that tells when its help cannot be written, as every other output is told."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


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
    except SmartPoolError as error:
        return _fail(error, UNUSABLE)
    except OSError as error:
        if error.filename is None:  # then it is of standard output
            raise
        return _fail(explain(error), UNUSABLE)


def _fail(error: Exception | str, status: int) -> int:
    """Tell the error in one line: messages hold file names, and those may hold anything."""
    _tell(f"error: {' '.join(str(error).split())}")
    return status


def _tell(text: str) -> None:
    """Write a line to standard error, if anybody can: the status says it all the same."""
    with contextlib.suppress(OSError):
        print(f"smartpool: {printable(text)}", file=sys.stderr)


def _mend_standard_streams() -> None:
    """Let closed streams fail when they are written to, and names in other scripts be written somehow."""
    if sys.stdout is None:
        descriptor = os.open(os.devnull, os.O_RDONLY)  # which also keeps other files from becoming it
        sys.stdout = open(descriptor, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _silence_standard_output() -> None:
    """Keep the interpreter from flushing into what cannot be written once more at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):  # standard output is no file: there is nothing to flush
        pass
