"""Tiers: where they begin and end, and that one more is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE_S

from smartpool.tiers import LARGEST, Tier, tier_of

TITLES = ["small: below 1 MiB", "medium: 1 to 16 MiB", "large: 16 to 256 MiB", "huge: above 256 MiB"]


@given(st.integers(0, 1 << 50))
def test_a_size_is_in_the_first_tier_that_holds_it(size):
    assert tier_of(size) is next(tier for tier in Tier if tier.most is None or size <= tier.most)


def test_tiers_rise_and_the_last_one_has_no_end():
    *ends, last = (tier.most for tier in Tier)
    assert last is None
    assert ends == sorted(ends)
    assert tuple(ends) == LARGEST
    assert [tier.title for tier in Tier] == TITLES
    assert Tier("medium") is Tier.MEDIUM


FIFTH = """\
import sys
from importlib import resources
from types import ModuleType

name = "smartpool.tiers"
source = resources.files("smartpool").joinpath("tiers.py").read_text(encoding="utf-8")
line = '    HUGE = "huge", None\\n'
assert line in source
module = sys.modules[name] = ModuleType(name)
exec(source.replace(line, '    HUGE = "huge", 1024 * MiB\\n    GIANT = "giant", None\\n'), module.__dict__)

import smartpool
from smartpool.cli.served import check_frame
from smartpool.cli.terminal import TerminalView
from smartpool.live import LiveView
from smartpool.report.analysis import analysis
from smartpool.report.trace_report import trace_report
from smartpool.trace import Trace
from rich.console import Console

GiB = 1 << 30
with smartpool.SmartPool("model:80GiB", track=True, record=True) as pool:
    held = [pool.malloc(nbytes) for nbytes in (512, 1 << 20, 1 << 25, 1 << 29, 3 * GiB)]
    device = pool.statistics.devices[0]
    assert device.tiers["giant"].live_bytes == 3 * GiB, device.tiers
    assert device.tracked.tiers["giant"].current_bytes == 3 * GiB
    assert "giant" in pool.memory_map().blocks.tier
    frame = LiveView(pool).frame({"device": 0, "first": 0, "last": None, "cells": 400, "after": 0})
    check_frame(frame)
    assert frame["tiers"][-1]["title"] == "giant: above 1 GiB"
    assert len({tier["color"] for tier in frame["tiers"]}) == 5
    for colored in (True, False):
        console = Console(width=120, force_terminal=colored, color_system="truecolor" if colored else None)
        with console.capture() as shown:
            console.print(TerminalView(console).take(frame))
        assert "giant" in shown.get()
    page = trace_report(analysis(pool.stop_recording(), against=["pytorch"]))
    assert "giant: above 1 GiB" in page and '"color":"t4"' in page
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        pass
    else:
        from smartpool.metrics import register
        registry = CollectorRegistry()
        register(pool, registry=registry)
        assert b'tier="giant"' in generate_latest(registry)
    for pointer in held:
        pool.free(pointer)
print("all of it")
"""


def test_a_fifth_tier_is_one_line_and_everything_shows_it():
    pytest.importorskip("rich")
    done = subprocess.run(
        [sys.executable, "-c", FIFTH],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all of it\n"


def test_the_pages_name_the_tiers_with_their_ends():
    docs = Path(__file__).parents[1] / "docs" / "statistics.md"
    text = docs.read_text(encoding="utf-8")
    for tier in Tier:
        name, sizes = tier.title.split(": ")
        assert f"`{name}` ({sizes})" in text
