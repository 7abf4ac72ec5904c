"""`check_allocator`: every planted bug is found by its name, what is sound passes, and programs run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from attacks import found
from toys import CAPACITY, PLANTED, Planted, ToyPool, must_serve
from waiting import PATIENCE_S

from smartpool.testing import (
    Invariant,
    check_allocator,
)

KIT = Path(__file__).parents[1] / "kit"


TOY = {
    "capacity": CAPACITY,
    "alignment": 16,
    "zero_size": "distinct",
    "accounting": "figures",
    "check": "check",
    "trim": "trim",
    "read": "read",
    "write": "write",
}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_every_planted_bug_is_found_by_its_name_and_its_program_shows_it(planted: Planted):
    error = found(planted.bug, **{**TOY, **planted.options})
    assert error.invariant is planted.breaks
    assert str(error).startswith(planted.breaks.value)
    assert len(error.program) <= 12
    with pytest.raises((AssertionError, MemoryError, RuntimeError, ValueError, IndexError)):
        exec(error.program.source, dict(error.program.names))


def test_a_sound_pool_passes_and_the_report_says_what_was_looked_at():
    report = check_allocator(ToyPool, **TOY, examples=150, must_serve=must_serve, seconds=PATIENCE_S)
    assert report.examples == 150
    assert set(report.unchecked) == {Invariant.STREAM_ORDER}
    assert "no overlap" in str(report)
    assert "check_stream_order" in str(report)


@pytest.mark.parametrize("planted", [PLANTED[0], PLANTED[6], PLANTED[11]], ids=lambda planted: planted.name)
def test_the_program_of_a_bug_passes_on_a_sound_pool(planted):
    """Its assertions are about the allocator: they hold where the bug is not."""
    source = found(planted.bug, **{**TOY, **planted.options}).program.source
    exec(source.replace(planted.name, "ToyPool"), {})


def test_without_hypothesis_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import smartpool\n"
        "try:\n    import smartpool.testing\n"
        "except smartpool.MissingPackageError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "run: pip install hypothesis\n" in done.stdout


def test_outside_of_pytest():
    code = (
        f"import sys; sys.path.append({str(KIT)!r})\n"
        "from smartpool.testing import check_allocator\n"
        "from toys import RoundsDown\n"
        "check_allocator(RoundsDown, capacity=4096)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "NoOverlapError: no overlap: b [0x100010, +1) and a [0x100000, +17) share bytes" in done.stderr
    assert "pool = RoundsDown()\n" in done.stderr
    assert not done.stdout
