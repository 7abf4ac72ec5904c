"""The picture of a plan: well-formed, whatever is drawn, and small for a million rectangles."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from smartpool.planner import IntervalSet, Plan, plan
from smartpool.report.page import write_page
from smartpool.report.plan_picture import DRAWN, plan_picture


def test_every_interval_is_a_rectangle_with_a_title():
    intervals = IntervalSet.from_arrays([0, 2, 4], [3, 6, 8], [10, 20, 10], id=["<a>", "b", "c"])
    root = ET.fromstring(plan_picture(intervals, plan(intervals), title="x & y", capacity=64))
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 3
    assert any(title.startswith("<a>: 10 B at") for title in titles)


def test_what_rests_is_drawn_in_its_pieces():
    intervals = IntervalSet([0, 2], [10, 8], [8, 8], rests=[[(2, 8)], []])
    root = ET.fromstring(plan_picture(intervals, plan(intervals)))
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(title[:2] for title in titles) == ["0:", "0:", "1:"]


@pytest.mark.parametrize("columns", [([], [], []), ([3], [3], [5]), ([3], [5], [0])])
def test_nothing_to_draw_is_drawn(columns):
    intervals = IntervalSet.from_arrays(*columns)
    ET.fromstring(plan_picture(intervals, plan(intervals)))


def test_many_intervals_stay_a_small_picture(tmp_path):
    count = 10 * DRAWN
    start = np.arange(count)
    intervals = IntervalSet.from_arrays(start, start + 3, np.full(count, 8))
    offsets = start % 3 * 8
    layout = Plan(offsets=offsets, height=24, load=24, method="by hand", seconds=0.0, proved_optimal=True)
    path = tmp_path / "plan.svg"
    write_page(path, plan_picture(intervals, layout))
    ET.parse(path)
    assert path.stat().st_size < 2_000_000
