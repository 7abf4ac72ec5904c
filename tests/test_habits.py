"""What a project needs beside code: files that belong together say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import smartpool

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
KINDS = [kind["directory"] for kind in PYPROJECT["tool"]["towncrier"]["type"]]
PAGES = [
    "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "changelog.d/README.md",
    "examples/README.md",
]  # fmt: skip


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_has_the_version_and_the_license():
    citation = dict(re.findall(r"^(version|license): (.*)$", text_of("CITATION.cff"), re.MULTILINE))
    assert citation == {"version": smartpool.__version__, "license": PYPROJECT["project"]["license"]}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s:]+)\)", text_of(page)):
        path = (ROOT / page).parent / target.partition("#")[0]
        assert path.exists(), f"{page}: there is no {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    names = re.findall(r"`((?:smartpool|tests|bench|docs|examples|changelog\.d)/[\w./]+)`", text_of(page))
    for name in names:
        assert (ROOT / name).exists(), f"{page}: there is no {name}"


def test_changelog_fragments_have_names_that_the_release_finds():
    explained = re.findall(r"^\| `(\w+)` \|", text_of("changelog.d/README.md"), re.MULTILINE)
    assert explained == KINDS
    for path in (ROOT / "changelog.d").iterdir():
        if path.name != "README.md":
            assert re.fullmatch(rf"(\d+|\+[\w-]+)\.({'|'.join(KINDS)})\.md", path.name), path.name
            assert path.read_text(encoding="utf-8").strip(), path.name


def test_the_workflow_runs_the_gate_and_the_one_with_a_device_is_off():
    gate, device = text_of(".github/workflows/gate.yml"), text_of(".github/workflows/gpu.yml")
    assert "- run: .ci/run\n" in gate
    for version in re.findall(r"Python :: (3\.\d+)", str(PYPROJECT["project"]["classifiers"])):
        assert re.search(rf"^ +{re.escape(version)}$", gate, re.MULTILINE), version
    assert "if: vars.GPU_RUNNER == 'true'" in device
    assert "pytest tests/gpu" in device
