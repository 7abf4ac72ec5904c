"""Shapes as callers say them: what they mean, and which of them can be handed to others."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

from smartpool.dlpack.dtype import DType
from smartpool.errors import InvalidSizeError
from smartpool.values import as_integer, shown

__all__ = ["byte_count", "checked_shape"]

_MOST_DIMENSIONS: Final = 64  # of NumPy, which makes the exports, and of PyTorch
_BEYOND: Final = 1 << 63  # DLPack counts in signed 64-bit integers


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Return `shape`, an integer or a sequence of integers of at least 0, as a tuple of plain integers.

    Raises `InvalidSizeError` for what is none, and for more dimensions than others can read.

    >>> checked_shape(3), checked_shape([2, 0]), checked_shape(range(2, 4))
    ((3,), (2, 0), (2, 3))
    """
    if shape.__class__ is tuple and len(shape) <= _MOST_DIMENSIONS:  # the usual, in a tenth of the time
        for length in shape:
            if length.__class__ is not int or length < 0:
                break
        else:
            return shape
    lengths = _lengths(shape)
    if lengths is None or min(lengths, default=0) < 0:
        raise InvalidSizeError(
            f"shape: expected an integer of at least 0, or a sequence of such integers, got {shown(shape)}"
        )
    if len(lengths) > _MOST_DIMENSIONS:
        raise InvalidSizeError(
            f"shape: expected at most {_MOST_DIMENSIONS} dimensions, which is what others read, "
            f"got {len(lengths)}"
        )
    return lengths


def byte_count(shape: tuple[int, ...], dtype: DType) -> int:
    """Return the bytes that `shape` elements of `dtype` take, packed row-major.

    `InvalidSizeError` for a shape without elements whose strides nobody can say.
    """
    if 0 in shape and prod(filter(None, shape)) * dtype.carrier.itemsize >= _BEYOND:
        raise InvalidSizeError(
            "shape: expected one whose lengths, the zeros left out, multiply to less than 2**63 bytes, which "
            f"is what others read, got {shown(shape)} of {dtype}"
        )
    return dtype.nbytes(prod(shape))


def _lengths(shape: Any) -> tuple[int, ...] | None:
    """Return the lengths that an integer, or a sequence, array or tensor of integers says; else None."""
    length = as_integer(shape)
    if length is not None:
        return (length,)
    if isinstance(shape, Mapping | str | bytes | bytearray) or not hasattr(shape, "__getitem__"):
        return None
    try:
        lengths = tuple(as_integer(length) for length in shape)
    except TypeError:  # an array without dimensions
        return None
    return None if None in lengths else lengths  # type: ignore[return-value]
