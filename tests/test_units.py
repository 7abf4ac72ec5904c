"""Sizes: what people write, and what people read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import InvalidSizeError
from smartpool.units import GiB, KiB, MiB, TiB, align_down, align_up, format_size, parse_size

FACTORS = {"": 1, "b": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB}


@given(
    st.integers(0, 1 << 50), st.sampled_from(sorted(FACTORS)), st.sampled_from(["", "b", "ib"]), st.booleans()
)
def test_whole_numbers_of_units(number, unit, suffix, upper):
    text = f" {number} {unit}{suffix if unit not in ('', 'b') else ''} "
    assert parse_size(text.upper() if upper else text) == number * FACTORS[unit]
    assert parse_size(number) == number


@given(st.integers(0, 1 << 50))
def test_exact_sizes_come_back(nbytes):
    assert parse_size(str(nbytes)) == nbytes
    assert parse_size(f"{nbytes}B") == nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("80GiB", 80 * GiB),
        ("80GB", 80 * GiB),
        ("1.5 KiB", 1536),
        ("0.5k", 512),
        ("7 bytes", 7),
        ("2t", 2 * TiB),
    ],
)
def test_examples(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "bad",
    [
        *(
            "",
            " ",
            "GiB",
            "-1",
            "1e9",
            "1.5",
            "0.3 KiB",
            "1 KiBs",
            "1,5k",
            ".5k",
            "5.k",
            "0x10",
            "nan",
            "inf",
        ),
        *("9" * 5000, "1" * 400 + ".5", "1." + "0" * 5000, "\u0663", None, 1.5, True, b"1", [1], -1),
    ],
)
def test_what_is_no_size_gets_one_clear_error(bad):
    """Thousands of digits too, for which Python has an error of its own."""
    with pytest.raises(InvalidSizeError, match="expected a"):
        parse_size(bad)


@given(st.integers(0, 1 << 60))
def test_what_is_printed_is_near_and_without_exponents(nbytes):
    text = format_size(nbytes)
    assert "e" not in text
    number, unit = text.split()
    assert abs(float(number) * FACTORS[unit[0].lower()] - nbytes) <= 0.005 * nbytes
    assert format_size(-nbytes) == ("-" + text if nbytes else text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1023 * KiB, "1023 KiB"), (int(999.6 * KiB), "1000 KiB"),
     (1536, "1.5 KiB"), (10**17, "90949 TiB")],
)  # fmt: skip
def test_format_examples(nbytes, text):
    assert format_size(nbytes) == text


@given(st.integers(0, 1 << 60), st.integers(0, 40))
def test_alignment(value, shift):
    alignment = 1 << shift
    low, high = align_down(value, alignment), align_up(value, alignment)
    assert low % alignment == high % alignment == 0
    assert low <= value <= high
    assert high - low == (0 if value % alignment == 0 else alignment)
