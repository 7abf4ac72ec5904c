"""Let the tests of this folder import the kits of `tests/driver` and `tests/sharing`."""

import os
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("driver_contract", "driver_machine", "sharing_contract")
SHARING = str(Path(__file__).parents[1] / "sharing" / "kit")
sys.path[:0] = [str(Path(__file__).parents[1] / "driver" / "kit"), SHARING]


@pytest.fixture(autouse=True)
def _path_of_children(monkeypatch):
    """Let processes that tests spawn import the kit of sharing."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [SHARING, os.environ.get("PYTHONPATH")])))
