"""Columns of integers in a page: small in the file, and quick to read in the browser.

A trace of 400,000 events is some twenty columns of numbers. As JSON that is 40 MB and seconds of
parsing. Here a column is divided by its greatest common divisor, stored as differences where these are
smaller, mapped to unsigned numbers (zigzag), and cut into planes: all lowest bytes, then all second
ones, as many as the largest number needs. Planes of like bytes are what deflate is good at. All columns
together are deflated once and written in base64, which `columns.js` reads back in a few loops over
typed arrays. Rejected: variable-length integers (a branch a byte, and less for deflate to find), Arrow
or Parquet (a library in the page).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed"]

_WIDTHS: Final = (1, 2, 3, 4, 5, 6, 7, 8)
_LEVEL: Final = 6  # 9 takes four times as long for 2 %


def packed(columns: Mapping[str, NDArray[np.integer[Any]]]) -> tuple[list[dict[str, Any]], str]:
    """Return the directory of columns, ready for JSON, and their bytes as text.

    Parameters
    ----------
    columns
        Integers of up to 62 bits, by name.

    Returns
    -------
    list, str
        For each column ``name``, ``at`` (its first byte), ``count``, ``width`` (planes), ``delta``
        (differences) and ``unit`` (what to multiply by).

    Examples
    --------
    >>> directory, text = packed({"size": np.array([512, 1024, 512])})
    >>> directory
    [{'name': 'size', 'at': 0, 'count': 3, 'width': 1, 'delta': True, 'unit': 512}]
    """
    directory, parts, at = [], [], 0
    for name, column in columns.items():
        values = column.astype(np.int64)
        unit = int(np.gcd.reduce(values)) if len(values) else 0
        unit = max(1, unit)
        values //= unit
        differences = np.diff(values, prepend=np.int64(0))
        delta = _cost(differences) < _cost(values)
        numbers = _zigzag(differences if delta else values)
        width = next(w for w in _WIDTHS if w == 8 or not len(numbers) or int(numbers.max()) >> 8 * w == 0)
        directory.append(
            {"name": name, "at": at, "count": len(values), "width": width, "delta": delta, "unit": unit}
        )
        planes = numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
        parts.append(np.ascontiguousarray(planes.T).tobytes())
        at += len(values) * width
    return directory, base64.b64encode(zlib.compress(b"".join(parts), _LEVEL)).decode()


def _zigzag(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    return ((values << 1) ^ (values >> 63)).astype(np.uint64)


def _cost(values: NDArray[np.int64]) -> float:
    """Return about how many bits the numbers hold."""
    return float(np.log2(np.abs(values.astype(np.float64)) + 1).sum())
