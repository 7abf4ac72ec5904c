"""The page of a trace as text: what is in it, and what nobody can put into it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_tags import Tags
from report_runs import HOSTILE
from unpacking import unpacked

from smartpool.report.analysis import analysis, title_of
from smartpool.report.page import write_page
from smartpool.report.trace_report import trace_report
from smartpool.trace import Trace, bundled
from smartpool.trace.baselines import PEERS


def small(**columns) -> Trace:
    return Trace.from_columns(
        **{"name": "small", "op": [0, 0, 1, 0], "id": [0, 1, 0, 2], "size": [3 << 20, 512, 3 << 20, 2 << 20]}
        | columns
    )


def blocks_of(page: str) -> tuple[dict, dict[str, np.ndarray]]:
    about = json.loads(re.search(r'<script type="application/json" id="about">(.*?)</script>', page)[1])
    text = re.search(r'<script type="application/octet-stream" id="columns">(.*?)</script>', page)[1]
    return about, unpacked(about["columns"], text)


@given(
    name=st.sampled_from(HOSTILE),
    site=st.sampled_from(HOSTILE),
    recorder=st.sampled_from([*HOSTILE, 7, None]),
)
@settings(max_examples=30)
def test_hostile_names_add_no_tag_and_no_attribute(name, site, recorder):
    plain = Tags(trace_report(analysis(small(site=[0, 0, 0, -1], meta={"sites": ["a"]}), against=["cupy"])))
    trace = small(name=name, site=[0, 0, 0, -1], meta={"sites": [site], "recorder": recorder})
    seen = Tags(trace_report(analysis(trace, against=["cupy"])))
    assert seen.tags == plain.tags
    assert seen.attributes == plain.attributes


def test_nothing_is_fetched_from_anywhere():
    page = trace_report(analysis(small(), against=[]))
    assert re.findall(r"https?:|src=|href=|@import|url\(", page) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_the_columns_are_the_trace_and_the_layouts():
    trace = Trace.load(bundled("multistream-mix"))
    found = analysis(trace, against=["rmm"])
    about, columns = blocks_of(trace_report(found))
    lifetimes = trace.lifetimes()
    assert columns["time"].tolist() == trace.t_us.tolist()
    assert (columns["start"] + columns["life"]).tolist() == lifetimes.end.tolist()
    assert columns["size"].tolist() == lifetimes.size.tolist()
    assert [layout["name"] for layout in about["layouts"]] == ["smartpool", "rmm", "optimum"]
    assert [layout["slot"] for layout in about["layouts"]] == [0, 1, None]
    for index, layout in enumerate(found.layouts):
        assert columns[f"{index}.offset"].tolist() == layout.offset.tolist()
        assert columns[f"{index}.reserved"].tolist() == layout.reserved.tolist()
        stitched = f"{index}.number" in columns
        assert stitched == (len(layout.number) > trace.allocations)


def test_tags_come_first_where_a_recording_has_them():
    sites = {"site": [0, 1, 0, -1], "meta": {"sites": ["a.py:1 f\ntag weights", "tag loose"]}}
    page = trace_report(analysis(small(**sites), against=[]))
    about, _ = blocks_of(page)
    assert about["tags"] == ["weights", "loose"]
    for select in ("map-color", "moment-group"):
        values = re.findall(r'value="(\w+)"', re.search(rf'id="{select}">(.*?)</select>', page)[1])
        assert values[0] == "tag"
        assert {"site", "size", "tier"} < set(values)


def test_words_and_tables_say_it_without_the_script():
    trace = Trace.load(bundled("multistream-mix"))
    page = trace_report(analysis(trace, against=[*PEERS, "driver-pool"]), title="A title & more")
    text = re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL))
    assert "A title &amp; more" in text
    for words in ("2,404 events", "4 streams", "peak live", "small: below 1 MiB", "driver calls"):
        assert words in text
    for name in (
        "SmartPool",
        "PyTorch, expandable",
        "CuPy",
        "RMM",
        "driver&#x27;s pool",
        "plan of the whole",
    ):
        assert name in text


def test_a_recorded_layout_is_shown_first():
    found = analysis(small(address=[0, 1 << 30, 0, 1 << 31]), against=[])
    assert [title_of(layout) for layout in found.layouts] == [
        "SmartPool", "plan of the whole trace", "as recorded"
    ]  # fmt: skip
    page = trace_report(found)
    first = re.findall(r'<option value="(\d)" selected>', page)
    assert first == ["2", "1"]


@pytest.mark.parametrize("events", [0, 1])
def test_traces_with_next_to_nothing(events, tmp_path):
    trace = small().prefix(events)
    path = write_page(tmp_path / "x.html", trace_report(analysis(trace, against=PEERS)))
    about, columns = blocks_of(path.read_text())
    assert about["events"] == len(columns["time"]) == events


def test_requests_that_failed():
    page = trace_report(analysis(small(), against=["cupy"], capacity_bytes=2 << 20))
    assert 'class="failed"' in page
