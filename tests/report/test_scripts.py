"""The page's pure functions, run by Node where it is installed, against the same done in Python."""

from __future__ import annotations

import json
import random
import shutil
import subprocess

import numpy as np
import pytest
from waiting import PATIENCE_S

from smartpool.drawing.assets import asset
from smartpool.report.packing import packed
from smartpool.report.text import format_count, format_share
from smartpool.units import format_bytes

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no Node is installed")


def run(files: tuple[str, ...], program: str, given: object) -> object:
    """Return what `program`, a function body over `given`, returns beside the functions of `files`."""
    source = "\n".join(asset(name, "smartpool.report") for name in files)
    wrapped = (
        f"{source}\n(async () => {{ const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
        f"process.stdout.write(JSON.stringify(await (async () => {{ {program} }})())); }})();"
    )
    done = subprocess.run(
        [NODE, "-e", wrapped],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_figures_read_as_they_do_in_python():
    values = [0, 1, 1023, 1024, 1536, 999 << 10, 1004 << 10, 10 << 20, 1215 << 20, 11 << 30, 5 << 40, 7 << 50]
    program = "return given.map((n) => [formatBytes(n), formatCount(n), formatShare(n / 2 ** 43)]);"
    assert run(("format.js",), program, values) == [
        [format_bytes(n), format_count(n), format_share(n / 2**43)] for n in values
    ]
    assert run(("format.js",), "return formatBytes(given);", 3 << 60) == format_bytes(3 << 60)


def test_times_and_ticks():
    program = """return [
      [0, 999, 1500, 2.5e6, 9e7, 8e9].map(formatMicroseconds),
      [[4370200, 4371000, 200], [0, 9e6, 1e6], [3e6, 9e6, 5e5], [12, 90, 5]].map((one) => formatTick(...one)),
      byteTicks(3 * 2 ** 29, 6).map(({label}) => label), roundTicks(95, 1010, 5), roundTicks(0, 0.4, 4),
    ];"""
    times, labels, nbytes, ticks, fine = run(("format.js",), program, None)
    assert times == ["0 µs", "999 µs", "1.50 ms", "2.50 s", "1.50 min", "2.22 h"]
    assert labels == ["4.3702 s", "0", "3.0 s", "12 µs"]
    assert nbytes == ["0", "0.25 GiB", "0.5 GiB", "0.75 GiB", "1 GiB", "1.25 GiB", "1.5 GiB"]
    assert ticks == [200, 400, 600, 800, 1000]
    assert fine == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_columns_are_read_as_they_were_packed():
    draw = random.Random(7)
    columns = {
        "none": [], "zero": [0] * 9, "mixed": [draw.randint(-(1 << 40), 1 << 40) for _ in range(500)],
        "rising": sorted(draw.randint(0, 1 << 50) for _ in range(500)), "sizes": [512 * n for n in range(99)],
        "negative": [-1] * 7, "large": [(1 << 53) - 1, 0, 1 << 52],
    }  # fmt: skip
    directory, text = packed({name: np.array(values, np.int64) for name, values in columns.items()})
    program = """const columns = unpackColumns(await inflated(fromBase64(given[1])), given[0]);
    return Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, [...values]]));"""
    assert run(("format.js", "columns.js"), program, [directory, text]) == columns


def test_the_highest_of_any_stretch():
    draw = random.Random(3)
    values = [draw.randint(0, 50) for _ in range(10_000)]
    asked = []
    for _ in range(500):
        begin = draw.randrange(len(values))
        asked.append((begin, draw.randint(begin + 1, len(values))))
    program = """const highest = new Highest(Float64Array.from(given[0]));
    return given[1].map(([from, to]) => highest.within(from, to));"""
    found = run(("series.js",), program, [values, asked])
    assert found == [begin + int(np.argmax(values[begin:end])) for begin, end in asked]


def test_live_bytes_and_searches():
    program = """return [
      [...liveAfterEvents(4, [0, 1], [2, 4], [10, 5])],
      [...liveAfterEvents(4, [0, 1], [2, 4], [10, 5], (i) => i === 1)],
      liveAt(1, [0, 1], [2, 4]), liveAt(2, [0, 1], [2, 4]),
      [-1, 0, 4, 5, 9].map((n) => lastAtMost([0, 5, 5, 8], n)),
    ];"""
    assert run(("series.js",), program, None) == [
        [10, 15, 5, 5], [0, 5, 5, 5], [0, 1], [1], [-1, 0, 0, 2, 3]
    ]  # fmt: skip


def test_a_raster_keeps_the_area_of_what_it_paints():
    draw = random.Random(11)
    rectangles = []
    for column in range(0, 60, 6):  # side by side, so that none covers another
        left, top = column + draw.random() * 2, draw.random() * 30
        rectangles.append((left, top, left + draw.random() * 3, top + draw.random() * 9))
    program = """const raster = new Raster(60, 40);
    for (const edges of given) raster.add(...edges, [10, 20, 30]);
    let area = 0;
    for (let i = 0; i < raster.whole.length; i++) area += raster.whole[i] ? 1 : raster.parts[4 * i + 3];
    return [area, raster.whole.find((word) => word)];"""
    area, word = run(("raster.js",), program, rectangles)
    wanted = sum((right - left) * (bottom - top) for left, top, right, bottom in rectangles)
    assert area == pytest.approx(wanted, rel=0.02)
    assert word == 0xFF1E140A


def test_a_raster_is_clipped_and_blended():
    program = """const raster = new Raster(4, 2);
    raster.add(-5, -5, 2, 9, [200, 0, 0]);
    raster.add(2, 0, 2.5, 1, [0, 200, 0]);
    raster.add(9, 9, 12, 12, [0, 0, 200]);
    const pixels = new Uint8ClampedArray(32).fill(100);
    raster.blend(pixels);
    return [...pixels.slice(0, 16)];"""
    row = run(("raster.js",), program, None)
    assert row[:8] == [200, 0, 0, 255] * 2
    assert row[8:11] == [29, 171, 29]  # half a pixel, raised to the root of a half
    assert row[12:] == [100] * 4


def test_the_row_under_a_point():
    program = """const rows = {start: [0, 10, 10], end: [10, 20, 11], low: [0, 0, 100], high: [50, 90, 101]};
    return given.map(([time, address, near, bytes]) => rowAt(rows, time, address, near, bytes));"""
    asked = [
        (5, 10, 1, 1),
        (10, 10, 1, 1),
        (10.5, 100.5, 1, 1),
        (12, 102, 3, 3),
        (25, 10, 1, 1),
        (5, 60, 1, 1),
    ]
    assert run(("raster.js",), program, asked) == [0, 1, 2, 2, -1, -1]
