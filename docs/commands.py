"""Writes `docs/reference/commands.md` from the parser: ``python docs/commands.py``. A test holds it up to date."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from smartpool.cli import build_parser

PAGE = Path(__file__).parent / "reference" / "commands.md"

HEAD = """\
# Commands

What `smartpool COMMAND --help` prints; [the command line](../cli.md) tells the story around it. This page is
written by `python docs/commands.py`.
"""


def page() -> str:
    """Return the page."""
    commands = next(action for action in build_parser()._actions if action.choices).choices
    return "\n".join([HEAD, *(_section(name, parser) for name, parser in commands.items())])


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"## smartpool {name}", "", _prose(parser.description or "")]
    if parser.epilog:
        lines += ["", "```text", parser.epilog.strip(), "```"]
    lines += ["", "| argument | what |", "|---|---|"]
    for action in parser._actions:
        lines.append(f"| {_written(action)} | {_cell(action.help or '', action)} |")
    return "\n".join(lines) + "\n"


def _prose(text: str) -> str:
    """Keep paragraphs; what is laid out by hand keeps its lines."""
    parts = []
    for part in re.split(r"\n\s*\n", text.strip()):
        laid_out = any(line.startswith("  ") for line in part.splitlines())
        parts.append(f"```text\n{part}\n```" if laid_out or "===" in part else part)
    return "\n\n".join(parts)


def _written(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings).replace("|", "\\|")


def _cell(text: str, action: argparse.Action) -> str:
    return (text % {**vars(action), "prog": "smartpool"}).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
