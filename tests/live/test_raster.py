"""Coverage of cells: against counting byte by byte."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.live.raster import coverage, shares

ranges = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 80)), max_size=12)


@given(ranges, st.integers(0, 250), st.integers(1, 120), st.integers(1, 40))
def test_coverage_counts_every_byte_of_every_range(spans, first, size, cells):
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    ends = np.array([start + length for start, length in spans], dtype=np.int64)
    covered = coverage(starts, ends, first, first + size, cells)
    width = size / cells
    for cell in range(cells):
        low, high = first + cell * width, first + (cell + 1) * width
        expected = sum(
            max(0.0, min(high, end) - max(low, start)) for start, end in zip(starts, ends, strict=True)
        )
        assert abs(covered[cell] - expected) < 1e-6 * (1 + expected)


@given(ranges, st.integers(1, 500), st.integers(1, 40))
def test_shares_show_whatever_is_there_and_never_overflow(spans, size, cells):
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    ends = np.array([start + length for start, length in spans], dtype=np.int64)
    covered = coverage(starts, ends, 0, size, cells)
    shown = shares(covered, 0, size)
    assert shown.dtype == np.uint8
    assert ((shown > 0) == (covered > 0)).all()
