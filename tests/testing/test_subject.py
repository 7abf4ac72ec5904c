from __future__ import annotations

import pytest
from attacks import found
from toys import BASE, CAPACITY, ToyPool
from waiting import PATIENCE_S

from smartpool.errors import ConfigurationError
from smartpool.testing import (
    Contract,
    Invariant,
    check_allocator,
)


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
    report = check_allocator(factory, capacity=CAPACITY, zero_size=zero_size, examples=20, seconds=PATIENCE_S)
    assert report.checked[Invariant.NO_OVERLAP] > 100
    assert (Invariant.CONTENTS in report.checked) is (factory is Views)


def test_blocks_that_are_views_and_share_bytes():
    error = found(SharedViews, capacity=CAPACITY, bad_frees="undefined", zero_size="undefined", refill=False)
    assert error.invariant is Invariant.NO_OVERLAP
    with pytest.raises(AssertionError):
        exec(error.program.source, dict(error.program.names))


def test_what_is_no_allocator_is_told():
    with pytest.raises(ConfigurationError, match="malloc and free"):
        check_allocator(list)
    with pytest.raises(ConfigurationError, match="address"):
        check_allocator(lambda: (lambda nbytes: object(), lambda block: None), bad_sizes="undefined")
    with pytest.raises(ConfigurationError, match="factory"):
        Contract(factory=None)
