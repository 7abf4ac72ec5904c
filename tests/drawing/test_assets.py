"""Scripts, styles and colors: what is named is there, and once."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from waiting import PATIENCE_S

import smartpool
from smartpool.drawing.assets import joined, palette, tier_color
from smartpool.live.server import _ASSETS
from smartpool.report import dump_report, picture, trace_report

PACKAGE = Path(smartpool.__file__).parent
PAGES = {
    path: path.read_text(encoding="utf-8")
    for folder in ("drawing", "report", "live")
    for path in sorted((PACKAGE / folder).iterdir())
    if path.suffix in {".js", ".css", ".html", ".py"}
}
INLINE = {"color", "columns", "share"}  # given at an element, by its style


def test_every_color_that_is_named_is_in_the_tokens():
    known = set(re.findall(r"--([\w-]+):", joined(["tokens.css"], "smartpool.drawing")))
    for path, text in PAGES.items():
        named = set(re.findall(r"var\(--([a-z][\w-]*)[,)]", text))
        named |= set(re.findall(r"palette\.(?:rgb|css)\(\"([\w-]+)\"", text))
        assert named - known <= INLINE, path.name


def test_light_and_dark_name_the_same_colors_and_none_is_black_by_mistake():
    day, night = palette(dark=False), palette(dark=True)
    assert day.keys() == night.keys()
    for color in (*day.values(), *night.values()):
        assert len(color) == 3
        assert any(color)


def test_tiers_have_colors_of_their_own_and_more_tiers_begin_again():
    names = [tier_color(number) for number in range(16)]
    assert names[:8] == names[8:]
    assert len({palette(dark=True)[name] for name in names}) == 8
    assert all(first != second for first, second in pairwise(names))


def test_a_function_of_the_kit_is_written_once():
    """What two pages need is in the kit: no script has a second one of that name."""
    defined = {}
    for path, text in PAGES.items():
        if path.suffix == ".js":
            for name in re.findall(r"^(?:async )?(?:function|class) (\w+)", text, re.MULTILINE):
                assert name not in defined, f"{name}: {path.name} and {defined[name]}"
                defined[name] = path.name


def test_every_asset_is_shipped():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = settings["tool"]["setuptools"]["package-data"]
    for path in PACKAGE.rglob("*"):
        if path.suffix in {".js", ".css", ".html"}:
            patterns = shipped.get(".".join(path.parent.relative_to(PACKAGE.parent).parts), [])
            assert any(path.match(pattern) for pattern in patterns), path


BUNDLES = {
    "picture": (picture.SCRIPTS, "smartpool.report"),
    "report": (trace_report.SCRIPTS, "smartpool.report"),
    "dump": (dump_report.SCRIPTS, "smartpool.report"),
    "live": (_ASSETS["/live.js"][0].split(), "smartpool.live"),
}


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node is installed")
@pytest.mark.parametrize(("names", "package"), BUNDLES.values(), ids=BUNDLES)
def test_the_scripts_of_a_page_go_together(names, package, tmp_path):
    """One script of several files: none may name again what another has named."""
    path = tmp_path / "page.js"
    path.write_text(joined(names, package), encoding="utf-8")
    done = subprocess.run(
        ["node", "--check", path], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
