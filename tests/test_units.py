"""Sizes: what people write, and what people read."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import InvalidSizeError
from smartpool.units import BINARY_UNITS, GiB, KiB, TiB, align_down, align_up, format_size, parse_size

LETTERS = "kmgtpe"
UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1}
UNITS |= {f"{letter}{kind}": 1024 ** (at + 1) for at, letter in enumerate(LETTERS) for kind in ("", "ib")}
del UNITS["e"]  # an exponent that was cut off
UNITS |= {f"{letter}b": 1000 ** (at + 1) for at, letter in enumerate(LETTERS)}


@st.composite
def numbers(draw):
    """Numbers as people and programs write them, and what they are, exactly."""
    whole, fraction = draw(st.integers(0, 10**12)), draw(st.none() | st.integers(0, 10**6))
    exponent = draw(st.none() | st.integers(-3, 12))
    text, value = f"{whole:_}" if draw(st.booleans()) else str(whole), Fraction(whole)
    if fraction is not None:
        text, value = f"{text}.{fraction:06}", value + Fraction(fraction, 10**6)
    if exponent is not None:
        text, value = (
            f"{text}e{exponent:{draw(st.sampled_from(['', '+']))}}",
            value * Fraction(10) ** exponent,
        )
    return text, value


@given(numbers(), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.booleans())
def test_a_number_and_a_unit_are_exactly_their_product(number, unit, space, upper):
    text, value = number
    text, value = f" {text}{space}{unit} ", value * UNITS[unit]
    text = text.upper() if upper else text
    if value.denominator == 1:
        assert parse_size(text) == value
    else:
        with pytest.raises(InvalidSizeError, match="expected a whole number of bytes"):
            parse_size(text)


@given(st.text() | st.text("0123456789._+-eEkKmGiIbB ", max_size=60))
def test_any_text_is_a_size_or_one_error(text):
    told = "expected a size"
    try:
        assert parse_size(text) >= 0
    except InvalidSizeError as error:
        told = str(error)
    assert "expected a" in told
    assert len(told) < 400


@given(st.integers(0, 1 << 50))
def test_exact_sizes_come_back(nbytes):
    assert parse_size(str(nbytes)) == nbytes
    assert parse_size(f"{nbytes}B") == nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("80GiB", 80 * GiB),
        ("80GB", 80 * 10**9),
        ("80G", 80 * GiB),
        ("1 kB", 1000),
        ("1KB", 1000),
        ("2 PiB", 2 << 50),
        ("1e9", 10**9),
        ("1_000", 1000),
        ("1e-3GB", 10**6),
        ("1 EiB", 1 << 60),
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
            "1e",
            "1e999",
            "1__0",
            "_1",
            "1_",
            "1.5",
            "1 Gb/s",
            "80 GBi",
            "0.3 KiB",
            "1 KiBs",
            "1,5k",
            ".5k",
            "5.k",
            "0x10",
            "nan",
            "inf",
        ),
        *(
            "9" * 5000,
            "1" * 39 + "x",  # in no time
            "1" * 400 + ".5",
            "1." + "0" * 5000,
            "\u0663",
            None,
            1.5,
            True,
            b"1",
            [1],
            -1,
        ),
    ],
)
def test_what_is_no_size_gets_one_clear_error(bad):
    """Thousands of digits too, for which Python has an error of its own."""
    with pytest.raises(InvalidSizeError, match="expected a"):
        parse_size(bad)


@given(st.integers(0, 1 << 69))
def test_what_is_printed_is_near_and_without_exponents(nbytes):
    text = format_size(nbytes)
    assert "e" not in text
    number, unit = text.split()
    factors = {**dict(BINARY_UNITS), "B": 1}
    assert abs(float(number) * factors[unit] - nbytes) <= 0.005 * nbytes
    assert format_size(-nbytes) == ("-" + text if nbytes else text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1023 * KiB, "1023 KiB"), (int(999.6 * KiB), "1000 KiB"),
     (1536, "1.5 KiB"), (10**17, "88.8 PiB"), (1 << 60, "1 EiB")],
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


@pytest.mark.parametrize("power", [100, 400, 5000])
def test_what_no_memory_holds_is_told_all_the_same(power):
    """Python itself refuses to print thousands of digits."""
    nbytes, most = 10**power, (10**power).bit_length() - 1
    assert format_size(nbytes) == f"2**{most} B or more"
    assert format_size(-nbytes) == f"-2**{most} B or more"
    with pytest.raises(InvalidSizeError, match="at least 0 bytes"):
        parse_size(-nbytes)
