"""Instances of others: where they lie, or why they are not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_folder() -> Path:
    """Return where instances lie that are not ours to distribute."""
    return Path(os.environ.get("SMARTPOOL_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture
def instances():
    """Skip where the instances of others are absent."""
    folder = shared_folder() / "planner"
    if not folder.is_dir():
        pytest.skip(f"no planning instances in {folder}; set SMARTPOOL_SHARED")
    return folder


@pytest.fixture
def traces():
    """Skip where the recorded traces are absent."""
    folder = shared_folder() / "traces"
    if not folder.is_dir():
        pytest.skip(f"no traces in {folder}; set SMARTPOOL_SHARED")
    return folder
