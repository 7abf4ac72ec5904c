"""What callers pass, as plain values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smartpool.values import as_integer, as_number, encodable, shown


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_integers_of_all_sorts_are_one(number):
    for made in (number, np.int64(number)):
        assert as_integer(made) == number
        assert type(as_integer(made)) is int
        assert as_number(made) == float(number)


@given(st.floats(width=32) | st.sampled_from([10**400, -(10**400), Fraction(10**400), Fraction(1, 3)]))
def test_numbers_are_floats_or_none(number):
    made = as_number(number)
    if made is None:
        assert abs(number) == 10**400
    else:
        assert type(made) is float
        assert made == number or math.isnan(made) or math.isclose(made, number)
    if isinstance(number, float):
        kept = as_number(np.float32(number))
        assert kept == made or math.isnan(kept)
        assert as_integer(number) is as_integer(np.float32(number)) is None


def test_truths_are_no_numbers():
    for truth in (True, False, np.True_, np.False_):
        assert as_integer(truth) is as_number(truth) is None


@given(st.integers(0, 30_000))
def test_everything_can_be_shown(bits):
    number = (1 << bits) - 1
    assert shown(number) == (str(number) if bits <= 1024 else f"an integer of {bits} bits")
    assert shown([number & 7]) == repr([number & 7])


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_kept_can_be_encoded_and_is_kept_once(text):
    kept = encodable(text)
    assert encodable(kept) == kept == kept.encode().decode()
    assert kept == text or "\\u" in kept
