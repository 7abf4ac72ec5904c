"""The page in a real browser, where there is one: its script runs under its own policy, and does its work."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from report_runs import HOSTILE, make_run
from waiting import PATIENCE_S

from smartpool.report.picture import picture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

USER = """<script>
const keys = document.querySelectorAll("button.key"), drawing = document.querySelector(".plot > svg");
keys[1].click();
drawing.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
drawing.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
</script></body>"""


def opened(page: str, tmp_path) -> tuple[str, str]:
    """Return the body after its scripts ran, and what the browser said about it."""
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout.split("</head>")[1], "\n".join(said)


def test_the_script_runs_under_the_policy_and_nothing_else_does(tmp_path):
    page = picture([make_run(name, name, device=name) for name in HOSTILE])
    assert page.count(" disabled ") == len(HOSTILE)
    shown, said = opened(page, tmp_path)
    assert "<button" in shown
    assert ' disabled=""' not in shown  # our script did that
    assert said == ""
    shown, said = opened(page.replace("</body>", USER), tmp_path)
    assert 'aria-pressed="false"' not in shown
    assert "Content Security Policy" in said


def test_values_under_the_cursor_and_hidden_lines(tmp_path):
    page = picture([make_run(allocator="ours"), make_run(allocator="theirs", reserved=6 << 30)])
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    shown, said = opened(page.replace("</body>", USER), tmp_path)
    assert said == ""
    tip = re.search(r'<div class="tip"[^>]*>(.*?)</figure>', shown, re.DOTALL)[1]
    words = re.sub(r"<[^>]+>", " ", tip).split()
    assert words[:8] == ["event", "1", "ours", "2.00", "GiB", "live", "1.50", "GiB"]
    assert len(re.findall(r'aria-pressed="false"', shown)) == 1
    assert len(re.findall(r'class="(?:line|label)[^"]* off"', shown)) == 2
