"""Coverage of cells: against counting byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.drawing.raster import beginnings, coverage, shares

HUGE = st.integers(1, 1 << 62)
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


@given(st.lists(HUGE, max_size=8), st.integers(0, 1 << 61), HUGE, st.integers(1, 1 << 17))
def test_beginnings_are_exact_however_much_is_mapped(starts, first, size, cells):
    marks = beginnings(np.array(starts, np.int64), first, first + size, cells)
    inside = [start - first for start in starts if first < start < first + size]
    assert np.flatnonzero(marks).tolist() == sorted({at * cells // size for at in inside})


@given(st.lists(st.tuples(HUGE, HUGE), max_size=6), HUGE, st.integers(1, 1000))
def test_coverage_of_huge_ranges_is_theirs(spans, size, cells):
    starts = np.array([min(pair) for pair in spans], np.int64)
    ends = np.array([max(pair) for pair in spans], np.int64)
    expected = sum(
        max(0, min(end, size) - start) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )
    assert coverage(starts, ends, 0, size, cells).sum() == pytest.approx(expected, rel=1e-6, abs=cells)
