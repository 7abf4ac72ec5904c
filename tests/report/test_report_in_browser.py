"""The report in a real browser, where there is one: it opens without a complaint, and shows what is there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from dumps import DUMP
from report_runs import HOSTILE

from smartpool.report.analysis import analysis
from smartpool.report.dump import read_dump
from smartpool.report.dump_report import dump_report
from smartpool.report.page import write_page
from smartpool.report.trace_report import trace_report
from smartpool.trace import Trace, bundled

sys.path.insert(0, str(Path(__file__).parents[1] / "live" / "kit"))
from browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

MiB = 1 << 20
READY = "document.documentElement?.dataset.ready"
HOSTILE_SITE = "</script><img src=x onerror=\"document.title='gotcha'\">\nouter.py:1 <module>"

# Three blocks of 3, 2 and 4 MiB: the first and the last follow one another, the second lives throughout.
THREE = {
    "op": [0, 0, 1, 0, 1],
    "id": [0, 1, 0, 2, 2],
    "size": [3 * MiB, 2 * MiB, 3 * MiB, 4 * MiB, 4 * MiB],
    "stream": [0, 0, 0, 1, 1],
    "t_us": [0, 10, 20, 5_000, 9_000],
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), width=1300, height=1000) as browser:
        yield browser


def opened(browser: Browser, path: Path) -> Browser:
    browser.said.clear()
    browser.open(path.as_uri())
    browser.until(f"location.href === {json.dumps(path.as_uri())} && {READY}")
    return browser


def report_of(trace: Trace, tmp_path: Path, **more) -> Path:
    return write_page(tmp_path / "report.html", trace_report(analysis(trace, against=["pytorch"]), **more))


def in_view(browser: Browser, selector: str) -> list[float]:
    """Bring an element into view and return its box."""
    return browser.run(
        f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
        f" return [b.x, b.y, b.width, b.height]; }})(document.querySelector({json.dumps(selector)}))"
    )


def point_at(browser: Browser, selector: str, across: float, up: float) -> str:
    """Point at a place of a map or curve by shares of its plot, and return what the tip says."""
    x, y, width, height = in_view(browser, f"{selector} canvas")
    left, right, top, bottom = 76, 16, 8, 40  # the margins of a plot
    at_x = x + left + across * (width - left - right)
    at_y = y + top + (1 - up) * (height - top - bottom)
    browser.mouse("mouseMoved", at_x, at_y)
    browser.run("new Promise(requestAnimationFrame)")
    tip = f"document.querySelector({json.dumps(selector + ' .tip')})"
    return browser.run(f"{tip}.hidden ? '' : {tip}.innerText")


def layout_box(trace: Trace) -> list[tuple[float, float]]:
    """Return where, in shares of the first map, the middle of each allocation is."""
    found = analysis(trace, against=["pytorch"])
    ours, plan = found.layouts[0], found.layouts[2]
    span = max(ours.span_bytes, plan.span_bytes)
    lifetimes = trace.lifetimes()
    return [
        (
            (lifetimes.start[number] + lifetimes.end[number]) / 2 / trace.events,
            (ours.offset[row] + ours.size[row] / 2) / span,
        )
        for row, number in enumerate(ours.number.tolist())
    ]


def test_pointing_at_a_block_tells_what_it_is(browser, tmp_path):
    trace = Trace.from_columns(
        "three", **THREE, site=[0, 1, 0, -1, -1], meta={"sites": ["a.py:1 f", "b.py:2 g"]}
    )
    opened(browser, report_of(trace, tmp_path))
    tips = [point_at(browser, ".maps figure", *place) for place in layout_box(trace)]
    assert "3.00 MiB" in tips[0]
    assert "events 0 to 2" in tips[0]
    assert "a.py:1 f" in tips[0]
    assert "2.00 MiB" in tips[1]
    assert "events 1 to the end" in tips[1]
    assert "4.00 MiB" in tips[2]
    assert "4.00 ms" in tips[2]  # its life by the clock
    assert "py:" not in tips[2]
    assert point_at(browser, ".maps figure", 0.05, 0.9) == ""
    assert browser.said == []


def test_a_click_keeps_the_block_and_chooses_the_moment(browser, tmp_path):
    trace = Trace.from_columns("three", **THREE)
    opened(browser, report_of(trace, tmp_path))
    assert "the most of the run" in browser.run("document.getElementById('moment-lead').textContent")
    place = layout_box(trace)[0]
    point_at(browser, ".maps figure", *place)
    x, y, width, height = in_view(browser, ".maps figure canvas")
    at = x + 76 + place[0] * (width - 92), y + 8 + (1 - place[1]) * (height - 48)
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, *at, button="left", clickCount=1)
    browser.until("document.getElementById('pinned').textContent.includes('3.00 MiB')")
    lead = browser.run("document.getElementById('moment-lead').textContent")
    assert lead == "After event 1, at 10 µs: 5.00 MiB live in 2 blocks."
    rows = browser.run("[...document.querySelectorAll('#moment-rows tr')].map(row => row.innerText)")
    assert [row.split("\t")[:3] for row in rows] == [
        ["3.00 MiB each", "1", "3.00 MiB"],
        ["2.00 MiB each", "1", "2.00 MiB"],
    ]
    browser.run("document.getElementById('moment-peak').click()")
    assert "After event 3" in browser.run("document.getElementById('moment-lead').textContent")
    assert browser.said == []


def test_a_group_of_the_table_can_be_shown_alone(browser, tmp_path):
    trace = Trace.from_columns("three", **THREE)
    opened(browser, report_of(trace, tmp_path))
    places = layout_box(trace)

    def colors() -> list[str]:
        _, _, width, height = in_view(browser, ".maps figure canvas")
        browser.run("new Promise(requestAnimationFrame)")
        # Beside the middle: the line of the moment may be there.
        points = [[70 + x * (width - 92), 8 + (1 - y) * (height - 48)] for x, y in places]
        return browser.run(
            f"{json.dumps(points)}.map(([x, y]) => document.querySelector('.maps canvas').getContext('2d')"
            ".getImageData(x * devicePixelRatio, y * devicePixelRatio, 1, 1).data.join())"
        )

    before = colors()
    browser.run("document.querySelectorAll('#moment-rows button')[0].click()")  # 4 MiB each: the third
    browser.until("!document.getElementById('map-focus').hidden")
    alone = colors()
    assert alone[2] == before[2]
    assert alone[0] == alone[1] != before[1]
    browser.run("document.getElementById('map-focus').click()")
    assert colors() == before
    browser.run("document.getElementById('moment-end').click()")
    assert "After event 4" in browser.run("document.getElementById('moment-lead').textContent")
    assert browser.run("document.querySelectorAll('#moment-rows tr').length") == 1
    assert browser.said == []


def test_who_held_it_by_tag(browser, tmp_path):
    sites = {"site": [0, 1, 0, 0, 0], "meta": {"sites": ["a.py:1 f\ntag activations", "b.py:2 g"]}}
    opened(browser, report_of(Trace.from_columns("three", **THREE, **sites), tmp_path))
    rows = browser.run("[...document.querySelectorAll('#moment-rows tr')].map(row => row.innerText)")
    assert [row.split("\t")[0] for row in rows] == ["activations", "no tag"]
    assert browser.said == []


def test_the_keyboard_goes_from_block_to_block(browser, tmp_path):
    opened(browser, report_of(Trace.from_columns("three", **THREE), tmp_path))
    browser.run("document.querySelector('.maps canvas').focus()")
    pinned = "document.getElementById('pinned').textContent"
    for size in ("3.00 MiB", "2.00 MiB", "4.00 MiB", "4.00 MiB"):
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key=".", text=".")
        assert size in browser.run(pinned)
    browser.run("[...document.querySelectorAll('#pinned button')].at(-1).click()")
    assert browser.run("document.getElementById('span').textContent") in ("whole trace", "5 events")
    assert browser.said == []


def test_curves_tell_live_and_reserved(browser, tmp_path):
    trace = Trace.from_columns("three", **THREE)
    opened(browser, report_of(trace, tmp_path))
    tip = point_at(browser, "#timeline", 0.7, 0.5)  # event 3 of 5
    assert "event 3, at 5.00 ms" in tip
    assert re.search(r"live\s+6.00 MiB", tip)
    assert re.search(r"medium: 1 to 16 MiB\s+6.00 MiB", tip)
    assert re.search(r"SmartPool\s+6.00 MiB", tip)
    assert re.search(r"PyTorch\s+20.0 MiB", tip)
    tip = point_at(browser, "#fragmentation", 0.7, 0.5)
    assert re.search(r"SmartPool\s+0.0 %", tip)
    assert re.search(r"PyTorch\s+70.0 %", tip)
    browser.run("document.querySelectorAll('button.key[data-name]')[1].click()")
    assert "PyTorch" not in point_at(browser, "#timeline", 0.7, 0.4)
    assert browser.said == []


def test_the_keyboard_zooms_and_the_axis_can_be_time(browser, tmp_path):
    opened(browser, report_of(Trace.load(bundled("multistream-mix")), tmp_path))
    span = "document.getElementById('span').textContent"
    assert browser.run(span) == "whole trace"
    browser.run("document.querySelector('#timeline canvas').focus()")
    for _ in range(2):
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key="+", text="+")
    assert browser.run(span) == "865 events"  # of 2,404, twice three fifths
    browser.run("document.querySelector('#axis button[value=clock]').click()")
    assert browser.run(span).endswith(("ms", " s"))
    browser.ask("Input.dispatchKeyEvent", type="keyDown", key="Home")
    assert browser.run(span) == "whole trace"
    for select, choices in (
        ("time-group", 3),
        ("map-color", 3),
        ("moment-group", 4),
        ("fragmentation-kind", 2),
    ):
        values = browser.run(f"[...document.getElementById('{select}').options].map(o => o.value)")
        assert len(values) == choices
        for value in values:
            browser.run(
                f"(s => {{ s.value = '{value}'; s.dispatchEvent(new Event('change')); }})"
                f"(document.getElementById('{select}'))"
            )
            browser.run("new Promise(requestAnimationFrame)")
    assert browser.said == []


@pytest.mark.parametrize("width", [360, 900, 2500])
def test_nothing_sticks_out_at_any_width(browser, tmp_path, width):
    path = report_of(Trace.load(bundled("multistream-mix")), tmp_path)
    browser.ask(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
    )
    try:
        opened(browser, path)
        assert browser.run("document.documentElement.scrollWidth") <= width
        sizes = browser.run(
            "[...document.querySelectorAll('canvas')].map(c => [c.width, c.parentElement.clientWidth])"
        )
        assert all(abs(pixels - shown) <= 1 for pixels, shown in sizes)
        for number in range(len(sizes)):  # each is painted once it comes into view
            canvas = f"document.querySelectorAll('canvas')[{number}]"
            browser.run(f"{canvas}.scrollIntoView()")
            pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
            browser.until(f"(c => {pixels}.some(Boolean))({canvas})")
        assert browser.said == []
    finally:
        browser.ask("Emulation.clearDeviceMetricsOverride")


def test_hostile_names_are_text(browser, tmp_path):
    for number in (0, 4, 8):
        sites = {"site": [0, 1, 0, 2, 2], "meta": {"sites": [HOSTILE_SITE, *HOSTILE[number : number + 4]]}}
        trace = Trace.from_columns("".join(HOSTILE[number : number + 4]), **THREE, **sites)
        opened(browser, report_of(trace, tmp_path))
        assert browser.run("document.querySelectorAll('img').length") == 0
        assert browser.run("document.title") != "gotcha"
        assert browser.said == []
    shown = [point_at(browser, ".maps figure", *place) for place in layout_box(trace)]
    assert HOSTILE_SITE.split("\n", maxsplit=1)[0] in shown[0]
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.said == []


def test_the_dark_theme_repaints(browser, tmp_path):
    opened(browser, report_of(Trace.from_columns("three", **THREE), tmp_path))
    canvas = "document.querySelector('.maps canvas').getContext('2d')"
    corner = f"[...{canvas}.getImageData(100, 20, 1, 1).data.slice(0, 3)]"
    in_view(browser, ".maps figure canvas")
    browser.until(f"{corner}.join() === '255,255,255'")
    browser.run("document.getElementById('theme').click()")
    browser.until(f"{corner}.join() === '21,25,31'")
    assert browser.said == []


def test_a_dump(browser, tmp_path):
    source = tmp_path / "dump.json"
    source.write_text(json.dumps(DUMP).replace('"activations"', json.dumps(HOSTILE_SITE)))
    opened(browser, write_page(tmp_path / "dump.html", dump_report(read_dump(source))))
    x, y, width, _ = in_view(browser, "#map canvas")
    tips = []
    for share in (0.3, 0.8, 0.97):
        browser.mouse("mouseMoved", x + 76 + share * (width - 76), y + 10)
        tips.append(browser.run("document.querySelector('#map .tip').innerText"))
    assert "live" in tips[0]
    assert "40.0 MiB" in tips[0]
    assert HOSTILE_SITE.split("\n", maxsplit=1)[0] in tips[0]
    assert "20.0 MiB" in tips[1]
    assert "a.py:1 f" in tips[1]
    assert "free" in tips[2]
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.said == []
