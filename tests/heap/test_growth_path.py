"""How far it is from a request to the driver and back: Python calls and files, so that neither creeps up.

Counted by the interpreter's profiler, not by the clock. What the modelled device does inside of a driver call
is counted apart: on a GPU that is another driver's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import smartpool
from smartpool.driver import open_driver
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.units import MiB

PACKAGE = str(Path(smartpool.__file__).parent) + "/"


def trip(call):
    """Return (file, function) of each call of ours up to the driver, and how many more there are beneath."""
    ours, inside, depth = [], 0, 0

    def profile(frame, event, _argument):
        nonlocal inside, depth
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE):
            return
        path = path.removeprefix(PACKAGE)
        if event == "call":
            inside += depth > 0
            if not depth:
                ours.append((path, frame.f_code.co_name))
            depth += depth > 0 or path.startswith("driver/")
        elif event == "return" and depth:
            depth -= 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return ours, inside


@pytest.fixture
def pool():
    """A pool that grew before, with a bin for 2 MiB."""
    pool = AdvancedMemoryPoolManager(open_driver("model:1GiB"))
    pool.malloc(4 * MiB)
    pool.malloc(2 * MiB)
    yield pool
    pool.disown()


def test_one_chunk_is_few_calls_and_few_files_away(pool):
    made = pool.driver.calls["create_chunk"]
    ours, inside = trip(lambda: pool.malloc(2 * MiB))
    assert pool.driver.calls["create_chunk"] == made + 1
    assert [name for path, name in ours if path.startswith("driver/")] == [
        "create_chunk",
        "map_chunk",
        "enable_access",
    ]
    assert len(ours) + inside < 60, ours
    assert len(ours) < 40, ours
    files = {path if not path.startswith("driver/") else "the driver's" for path, _ in ours}
    assert len(files) <= 11, sorted(files)


def test_each_chunk_more_of_a_growth_adds_few_calls(pool):
    ours, inside = trip(lambda: pool.malloc(33 * MiB))
    more, more_inside = trip(lambda: pool.malloc(65 * MiB))
    chunks = 16  # of 2 MiB, which is 1/96 of the peak and less
    assert pool.driver.calls["create_chunk"] >= 2 + 17 + 17
    assert (len(more) + more_inside - len(ours) - inside) / chunks < 30


def test_a_kept_window_is_found_without_a_look_for_a_place_to_grow(pool):
    blocks = [pool.malloc(2 * MiB) for _ in range(16)]
    for block in blocks[::2]:
        pool.free(block)
    pool.free(pool.malloc(12 * MiB))
    pool.flush()
    calls = pool.driver.calls.copy()
    ours, inside = trip(lambda: pool.malloc(12 * MiB))
    assert pool.driver.calls == calls
    assert inside == 0
    assert "_find_site" not in {name for _, name in ours}
