from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.report.text import format_duration, format_share, printable
from smartpool.units import BINARY_UNITS, format_bytes

any_text = st.text(st.characters(exclude_categories=()))


@given(any_text)
def test_what_printable_returns_prints_and_can_be_written(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) == len(text)
    shown.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_printable_leaves_what_prints(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (4e-7, "0.40 us"), (999e-6, "999 us"), (1e-3, "1.00 ms"), (1, "1.00 s"), (1234.5, "1234 s")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@given(st.integers(0, 1 << 69))
def test_bytes_read_as_what_they_are(nbytes):
    number, unit = format_bytes(nbytes).split()
    factor = {**dict(BINARY_UNITS), "B": 1}[unit]
    assert float(number) * factor == pytest.approx(nbytes, rel=0.006)


@given(st.floats(0, 1))
def test_shares(share):
    assert float(format_share(share).removesuffix(" %")) == pytest.approx(100 * share, abs=0.051)
