"""``smartpool completion SHELL`` prints a script that completes commands, options and values in that shell.

The script is made by the package shtab from the same parser that reads the arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any, Final

from smartpool.cli.arguments import add_command
from smartpool.config import POLICIES
from smartpool.errors import MissingPackageError
from smartpool.trace.baselines import BASELINES
from smartpool.trace.bundled import bundled_names
from smartpool.trace.optimum import OPTIMUM

__all__ = ["add_parser", "run"]

_SHELLS: Final = ("bash", "zsh", "tcsh", "fish")
_EXAMPLES: Final = """\
examples:
  smartpool completion bash > ~/.local/share/bash-completion/completions/smartpool
  smartpool completion zsh > ~/.zfunc/_smartpool        (with ~/.zfunc in fpath)
  smartpool completion fish > ~/.config/fish/completions/smartpool.fish
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers, __name__, run, help="print a script for the completion of a shell", examples=_EXAMPLES
    )
    parser.add_argument("shell", choices=_SHELLS, help="which shell")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if find_spec("shtab") is None:
        raise MissingPackageError(
            "completion needs the package 'shtab' of the extra 'cli', which is not installed; "
            "run: pip install shtab"
        )
    import shtab  # noqa: PLC0415  an extra

    if args.shell not in shtab.SUPPORTED_SHELLS:
        raise MissingPackageError(
            f"expected a shtab that knows {args.shell}, got {shtab.__version__}; run: pip install -U shtab"
        )
    for command in _commands(args.whole):
        for action in command._actions:  # noqa: SLF001  shtab reads the same
            values = _values(action)
            if values is not None:
                action.complete = values  # type: ignore[attr-defined]  # where shtab looks for it
    print(shtab.complete(args.whole, args.shell), end="")
    return 0


def _commands(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    commands: Any = next(action for action in parser._actions if action.choices)  # noqa: SLF001
    return commands.choices.values()  # type: ignore[no-any-return]


def _values(action: argparse.Action) -> Mapping[str, Any] | None:
    """Return how the shells complete the value of an argument, by what it is called; None for no way."""
    name = str(action.metavar or action.dest)
    if action.nargs == 0 or action.choices is not None:
        return None
    if name in ("TRACE", "URL|TRACE", "IN", "OUT") or name.startswith("FILE"):
        return _words("traces", bundled_names(), files=True)
    words = {
        "against": ("all", "none", *BASELINES, OPTIMUM),
        "policy": POLICIES,
        "device": ("cpu", "model:141GiB", "cuda:0"),
    }.get(action.dest)
    return None if words is None else _words(action.dest, words)


def _words(name: str, words: Iterable[str], *, files: bool = False) -> Mapping[str, Any]:
    """Return what shtab wants for each shell: one of `words`, or with `files` the name of a file as well."""
    listed, function = " ".join(words), f"_smartpool_{name}"
    bash_files, zsh_files, fish_files = (
        ('; compgen -f -- "$1"', "; _files", " (__fish_complete_path (commandline -ct))")
        if files
        else ("", "", "")
    )
    return {
        "bash": function,
        "zsh": function,
        "tcsh": "f" if files else f"({listed})",
        "fish": listed + fish_files,
        "preamble": {
            "bash": f'{function}() {{ compgen -W "{listed}" -- "$1"{bash_files}; }}',
            "zsh": f"{function}() {{ compadd -- {listed}{zsh_files}; }}",
        },
    }
