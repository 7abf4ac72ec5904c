"""Let the tests of this folder, and the processes that they spawn, import the kit."""

import os
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("sharing_contract")
KIT = str(Path(__file__).parent / "kit")
sys.path.insert(0, KIT)

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # descriptors that stand for memory are Linux's


@pytest.fixture(autouse=True)
def _path_of_children(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [KIT, os.environ.get("PYTHONPATH")])))
