"""`docs/cli.md` leaves out no command and no field of what they print."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from smartpool import cli
from smartpool.trace.replay import Run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = cli.build_parser()
    (subparsers,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(subparsers.choices)


@pytest.mark.parametrize("name", commands())
def test_every_command_has_a_section_and_an_example(name):
    assert f"\n## {name}\n" in PAGE
    assert f"\n$ smartpool {name}" in PAGE


@pytest.mark.parametrize("field", [field.name for field in fields(Run) if field.name != "timeline"])
def test_every_field_of_a_run_is_told(field):
    assert f"`{field}`" in PAGE


@pytest.mark.parametrize(
    "status", [cli.OK, cli.UNUSABLE, cli.OUT_OF_MEMORY, cli.INTERRUPTED, cli.NOBODY_READS]
)
def test_every_exit_status_is_told(status):
    assert f"\n| {status} | " in PAGE


@pytest.mark.parametrize(("name", "parser"), commands().items())
def test_every_option_says_what_it_does(name, parser):
    assert [action.dest for action in parser._actions if not action.help] == []


def texts():
    for folder in ("smartpool", "docs", "bench"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md", ".sh"})
    yield from ROOT.glob("*.md")


def test_nobody_is_sent_to_a_foreign_package():
    """The name `smartpool` on the public index belongs to somebody else: installs go by the clone."""
    foreign = re.compile(r"pip install[^`\n]*[ '\"]smartpool(?![\w/.-])")
    assert foreign.search("pip install -q 'smartpool[cli]'")
    assert [path for path in texts() if foreign.search(path.read_text(encoding="utf-8"))] == []
