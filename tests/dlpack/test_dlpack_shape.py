"""Shapes: what says one, what is kept of it, and that what is taken can be handed to others."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smartpool import SmartPool
from smartpool.dlpack import DType, byte_count, checked_shape, export
from smartpool.dlpack.dtype import _BY_NAME
from smartpool.errors import InvalidSizeError, OutOfMemoryError


class Length(IntEnum):
    TWO = 2


WAYS = {
    "tuple": tuple,
    "list": list,
    "narrow integers": lambda shape: [np.uint8(length) for length in shape],
    "an array": lambda shape: np.array(shape, np.int64),
    "lists in the way of NumPy": lambda shape: list(np.array(shape, np.int32)),
}


@given(st.lists(st.integers(0, 200), max_size=6), st.sampled_from(sorted(WAYS)))
def test_every_way_to_say_a_shape_says_the_same(lengths: list[int], way: str) -> None:
    shape = checked_shape(WAYS[way](lengths))
    assert shape == tuple(lengths)
    assert all(type(length) is int for length in shape)


def test_one_integer_is_one_dimension() -> None:
    for length in (2, np.int8(2), Length.TWO, np.array(2)):
        assert checked_shape(length) == (2,)
        assert type(checked_shape(length)[0]) is int
    assert checked_shape(range(2, 4)) == (2, 3)


def test_a_tensor_says_a_shape() -> None:
    torch = pytest.importorskip("torch")
    assert checked_shape(torch.Size((2, 3))) == checked_shape(torch.tensor([2, 3])) == (2, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        "23", "", b"ab", bytearray(b"ab"), {2: 3}, {2, 3}, None, 2.0, (2, 2.0), (2, "3"), [[2]], (True,),
        iter((2, 3)), np.array([2.0]), np.array(2.0), list[int], -1, (2, -1), (0, -1), (-(10**5000),),
        (1,) * 65, ("a", 10**5000), object(), True,
    ],
    ids=lambda wrong: type(wrong).__name__,
)  # fmt: skip
def test_what_is_no_shape_is_named(wrong: object) -> None:
    with pytest.raises(InvalidSizeError, match=r"^shape: expected"):
        checked_shape(wrong)


HUGE = st.integers(0, 3) | st.integers(1 << 20, 1 << 65)


@given(st.lists(HUGE, max_size=5).map(tuple), st.sampled_from(sorted(_BY_NAME)))
@example((0, 1 << 63), "int8")
@example((0, 1 << 62, 4), "int8")
@example((0, 1 << 60), "complex128")
@example((1,) * 64, "int8")
def test_what_is_taken_can_be_exported(shape: tuple[int, ...], name: str) -> None:
    """Without elements by its shape alone; with some when the device has room for them."""
    dtype = DType.parse(name)
    try:
        nbytes = byte_count(checked_shape(shape), dtype)
    except InvalidSizeError:
        assert 0 in shape
        return
    if nbytes < 1 << 40:
        assert export(object(), pointer=1 << 20, shape=shape, dtype=dtype, device=(2, 0), max_version=(1, 0))


def test_a_product_that_wraps_around_is_too_large_and_not_small() -> None:
    with SmartPool("model:16GiB") as pool, pytest.raises(OutOfMemoryError):
        pool.empty((2, 2, 5, 5581, 8681, 49477, 384773), "uint8")  # 2**64 + 4
