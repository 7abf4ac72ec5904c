"""The reference is whole: every public name and every command stands in it, and the site builds."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import zlib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from waiting import PATIENCE_S

import smartpool

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "smartpool"
INTERNAL = {  # one a line, so that two people may change it
    "background_optimizer",
    "cli",
    "containers",
    "copying",
    "csv_rows",
    "debug",
    "descriptors",
    "drawing",
    "files",
    "forks",
    "free_ranges",
    "graphs",
    "heap",
    "interpreters",
    "json_shapes",
    "lazy",
    "log",
    "maintenance",
    "manager",
    "npz",
    "owner",
    "pool",
    "pool_set",
    "scopes",
    "sleep",
    "steps",
    "streams",
    "telemetry",
    "tiers",
    "values",
}
"""Parts whose names are public only where `smartpool` exports them."""


def script(name):
    """Return one of the scripts beside the pages, imported."""
    spec = spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = script("conf").modules()


def home_of(name):
    return getattr(getattr(smartpool, name), "__module__", None) or ""


def test_no_module_stands_there_twice():
    assert len(MODULES) == len(set(MODULES))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_of_the_reference_says_what_is_public(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert module.__all__
    for public in module.__all__:
        assert hasattr(module, public), public


def test_every_part_of_the_package_is_public_or_internal():
    parts = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    parts = {part for part in parts if not part.startswith("_")}
    known = {module.split(".")[1] for module in MODULES if "." in module}
    known |= {home_of(name).split(".")[1] for name in smartpool.__all__ if "." in home_of(name)}
    assert parts - known == INTERNAL - known


def test_tab_completion_offers_the_modules_of_the_reference():
    offered = {name for name in dir(smartpool) if isinstance(getattr(smartpool, name), ModuleType)}
    assert offered == {module.split(".")[1] for module in MODULES if "." in module}


def test_every_command_is_described_as_it_is():
    commands = script("commands")
    assert commands.PAGE.read_text("utf-8") == commands.page(), "run: python docs/commands.py"


@pytest.mark.skipif(find_spec("myst_parser") is None, reason="the extra 'docs' is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", site]
    built = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert built.returncode == 0, built.stderr
    assert (site / "index.html").exists()
    shown = inventory(site)
    kinds = [kind for name in smartpool.__all__ if inspect.isclass(kind := getattr(smartpool, name))]
    missing = [
        f"{kind.__name__}.{name}"
        for kind in kinds
        for name in dir(kind)
        if not name.startswith("_") and not from_python(kind, name) and not described(kind, name, shown)
    ]
    assert missing == []


def from_python(kind, name):
    return any(name in vars(base) for base in kind.__mro__ if base.__module__ == "builtins")


def described(kind, name, shown):
    """Whether a public member has an entry of its own, or stands in the docstring of its class."""
    modules = ("smartpool", "smartpool.driver", "smartpool.errors", "smartpool.planner", "smartpool.sharing")
    lines = inspect.getdoc(kind).splitlines()
    inherited = [line for base in kind.__mro__[1:-1] for line in (inspect.getdoc(base) or "").splitlines()]
    return any(f"{module}.{kind.__name__}.{name}" in shown for module in modules) or any(
        name in line.split(", ") for line in lines + inherited
    )


def inventory(site):
    """Return the names of all objects that a built site describes."""
    _, packed = (site / "objects.inv").read_bytes().split(b"compressed using zlib.\n")
    return {line.split()[0] for line in zlib.decompress(packed).decode("utf-8").splitlines()}
