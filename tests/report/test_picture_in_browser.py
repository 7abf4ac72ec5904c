"""The page of runs in a real browser, where there is one: its script alone runs, and does its work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from report_runs import HOSTILE, make_run

from smartpool.report.picture import picture

sys.path.insert(0, str(Path(__file__).parents[1] / "live" / "kit"))
from browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

READY = "document.documentElement?.dataset.ready"
TIP = "document.querySelector('.chart .tip').innerText"
INTRUDER = "<script>document.title = 'gotcha'</script></body>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), width=1200, height=1000) as browser:
        yield browser


def opened(browser: Browser, path: Path) -> Browser:
    browser.said.clear()
    browser.open(path.as_uri())
    browser.until(f"location.href === {json.dumps(path.as_uri())} && {READY}")
    return browser


def test_the_script_runs_under_the_policy_and_nothing_else_does(browser, tmp_path):
    runs = [make_run(name, name, device=name) for name in HOSTILE]
    path = tmp_path / "page.html"
    page = picture(runs)
    path.write_text(INTRUDER.join(page.rsplit("</body>", 1)), encoding="utf-8")
    opened(browser, path)
    assert browser.run("document.querySelectorAll('button.key:enabled').length") == len(HOSTILE)
    assert browser.run("document.querySelectorAll('canvas').length") == 2 * len(HOSTILE)
    assert browser.run("document.title") != "gotcha"
    assert browser.run("document.querySelectorAll('img').length") == 0
    (said,) = browser.said
    assert "Content Security Policy" in said


def test_values_under_the_keys_and_hidden_lines(browser, tmp_path):
    runs = [make_run(allocator="ours"), make_run(allocator="theirs", reserved=6 << 30)]
    opened(browser(runs, tmp_path / "page.html"))
    press = "document.querySelector('.chart canvas').dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}))"
    browser.run(press % "ArrowRight")
    assert browser.run(TIP).split() == [
        "events", "0", "to", "4,", "the", "most",
        "theirs", "3.00", "GiB", "ours", "2.00", "GiB", "live", "1.50", "GiB",
    ]  # fmt: skip
    browser.run("document.querySelectorAll('button.key')[1].click()")
    browser.run(press % "ArrowRight")
    assert browser.run(TIP).split()[4:10] == ["the", "most", "ours", "4.00", "GiB", "live"]
    assert browser.run("document.querySelectorAll('[aria-pressed=false]').length") == 1
    browser.run(press % "Escape")
    assert browser.run("document.querySelector('.chart .tip').hidden")
    assert browser.said == []


def test_a_run_without_events_has_no_picture_and_no_complaint(browser, tmp_path):
    run = make_run(live=0, reserved=0, events=0, timeline=())
    opened(browser([run], tmp_path / "page.html"))
    assert browser.run("document.querySelectorAll('canvas').length") == 0
    assert browser.said == []
