from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartpool.drawing.envelope import Envelope, envelope
from smartpool.report.svg import Plot, area_path, line_path, shortened, spread

PLOT = Plot(left=10, top=20, width=300, height=100, top_bytes=1000)


@st.composite
def envelopes(draw):
    events = draw(st.integers(1, 60))
    values = draw(st.lists(st.integers(0, 1000), min_size=events, max_size=events))
    return envelope(range(events), values, events=events, columns=draw(st.integers(1, 60)))


def points_of(path: str) -> list[tuple[float, float]]:
    """Follow the path: absolute M, H, V and Z."""
    points, x, y = [], 0.0, 0.0
    for command, first, second in re.findall(r"([MHVZ])(-?[\d.]+)?(?: (-?[\d.]+))?", path):
        if command == "M":
            x, y = float(first), float(second)
        elif command == "H":
            x = float(first)
        elif command == "V":
            y = float(first)
        points.append((x, y))
    return points


@given(envelopes())
def test_a_line_stays_in_the_plot_never_turns_back_and_reaches_the_extremes(series: Envelope):
    points = points_of(line_path(series, PLOT))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    assert xs == sorted(xs)
    assert (xs[0], xs[-1]) == (PLOT.left, PLOT.right)
    assert min(ys) == pytest.approx(PLOT.y(series.high.max()), abs=0.06)
    assert max(ys) == pytest.approx(PLOT.y(series.low.min()), abs=0.06)
    assert ys[-1] == pytest.approx(PLOT.y(series.last[-1]), abs=0.06)


@given(envelopes())
def test_an_area_stands_on_the_axis_and_reaches_the_peak(series: Envelope):
    path = area_path(series, PLOT)
    assert path.endswith("Z")
    points = points_of(path)
    assert points[0] == (PLOT.left, PLOT.bottom)
    assert points[-1] == (PLOT.right, PLOT.bottom)
    assert min(y for _, y in points) == pytest.approx(PLOT.y(series.high.max()), abs=0.06)


def test_a_flat_line_is_short_however_many_columns():
    flat = Envelope(*(np.full(900, 500),) * 3)
    assert line_path(flat, PLOT) == "M10 70H310"


@given(st.lists(st.floats(-50, 150), max_size=12), st.floats(0.5, 20))
def test_labels_keep_their_order_and_distance_within_the_edges(wanted, gap):
    placed = spread(wanted, gap=gap, low=0, high=100)
    if len(wanted) * gap > 100:
        gap = 100 / len(wanted)
    by_wish = sorted(range(len(wanted)), key=wanted.__getitem__)
    in_order = [placed[index] for index in by_wish]
    assert all(-1e-6 <= place <= 100 + 1e-6 for place in placed)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(in_order))


def test_labels_that_do_not_touch_stay_where_they_are():
    assert spread([90, 10, 50], gap=10, low=0, high=100) == [90, 10, 50]


@given(st.text(max_size=40), st.integers(3, 20))
def test_shortened_names_fit_and_keep_both_ends(text, length):
    short = shortened(text, length)
    assert len(short) <= length
    assert short == text or (text.startswith(short.split("…")[0]) and text.endswith(short.rsplit("…", 1)[-1]))
