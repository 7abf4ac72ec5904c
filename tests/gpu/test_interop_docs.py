"""The blocks of `docs/interop` that need a GPU, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import smartpool
from smartpool.driver import open_driver
from smartpool.errors import DeviceNotFoundError, DriverNotInstalledError

try:
    open_driver("cuda:0").close()
except (DriverNotInstalledError, DeviceNotFoundError) as error:
    pytest.skip(str(error), allow_module_level=True)

ROOT = Path(smartpool.__file__).parents[1]
BLOCKS = [
    pytest.param(match[1], id=f"{page.stem}-{number}")
    for page in sorted((ROOT / "docs" / "interop").glob("*.md"))
    for number, match in enumerate(
        re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize("code", BLOCKS)
def test_the_block_runs(code):
    for package in re.findall(r"^(?:import|from) (torch|cupy|numba|rmm)\b", code, re.MULTILINE):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
