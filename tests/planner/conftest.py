"""What the planner's tests share: instances that Hypothesis invents, and instances of others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import strategies as st

from smartpool.planner import IntervalSet


def shared_folder() -> Path:
    """Return where instances lie that are not ours to distribute."""
    return Path(os.environ.get("SMARTPOOL_SHARED", Path(__file__).parents[3] / "shared"))


@st.composite
def interval_sets(draw, *, most=12, horizon=12, largest=16, aligned=False, fixed=False, empty=True):
    """Draw small instances, dense enough to be hard."""
    count = draw(st.integers(0, most))
    start = [draw(st.integers(0, horizon - 1)) for _ in range(count)]
    end = [draw(st.integers(begin if empty else begin + 1, horizon)) for begin in start]
    size = draw(st.lists(st.integers(0 if empty else 1, largest), min_size=count, max_size=count))
    alignment = [draw(st.sampled_from([1, 2, 4, 8])) for _ in range(count)] if aligned else None
    held = None
    if fixed and count:
        # One of them is fixed, so that no two collide.
        held = [-1] * count
        row = draw(st.integers(0, count - 1))
        held[row] = draw(st.integers(0, 5)) * (alignment[row] if alignment else 1)
    return IntervalSet.from_arrays(start, end, size, alignment=alignment, fixed=held)


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
