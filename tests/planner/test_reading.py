"""CSV in and out, and errors that name their line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import PlanningError
from smartpool.planner import FREE, IntervalSet, plan, read_csv, write_csv


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a column 'id' in the header, got nothing"),
        ("id,lower,upper\n0,0,1\n", "line 1: expected a column 'size'"),
        ("id,lower,upper,size\n0,0,1,1\n1,5,3,1\n", "line 3: expected an end of at least the start 5, got 3"),
        ("id,lower,upper,size\n\n0,0,1,-4\n", "line 3: expected a size of at least 0, got -4"),
        (
            "id,lower,upper,size\n0,0,1,4.5\n",
            "line 2: expected size to be an integer below 2\\*\\*63, got '4.5'",
        ),
        ("id,lower,upper,size\n0,0,1,99999999999999999999\n", "line 2: expected size to be an integer"),
        ("id,lower,upper,size\n0,0,1\n", "line 2: expected 4 cells, as in the header, got 3"),
        (
            "id,lower,upper,size,alignment\n0,0,1,1,3\n",
            "line 2: expected an alignment that is a power of two",
        ),
        (
            "id,lower,upper,size,alignment,offset\n0,0,1,1,8,4\n1,0,1,1,8,\n",
            "line 2: .* multiple of the alignment 8",
        ),
        ("id,lower,upper,size,fixed_offset\n0,0,9,8,0\n1,3,5,8,4\n", "line 3: its fixed .* with .*line 2"),
        ("id,lower,upper,size,offset\n0,0,9,8,0\n1,3,5,8,4\n", "line 3: its fixed .* with .*line 2"),
        (
            "id,lower,upper,size,offset\n0,0,9,8,-1\n1,3,5,8,\n",
            "line 2: expected offset to be at least 0, got -1",
        ),
        ('id,lower,upper,size\n"0,0,9,8\n', "expected 4 cells"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(PlanningError, match=message):
        read_csv(path)


def test_text_of_another_encoding_is_refused(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(b"id,lower,upper,size\n\xff\xfe,0,1,1\n")
    with pytest.raises(PlanningError, match="UTF-8"):
        read_csv(path)


def test_columns_may_come_in_any_order_and_more_of_them(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("\ufeffsize, Upper,hint,lower,id,alignment,priority\n10,3,x,0,w,8,2\n\n20,6,y,2,v,1,0\n")
    intervals = read_csv(path)
    assert intervals.start.tolist() == [0, 2]
    assert intervals.end.tolist() == [3, 6]
    assert intervals.size.tolist() == [10, 20]
    assert intervals.alignment.tolist() == [8, 1]
    assert intervals.priority.tolist() == [2, 0]
    assert intervals.id.tolist() == ["w", "v"]


def test_an_offset_is_an_order_unless_all_have_one(tmp_path):
    path = tmp_path / "offsets.csv"
    path.write_text("id,lower,upper,size,offset\n0,0,9,8,64\n1,3,5,8,\n")
    assert read_csv(path).fixed.tolist() == [64, FREE]
    path.write_text("id,lower,upper,size,offset\n0,0,9,8,64\n1,3,5,8,0\n")
    assert read_csv(path).fixed.tolist() == [FREE, FREE]
    path.write_text("id,lower,upper,size,fixed_offset\n0,0,9,8,64\n1,3,5,8,0\n")
    assert read_csv(path).fixed.tolist() == [64, 0]


@given(
    st.lists(
        st.tuples(
            st.integers(-100, 100), st.integers(0, 50), st.integers(0, 1 << 40), st.sampled_from([1, 8, 512])
        ),
        max_size=10,
    )
)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "plan.csv"
    table = np.array(rows, np.int64).reshape(-1, 4)
    intervals = IntervalSet.from_arrays(
        table[:, 0], table[:, 0] + table[:, 1], table[:, 2], alignment=table[:, 3]
    )
    write_csv(path, intervals, plan(intervals, time_limit=0.1).offsets)
    again = read_csv(path)
    for name in ("start", "end", "size", "alignment", "id", "fixed"):
        assert np.array_equal(getattr(again, name), getattr(intervals, name))
