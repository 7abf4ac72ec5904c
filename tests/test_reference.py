"""The reference is whole: every public name and every command stands in it, and the site builds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import smartpool
from smartpool.cli import build_parser

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
MODULES = re.findall(
    r"automodule:: (\S+)", "".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md")))
)
INTERNAL = {"smartpool.lazy", "smartpool.cli", "smartpool.data", "smartpool.pool", "smartpool.memory", "smartpool.faces"}


def test_no_module_stands_there_twice():
    assert len(MODULES) == len(set(MODULES))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_of_the_reference_says_what_is_public(module):
    found = importlib.import_module(module)
    assert found.__doc__
    assert found.__all__
    for name in found.__all__:
        assert hasattr(found, name), name


def test_every_name_of_the_package_has_a_place():
    shown = {id(getattr(importlib.import_module(module), name)) for module in MODULES[1:] for name in
             importlib.import_module(module).__all__}  # fmt: skip
    assert "smartpool" in MODULES
    elsewhere = ("smartpool.errors", "smartpool.planner", "smartpool.trace", "smartpool.driver", "smartpool.dlpack")
    for name in smartpool.__all__:
        found = getattr(smartpool, name)
        home = getattr(found, "__module__", None) or ""
        if home.startswith(elsewhere):  # left out on the page of `smartpool`: it must be on another
            assert id(found) in shown, f"{name} of {home} is on no page of the reference"


def test_every_part_of_the_package_is_documented_or_internal():
    parts = {f"smartpool.{path.stem}" for path in (ROOT / "smartpool").iterdir() if path.suffix == ".py" or
             (path / "__init__.py").exists()}  # fmt: skip
    parts = {part for part in parts if not part.rpartition(".")[2].startswith("_")}
    exported = {getattr(getattr(smartpool, name), "__module__", "") for name in smartpool.__all__}
    covered = {module for module in parts if any(m == module or m.startswith(f"{module}.") for m in MODULES)}
    covered |= {module for module in parts if any(e == module or e.startswith(f"{module}.") for e in exported)}
    assert parts - covered - INTERNAL == set()


def test_every_command_is_described():
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    commands = next(action for action in build_parser()._actions if action.choices).choices
    for name, parser in commands.items():
        assert f"## smartpool {name}\n" in page
        for action in parser._actions:
            for option in action.option_strings:
                if option.startswith("--"):
                    assert f"`{option}" in page, f"{option} of {name}"


@pytest.mark.skipif(find_spec("myst_parser") is None, reason="the extra 'docs' is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path / "site")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").exists()
