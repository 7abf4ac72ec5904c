"""``smartpool completion SHELL`` prints a script that completes commands and options in that shell.

The script is made by the package shtab from the same parser that reads the arguments.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any, Final

from smartpool.errors import MissingPackageError

__all__ = ["add_parser", "run"]

_SHELLS: Final = ("bash", "zsh", "tcsh")
_EXAMPLES: Final = """\
examples:
  smartpool completion bash > ~/.local/share/bash-completion/completions/smartpool
  smartpool completion zsh > ~/.zfunc/_smartpool        (with ~/.zfunc in fpath)
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script for the completion of a shell",
        description=(__doc__ or "").replace("``", ""),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=_SHELLS, help="which shell")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if find_spec("shtab") is None:
        raise MissingPackageError(
            "completion needs the package 'shtab', which is not installed; run: pip install shtab"
        )
    import shtab  # noqa: PLC0415  an extra

    print(shtab.complete(args.whole, args.shell), end="")
    return 0
