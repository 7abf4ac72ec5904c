"""How a command adds itself to the parser, and how arguments are read that several commands have."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, Final

from smartpool.config import POLICIES, Policy, SmartPoolConfig
from smartpool.errors import ConfigurationError, InvalidSizeError
from smartpool.trace.baselines import BASELINES, PEERS
from smartpool.trace.optimum import OPTIMUM
from smartpool.units import parse_size

__all__ = ["add_against", "add_capacity", "add_command", "add_policy", "count_of", "seconds_of", "size_of"]

_MOST_PASSES: Final = 100_000  # each has a row in the JSON


def add_command(
    subparsers: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,  # noqa: A002 - argparse's name
    examples: str | None = None,
) -> argparse.ArgumentParser:
    """Add the subcommand of a module, with the module's name and docstring, and return its parser.

    Parameters
    ----------
    subparsers
        Where `argparse` keeps them.
    name
        The module's.
    run
        Runs it, and returns the exit status.
    help
        A line for the list of commands.
    examples
        Text below the arguments.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name.rpartition(".")[2],
        help=help,
        description=(sys.modules[name].__doc__ or "").replace("``", ""),
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_policy(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add ``--policy``; `optional` leaves None where it is not given."""
    usual = SmartPoolConfig().policy
    parser.add_argument(
        "--policy",
        type=policy_of,
        default=None if optional else usual,
        metavar="POLICY",
        help=f"SmartPool's policy: {', '.join(POLICIES)}, or a number from 0 (least memory) to 1 (least "
        f"driver time) (default: {usual})",
    )


def add_against(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add ``--against``; `optional` leaves None where it is not given."""
    parser.add_argument(
        "--against",
        type=baselines_of,
        default=None if optional else PEERS,
        metavar="NAMES",
        help=f"baselines, separated by commas, or all, or none: {', '.join(BASELINES)}, or {OPTIMUM}, the "
        f"plan of the whole trace (default: {','.join(PEERS)})",
    )


def add_capacity(parser: argparse.ArgumentParser) -> None:
    """Add ``--capacity``."""
    parser.add_argument(
        "--capacity",
        type=size_of,
        metavar="SIZE",
        help="make the device smaller, as 24GiB or a number of bytes; requests may then fail",
    )


def baselines_of(text: str) -> tuple[str, ...]:
    """Return the baselines that ``--against`` names, each once, in order."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if names == ["none"]:
        return ()
    chosen = tuple(dict.fromkeys(BASELINES if names == ["all"] else names))
    unknown = [name for name in chosen if name not in BASELINES and name != OPTIMUM]
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(
            f"expected names out of {', '.join(BASELINES)}, {OPTIMUM}, or all, or none, got {text!r}"
        )
    return chosen


def count_of(text: str) -> int:
    """Return the number that ``--passes`` names."""
    count = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if not 1 <= count <= _MOST_PASSES:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {_MOST_PASSES}, got {text!r}")
    return count


def policy_of(text: str) -> Policy | float:
    """Return the policy that ``--policy`` names, or its place on the axis."""
    try:
        return SmartPoolConfig.from_mapping({"policy": text if text in POLICIES else float(text)}).policy
    except (ValueError, ConfigurationError):
        names = ", ".join(POLICIES)
        raise argparse.ArgumentTypeError(
            f"expected one of {names}, or a number from 0 to 1, got {text!r}"
        ) from None


def size_of(text: str) -> int:
    """Return the bytes that ``--capacity`` names."""
    try:
        size = parse_size(text)
    except InvalidSizeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size == 0:
        raise argparse.ArgumentTypeError("expected a size above 0")
    return size


def seconds_of(text: str) -> float:
    """Return the seconds that ``--time-limit`` names."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds of at least 0, got {text!r}")
    return seconds
