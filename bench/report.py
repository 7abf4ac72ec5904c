"""What a report costs: seconds to write, bytes of the file, seconds to open it, milliseconds a frame.

Opening is measured in a headless Chromium without a GPU, from navigation to the frame after the first
one that has every picture; frames while the view is panned by the keyboard, with the curves and with the
maps in sight. The browser is the test suite's own, spoken to through its debugging pipe.

    python bench/report.py [TRACE ...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import write_results

from smartpool.report.analysis import analysis
from smartpool.report.page import write_page
from smartpool.report.trace_report import trace_report
from smartpool.trace import read_any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "live" / "kit"))
TRACES = ("llama-train", "llama-serve")
OPENINGS = 5
FRAMES = 40
READY = "document.documentElement?.dataset.ready"

PAN = """(async () => {
  const canvas = document.querySelector(%r);
  canvas.scrollIntoView({block: 'center'});
  await new Promise((done) => setTimeout(done, 500));
  canvas.dispatchEvent(new KeyboardEvent('keydown', {key: '+'}));
  const times = [];
  for (let n = 0; n < %d; n++) {
    const begin = performance.now();
    canvas.dispatchEvent(new KeyboardEvent('keydown', {key: n %% 2 ? 'ArrowLeft' : 'ArrowRight'}));
    await new Promise(requestAnimationFrame);
    await new Promise((done) => setTimeout(done, 0));
    times.push(performance.now() - begin);
  }
  return times.sort((a, b) => a - b);
})()"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="*", default=TRACES, help="names in tests/data/traces, or files")
    args = parser.parse_args()
    rows = {}
    heads = ("trace", "events", "replay s", "write s", "MiB", "open s", "curves ms", "maps ms")
    print("{:20} {:>8} {:>9} {:>8} {:>6} {:>7} {:>10} {:>8}".format(*heads))
    for name in args.traces:
        path = Path(name) if Path(name).exists() else ROOT / "tests" / "data" / "traces" / f"{name}.npz"
        row = measured(path)
        rows[row["trace"]] = row
        print(
            f"{row['trace']:20} {row['events']:8,} {row['replay_seconds']:9.2f} {row['write_seconds']:8.2f} "
            f"{row['bytes'] / 2**20:6.2f} {row['open_seconds']['median']:7.2f} "
            f"{row['curves_frame_ms']['median']:10.1f} {row['maps_frame_ms']['median']:8.1f}"
        )
    print(write_results("report", rows))


def measured(path: Path) -> dict[str, object]:
    trace = read_any(path)
    begin = time.perf_counter()
    found = analysis(trace)
    replayed = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(Path(folder) / "report.html", trace_report(found))
        written = time.perf_counter()
        return {
            "trace": trace.name,
            "events": trace.events,
            "allocators": [layout.allocator for layout in found.layouts],
            "replay_seconds": round(replayed - begin, 3),
            "write_seconds": round(written - replayed, 3),
            "bytes": page.stat().st_size,
            **in_browser(page, folder),
        }


def in_browser(page: Path, folder: str) -> dict[str, object]:
    from browser import Browser

    with Browser(Path(folder) / "profile", width=1600, height=1000) as browser:
        openings = []
        for _ in range(OPENINGS):
            browser.open("about:blank")
            begin = time.perf_counter()
            browser.open(page.as_uri())
            browser.until(READY, seconds=60)
            openings.append(time.perf_counter() - begin)
        curves = browser.run(PAN % ("#timeline canvas", FRAMES))
        maps = browser.run(PAN % (".maps canvas", FRAMES))
        if browser.said:
            raise SystemExit(f"the page complained: {browser.said}")
        version = browser.run("navigator.userAgent.match(/Chrome\\/[\\d.]+/)[0]")
    return {
        "browser": version,
        "open_seconds": spread(openings, 3),
        "curves_frame_ms": spread(curves, 2),
        "maps_frame_ms": spread(maps, 2),
    }


def spread(values: list[float], digits: int) -> dict[str, float]:
    return {
        "least": round(min(values), digits),
        "median": round(statistics.median(values), digits),
        "most": round(max(values), digits),
    }


if __name__ == "__main__":
    main()
