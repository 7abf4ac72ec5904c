"""`check_allocator`: every planted bug is found by its name, what is sound passes, and programs run."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toys import BASE, CAPACITY, PLANTED, Planted, ToyPool, must_serve
from waiting import PATIENCE_S

from smartpool.errors import ConfigurationError
from smartpool.testing import (
    Contract,
    Invariant,
    ViolationError,
    check_allocator,
    host_read,
    host_write,
    hunt,
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


def found(factory, **options):
    with pytest.raises(ViolationError) as caught:
        check_allocator(factory, **{"seconds": PATIENCE_S, **options})
    return caught.value


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_every_planted_bug_is_found_by_its_name_and_its_program_shows_it(planted: Planted):
    error = found(planted.bug, **{**TOY, **planted.options})
    assert error.invariant is planted.breaks
    assert str(error).startswith(planted.breaks.value)
    assert len(error.program) <= 12
    with pytest.raises((AssertionError, MemoryError, RuntimeError, ValueError, IndexError)):
        exec(error.program.source, dict(error.program.names))


def test_every_invariant_but_the_streams_has_a_bug():
    assert {planted.breaks for planted in PLANTED} == set(Invariant) - {Invariant.STREAM_ORDER}


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


def test_a_contract_that_promises_too_much_is_found_too():
    error = found(ToyPool, alignment=64, capacity=CAPACITY)
    assert error.invariant is Invariant.ALIGNMENT
    assert "expected a multiple of 64" in error.detail


# ---------------------------------------------------------------------- what an allocator may look like


class Sized:
    """``allocate`` and ``deallocate`` with a size, as in C++."""

    def __init__(self):
        self.inner = ToyPool()

    def allocate(self, nbytes):
        return self.inner.malloc(nbytes)

    def deallocate(self, pointer, nbytes):
        if self.inner.live.get(pointer) != nbytes:
            raise ValueError(pointer)
        self.inner.free(pointer)


class Views:
    """Blocks are views of one array: buffers, not integers."""

    def __init__(self):
        self.inner = ToyPool()

    def allocate(self, nbytes):
        address = self.inner.malloc(nbytes)
        return self.inner.bytes[self.inner.span(address, nbytes)]

    def free(self, view):
        base = self.inner.bytes.__array_interface__["data"][0]
        self.inner.free(view.__array_interface__["data"][0] - base + BASE)


class SharedViews(Views):
    """Seven bytes are always the same seven."""

    def allocate(self, nbytes):
        address = self.inner.malloc(nbytes)
        if nbytes == 7:
            return self.inner.bytes[1:8]
        return self.inner.bytes[self.inner.span(address, nbytes)]

    def free(self, view):
        if len(view) != 7:
            super().free(view)


def pair():
    pool = ToyPool()
    return pool.malloc, pool.free


@pytest.mark.parametrize("factory", [Sized, Views, pair])
def test_allocators_of_every_kind(factory):
    # An empty view says that it begins where its array does.
    zero_size = "undefined" if factory is Views else "distinct"
    report = check_allocator(factory, capacity=CAPACITY, zero_size=zero_size, examples=20)
    assert report.checked[Invariant.NO_OVERLAP] > 100
    assert (Invariant.CONTENTS in report.checked) is (factory is Views)


def test_blocks_that_are_views_and_share_bytes():
    error = found(SharedViews, capacity=CAPACITY, bad_frees="undefined", zero_size="undefined", refill=False)
    assert error.invariant is Invariant.NO_OVERLAP
    with pytest.raises(AssertionError):
        exec(error.program.source, dict(error.program.names))


def test_memory_of_this_process_by_address():
    """An allocator of real addresses, the C library's; what it does with bad frees is not for us to try."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]

    def malloc(nbytes):
        if nbytes > 1 << 40:
            raise MemoryError(nbytes)
        return libc.malloc(nbytes) or 0

    report = check_allocator(
        lambda: (malloc, libc.free),
        alignment=16,
        max_bytes=1 << 16,
        bad_frees="undefined",
        bad_sizes="undefined",
        read=host_read,
        write=host_write,
        examples=20,
    )
    assert report.checked[Invariant.CONTENTS] > 500


def test_numpy_arrays_that_free_themselves():
    def malloc(nbytes):
        return np.empty(nbytes, np.uint8)

    report = check_allocator(
        lambda: (malloc, lambda block: None),
        max_bytes=10_000,
        bad_frees="undefined",
        bad_sizes="undefined",
        errors=(MemoryError, ValueError),
        examples=20,
    )
    assert report.checked[Invariant.CONTENTS] > 500


# ---------------------------------------------------------------------- budgets, seeds, errors


class DependsOnNothing(ToyPool):
    """Overlaps once in a process, and then never again."""

    happened = False

    def malloc(self, nbytes):
        address = super().malloc(nbytes)
        if len(self.live) > 3 and not DependsOnNothing.happened:
            DependsOnNothing.happened = True
            self.live[BASE] = self.live.pop(address)
            return BASE
        return address


def test_what_does_not_happen_twice_is_told_all_the_same():
    error = found(DependsOnNothing, capacity=CAPACITY)
    assert error.invariant is Invariant.NO_OVERLAP
    assert "does not do the same twice" in str(error)


def test_a_seed_repeats_the_search():
    first, second = (check_allocator(ToyPool, capacity=CAPACITY, examples=30, seed=7) for _ in range(2))
    assert (first.steps, first.checked) == (second.steps, second.checked)
    assert check_allocator(ToyPool, capacity=CAPACITY, examples=30, seed=8).steps != first.steps


def test_the_budget_of_seconds_ends_the_search(monkeypatch):
    looks = itertools.count()  # ten looks at the clock a second
    monkeypatch.setattr(hunt, "time", SimpleNamespace(monotonic=lambda: next(looks) / 10))
    report = check_allocator(ToyPool, capacity=CAPACITY, examples=100_000, seconds=3)
    assert 0 < report.examples < 30


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"alignment": 3}, "alignment"),
        ({"capacity": 0}, "capacity"),
        ({"zero_size": "maybe"}, "zero_size"),
        ({"bad_frees": "crash"}, "bad_frees"),
        ({"read": "read"}, "read"),
        ({"faults": True}, "faults"),
        ({"streams": 2}, "streams"),
        ({"examples": 0}, "examples"),
        ({"seconds": -1}, "seconds"),
        ({"accounting": lambda pool: {"used": 0}}, "accounting"),
    ],
)
def test_a_wrong_option_is_named(options, field):
    with pytest.raises(ConfigurationError) as caught:
        check_allocator(ToyPool, **options)
    assert caught.value.field == field


def test_what_is_no_allocator_is_told():
    with pytest.raises(ConfigurationError, match="malloc and free"):
        check_allocator(list)
    with pytest.raises(ConfigurationError, match="address"):
        check_allocator(lambda: (lambda nbytes: object(), lambda block: None), bad_sizes="undefined")
    with pytest.raises(ConfigurationError, match="factory"):
        Contract(factory=None)


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
