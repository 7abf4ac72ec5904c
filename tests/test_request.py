"""Requests: every field is checked once, and the message names it."""

from __future__ import annotations

import enum
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import InvalidRequestError, InvalidSizeError
from smartpool.request import ACCESS_PATTERNS, AllocationRequest, checked_size


class Size(enum.IntEnum):
    PAGE = 4096


class Indexed:
    def __index__(self):
        return 12


@given(st.integers(0, 1 << 70))
def test_every_whole_size_is_a_size(size):
    assert checked_size(size) == size
    assert AllocationRequest(size=size).size == size


@pytest.mark.parametrize(
    ("size", "nbytes"), [(np.int64(5), 5), (np.uint8(200), 200), (Size.PAGE, 4096), (Indexed(), 12)]
)
def test_what_is_as_good_as_an_integer_becomes_one(size, nbytes):
    checked = checked_size(size)
    assert checked == nbytes
    assert type(checked) is int


@pytest.mark.parametrize("bad", [-1, 1.0, math.nan, True, np.float64(4), "4", None, [4], b"4", 4 + 0j])
def test_a_bad_size(bad):
    with pytest.raises(InvalidSizeError, match="expected a size"):
        AllocationRequest(size=bad)


@pytest.mark.parametrize(
    ("field", "bad"),
    [("device_id", bad) for bad in (-1, 0.0, "0", True)]
    + [("priority", bad) for bad in (None, 1.0, "high", False)]
    + [("hint_lifetime", bad) for bad in (-1, math.nan, "long", True, 10**400)]
    + [("hint_access_pattern", bad) for bad in (1, b"x", "banana", "", "Training", ["training"])]
    + [("alignment", bad) for bad in (0, -512, 3, 513, 512.0, "512", True)],
)
def test_a_bad_field_is_named(field, bad):
    with pytest.raises(InvalidRequestError, match=f"^{field}: expected"):
        AllocationRequest(size=1, **{field: bad})


FIELDS = ("device_id", "priority", "hint_lifetime", "alignment")
VALUES = st.sampled_from(
    [0, 1, 512, 10**400, -(10**400), 1 << 70, 0.0, math.inf, "1", None, True, Size.PAGE]
) | st.sampled_from([np.int64(512), np.float32(1), np.bool_(1), Indexed(), Fraction(1, 2), (), object()])


@given(st.sampled_from(FIELDS), VALUES)
def test_every_value_is_taken_as_a_plain_one_or_refused_by_name(field, value):
    request = refused = None
    try:
        request = AllocationRequest(size=1, **{field: value})
    except InvalidRequestError as error:
        refused = error
    if request is None:
        assert str(refused).startswith(f"{field}: expected")
        return
    kept = getattr(request, field)
    assert type(kept) in (int, float, type(None))
    assert kept == value or type(value) is Indexed


@pytest.mark.parametrize("field", ["size", "device_id", "alignment"])
def test_what_python_does_not_write_is_told_by_its_length(field):
    with pytest.raises(InvalidRequestError, match="got an integer of 16610 bits"):
        AllocationRequest(**{"size": 1, field: -(10**5000)})


@pytest.mark.parametrize("pattern", [*ACCESS_PATTERNS, None])
def test_known_access_patterns(pattern):
    assert AllocationRequest(size=1, hint_access_pattern=pattern).hint_access_pattern == pattern


def test_an_unknown_access_pattern_tells_the_known_ones():
    with pytest.raises(InvalidRequestError, match=r"'inference'.* got 'trianing'; did you mean 'training'\?"):
        AllocationRequest(size=1, hint_access_pattern="trianing")


def test_requests_are_values():
    request = AllocationRequest(size=1, priority=-3, hint_lifetime=0, alignment=1 << 30)
    assert request == AllocationRequest(size=1, priority=-3, hint_lifetime=0, alignment=1 << 30)
    assert hash(request) == hash(AllocationRequest(size=1, priority=-3, hint_lifetime=0, alignment=1 << 30))
    with pytest.raises(AttributeError):
        request.size = 2
    with pytest.raises(TypeError):
        AllocationRequest(1)
