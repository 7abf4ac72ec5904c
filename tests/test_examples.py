"""Every example runs and prints what it says, without a warning."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from waiting import PATIENCE_S

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(path, tmp_path):
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")), clean=True)
    expected = textwrap.dedent(said.partition("Prints::\n\n")[2]).strip()
    assert expected, f"{path.name}: its docstring ends with 'Prints::' and the output"
    done = subprocess.run(
        [sys.executable, "-W", "error", path],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == expected


def test_every_example_is_in_the_table():
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert EXAMPLES
    for path in EXAMPLES:
        assert f"| `{path.name}` |" in table
