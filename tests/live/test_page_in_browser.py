"""The live page in a real browser: blocks come and go, and nobody is asked while nobody looks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import smartpool
from smartpool.units import MiB

sys.path.insert(0, str(Path(__file__).parent / "kit"))
from browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

LIVE = "document.getElementById('live').textContent"
BLOCKS = "document.getElementById('live-note').textContent"
HOSTILE = "<img src=x onerror=document.title='gotcha'>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def shown(browser):
    config = smartpool.SmartPoolConfig(max_bytes="256MiB")
    with smartpool.SmartPool("cpu", config) as pool, pool.serve() as server:
        browser.open(server.url)
        browser.until("document.getElementById('state')?.textContent === 'live'")
        yield pool, browser
        browser.open("about:blank")
        assert browser.said == []


BOX = (
    "(({x, y, width, height}) => [x, y, width, height])"
    "(document.getElementById('map').getBoundingClientRect())"
)
PIXEL = (
    "(([x, y]) => { const map = document.getElementById('map'), d = devicePixelRatio;"
    " return [...map.getContext('2d').getImageData(x * d, y * d, 1, 1).data]; })"
)


def place_of(browser, share):
    """Return where in the map, in CSS pixels, the position at a share of everything is."""
    _, _, width, height = browser.run(BOX)
    rows = height // 20
    row = int(share * rows)
    return width * (share * rows - row), height * (row + 0.4) / rows


def pixel(browser, share):
    return browser.run(f"{PIXEL}({list(place_of(browser, share))})")


def test_a_block_is_shown_while_it_lives_and_gone_when_it_is_freed(shown):
    pool, browser = shown
    kept = pool.malloc(40 * MiB)
    browser.until(f"{BLOCKS}.startsWith('1 blocks')")
    block = pool.malloc(24 * MiB)
    browser.until(f"{BLOCKS}.startsWith('2 blocks')")
    assert browser.run(LIVE) == "64.0 MiB"
    layout = pool.memory_map()
    total, position = sum(layout.ranges.nbytes), 0
    for nbytes, owner in zip(layout.ranges.nbytes, layout.ranges.block, strict=True):
        if owner == block:
            break
        position += nbytes
    middle = (position + 12 * MiB) / total
    left, top, _, _ = browser.run(BOX)
    x, y = place_of(browser, middle)
    browser.mouse("mouseMoved", left + x, top + y)
    browser.until("!document.getElementById('tip').hidden")
    assert browser.run("document.getElementById('tip').textContent").startswith("live: 24 MiB")
    browser.until("document.getElementById('holders').textContent.includes('24 MiB')")
    browser.run("new Promise((done) => setTimeout(done, 1000))")  # what changed glows for a while
    alive = pixel(browser, middle)
    pool.free(block)
    pool.managers[0].flush()
    browser.until(f"{BLOCKS}.startsWith('1 blocks')")
    assert browser.run(LIVE) == "40.0 MiB"
    assert "24 MiB" not in browser.run("document.getElementById('holders').textContent")
    browser.run("new Promise((done) => setTimeout(done, 1000))")
    assert pixel(browser, middle) != alive
    pool.free(kept)
    browser.until(f"{BLOCKS}.startsWith('0 blocks')")


def test_pause_zoom_and_whole(shown):
    pool, browser = shown
    held = [pool.malloc(8 * MiB) for _ in range(12)]
    browser.until(f"{BLOCKS}.startsWith('12 blocks')")
    browser.run("document.getElementById('in').click()")
    browser.until("document.getElementById('view').textContent.includes('from')")
    browser.run("document.getElementById('whole').click()")
    browser.until("document.getElementById('view').textContent.includes('chunks')")
    browser.run("document.getElementById('pause').click()")
    browser.until("document.getElementById('state').textContent === 'paused'")
    asked = []
    for manager in pool.managers:
        original = manager.memory_map
        manager.memory_map = lambda original=original: asked.append(1) or original()
    pool.free(held.pop())
    browser.run("new Promise((done) => setTimeout(done, 800))")
    assert asked == []  # a page that stands still costs the program nothing
    assert browser.run(BLOCKS).startswith("12 blocks")
    browser.run("document.getElementById('pause').click()")
    browser.until(f"{BLOCKS}.startsWith('11 blocks')")
    assert asked
    for pointer in held:
        pool.free(pointer)


def test_a_hostile_tag_is_text(shown):
    pool, browser = shown
    pool.start_tracking()
    with pool.tag(HOSTILE):
        held = pool.malloc(MiB)
    browser.until("document.getElementById('holders').textContent.includes('onerror')")
    assert browser.run("document.querySelectorAll('#holders img').length") == 0
    assert "gotcha" not in browser.run("document.title")
    pool.free(held)


def test_a_request_that_failed_is_an_event(shown):
    pool, browser = shown
    held = pool.malloc(160 * MiB)
    with pytest.raises(MemoryError):
        pool.malloc(150 * MiB)
    browser.until("document.querySelector('#events li').textContent.includes('Tried to allocate')")
    pool.free(held)
