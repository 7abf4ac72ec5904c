"""Rows of CSV: ours read back equal and run in no spreadsheet, and others' are read or refused."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.csv_rows import cell_of, first_row, read_rows, text_of, whole_number
from smartpool.errors import PlanningError, TraceFormatError

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ODD_TEXT = ANY_TEXT | st.builds(
    str.__add__, st.sampled_from(["=", "+", "-", "@", '"', " ", "\t", "'"]), ANY_TEXT
)


@given(st.lists(st.lists(ODD_TEXT, min_size=1, max_size=4), max_size=5))
def test_text_reads_back_equal_and_is_no_formula(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([[cell_of(text) for text in row] for row in table])
    assert [[text_of(cell) for cell in row] for _, row in read_rows(path)] == table
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if cell[:1] in ("", "=", "+", "-", "@", "\t", "\r", " ")] == []


@given(st.text("0123456789+-_.e ٣x", max_size=8))
def test_a_number_is_decimal_digits_and_nothing_else(text):
    number = whole_number(text)
    plain = text.removeprefix("-")
    assert (number is not None) == (plain != "" and not plain.strip("0123456789"))
    if number is not None:
        assert number == int(text)


@pytest.mark.parametrize("error", [TraceFormatError, PlanningError])
@given(
    data=st.binary(max_size=60)
    | st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b"\0", b"\xff"]), max_size=20).map(b"".join)
)
def test_any_bytes_are_rows_or_one_error(tmp_path_factory, error, data):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(data)
    told = "x.csv: read"
    try:
        for line, row in read_rows(path, error=error):
            assert line > 0
            assert any(row)
    except error as caught:
        told = str(caught)
    assert "x.csv" in told
    assert isinstance(first_row(data), list)


def test_lines_are_bounded_and_a_byte_order_mark_is_none_of_the_text(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfa, b \r\n\r\n" + b" , \r\n1,2\r\n")
    assert list(read_rows(path)) == [(1, ["a", "b"]), (4, ["1", "2"])]
    path.write_text("a\n" + "b" * 70_000)
    with pytest.raises(TraceFormatError, match=r"x\.csv, line 2: expected less than 65536 characters"):
        list(read_rows(path))
    path.write_bytes("a\nß\n".encode("latin-1"))
    with pytest.raises(TraceFormatError, match="expected text in UTF-8"):
        list(read_rows(path))
