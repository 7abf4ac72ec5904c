from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unpacking import unpacked

from smartpool.report.packing import packed

numbers = st.one_of(
    st.lists(st.integers(-(1 << 61), 1 << 61)),
    st.lists(st.integers(-5, 5)),
    st.lists(st.integers(0, 1 << 40)).map(sorted),
    st.lists(st.integers(0, 1 << 20)).map(lambda values: [512 * value for value in values]),
)


@given(columns=st.dictionaries(st.text(max_size=4), numbers, max_size=4))
def test_every_number_comes_back(columns):
    given_columns = {name: np.array(values, np.int64) for name, values in columns.items()}
    directory, text = packed(given_columns)
    again = unpacked(directory, text)
    assert list(again) == list(columns)
    assert {name: values.tolist() for name, values in again.items()} == columns


@pytest.mark.parametrize(
    ("values", "width", "delta", "unit"),
    [
        ([0, 0, 0], 1, False, 1),
        (range(0, 100_000, 3), 1, True, 3),
        ([5, 900, 5, 900], 2, False, 5),
        ([1 << 61, -(1 << 61), 1], 8, False, 1),
        ([], 1, False, 1),
    ],
)
def test_columns_are_stored_in_the_form_that_is_least(values, width, delta, unit):
    entry = packed({"x": np.array(values, np.int64)})[0][0]
    assert (entry["width"], entry["delta"], entry["unit"]) == (width, delta, unit)


def test_columns_keep_their_input():
    values = np.array([512, 1024])
    packed({"x": values})
    assert values.tolist() == [512, 1024]
