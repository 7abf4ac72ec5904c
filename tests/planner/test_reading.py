"""CSV in and out, and errors that name their line."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.errors import PlanningError
from smartpool.planner import FREE, IntervalSet, plan, read_csv, write_csv
from smartpool.planner.pieces import Pieces
from smartpool.values import encodable


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a column 'id' or 'buffer' or 'buffer_id' in the header, got nothing"),
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
            "id,lower,upper,size,alignment\n0,0,1,1,0\n",
            "line 2: expected an alignment of at least 1, got 0",
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
        ("id,lower,upper,size,gaps\n0,0,9,8,2-\n", "line 2: expected gaps as LOWER-UPPER .* got '2-'"),
        ("id,lower,upper,size,gaps\n0,0,9,8,2-10\n", "line 2: expected a rest within its lifetime"),
        ("id,lower,upper,size,gaps\n0,0,9,8,2-4 3-5\n", "line 2: expected rests that do not overlap"),
        (
            "id,lower,upper,size,gaps\n0,0,9,8,2-4@0:9\n",
            "line 2: expected a rest that keeps none but",
        ),
        ("id,lower,end,upper,size\n0,0,9,9,8\n", "the column 'upper' once, got it twice: end, upper"),
        ("id,lower,upper,size,aligment\n", "which is not known; did you mean 'alignment'"),
        ("id,lower,upper,size,gap\n", "did you mean 'gaps'"),
        ("id,buffer_id,lower,upper,size\n", "the column 'id' once, got it twice"),
        ("id,lower,upper,size\n0,0,1,1_000\n", "line 2: expected size to be an integer .* got '1_000'"),
        ("id,lower,upper,size\n0,0,1,٣\n", "line 2: expected size to be an integer"),
        (
            "id,lower,upper,size\n0,0,1,8\n1,2,3,9223372036854775807\n",
            r"line 3: expected sizes, .* less than 2\*\*62 bytes, got 9.223e\+18 up to this one",
        ),
        ('id,lower,upper,size\n"0,0,9,8\n', "line 2: expected CSV, got unexpected end of data"),
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


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ODD_TEXT = ANY_TEXT | st.sampled_from(["=1+1", "-5", "007", " a", '"b"', "", "a,b", "\ud800", "x" * 200])


@st.composite
def instances(draw):
    """Intervals with all that they may have: rests, orders, alignments and names of any sort."""
    count = draw(st.integers(0, 6))
    start = [draw(st.integers(-50, 50)) for _ in range(count)]
    end = [begin + draw(st.integers(0, 20)) for begin in start]
    size = [draw(st.integers(0, 1 << 40)) for _ in range(count)]
    rests = []
    for begin, after, nbytes in zip(start, end, size, strict=True):
        cuts = sorted(draw(st.lists(st.integers(begin, after), max_size=4, unique=True)))
        keeps = [sorted(draw(st.lists(st.integers(0, nbytes), min_size=2, max_size=2))) for _ in cuts[::2]]
        rests.append([(*pair, *kept) for pair, kept in zip(batched(cuts), keeps, strict=False)])
    alignment = draw(st.lists(st.integers(1, 99), min_size=count, max_size=count))
    priority = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    names = draw(
        st.lists(
            ODD_TEXT, min_size=count, max_size=count, unique_by=lambda text: encodable(text).rstrip("\0")
        )
        | st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=count, max_size=count, unique=True)
    )
    top, fixed = 0, []
    for nbytes, step in zip(size, alignment, strict=True):
        top = -(-top // step) * step
        fixed.append(draw(st.sampled_from([FREE, top])))
        top += nbytes
    return IntervalSet(
        start,
        end,
        size,
        alignment=draw(st.sampled_from([alignment, None])) if fixed.count(FREE) == count else alignment,
        priority=draw(st.sampled_from([priority, None])),
        fixed=draw(st.sampled_from([fixed, None])),
        rests=draw(st.sampled_from([rests, None])),
        id=names or None,
    )


def kept(text):
    """What of a name an array of text keeps."""
    return encodable(text).rstrip("\0")


def batched(values):
    return list(zip(values[::2], values[1::2], strict=False))


@given(instances())
def test_what_is_written_is_read(tmp_path_factory, intervals):
    path = tmp_path_factory.mktemp("csv") / "plan.csv"
    write_csv(path, intervals, plan(intervals, time_limit=0.05).offsets)
    again = read_csv(path)
    for name in ("start", "end", "size", "alignment", "priority", "fixed"):
        assert np.array_equal(getattr(again, name), getattr(intervals, name))
    for name in Pieces.__slots__:
        assert np.array_equal(getattr(again.pieces(), name), getattr(intervals.pieces(), name))
    if all(re.fullmatch("-?[0-9]{1,19}", str(name)) for name in intervals.id.tolist()):
        assert list(map(int, again.id)) == list(map(int, intervals.id))
    else:
        assert again.id.tolist() == list(map(str, intervals.id.tolist()))
    with path.open(newline="", encoding="utf-8") as file:
        texts = [row[0] for row in csv.reader(file)]
    assert [
        text
        for text in texts
        if text[:1] in ("=", "+", "@") or (text.startswith("-") and not text[1:].isdigit())
    ] == []


@given(instances())
def test_headers_of_other_times(tmp_path_factory, intervals):
    """`end` names the last instant of a lifetime, and of a rest; `upper` the first after it."""
    path = tmp_path_factory.mktemp("csv") / "plan.csv"
    write_csv(path, intervals, plan(intervals, time_limit=0.05).offsets)
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    old = {"id": "buffer", "lower": "start", "upper": "end"}
    for row in rows:
        row[header.index("upper")] = int(row[header.index("upper")]) - 1
        if "gaps" in header:
            at = header.index("gaps")
            row[at] = re.sub(r"([0-9]-)(-?[0-9]+)", lambda found: f"{found[1]}{int(found[2]) - 1}", row[at])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[old.get(name, name).title() for name in header], *rows])
    again = read_csv(path)
    for name in Pieces.__slots__:
        assert np.array_equal(getattr(again.pieces(), name), getattr(intervals.pieces(), name))


def test_a_plan_that_could_not_be_read_is_not_written(tmp_path):
    path = tmp_path / "plan.csv"
    for names, said in ((["a", "a"], "every id once"), (["x" * 201, "b"], "at most 200 characters")):
        with pytest.raises(PlanningError, match=said):
            write_csv(path, IntervalSet([0, 1], [1, 2], [8, 8], id=names), np.zeros(2, np.int64))
        assert not path.exists()


def test_somebodys_plan_with_rests_is_accepted_and_a_wrong_one_is_not(tmp_path):
    path = tmp_path / "solved.csv"
    text = "id,lower,upper,size,gaps,offset\nA,0,10,8,2-8,0\nB,2,{},8,,0\n"
    path.write_text(text.format(8))
    assert plan(read_csv(path)).height == 8
    path.write_text(text.format(9))
    with pytest.raises(PlanningError, match=r"line 3: .* collides with .*line 2: both are live in \[8, 9\)"):
        read_csv(path)
    path.write_text("id,lower,upper,size,fixed_offset,offset\nA,0,10,8,16,0\n")
    with pytest.raises(PlanningError, match="line 2: expected offset to be the fixed one, 16, got 0"):
        read_csv(path)
