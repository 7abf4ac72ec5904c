"""The pages about statistics, metrics, debugging and out of memory leave nothing out."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from smartpool import MiB, OutOfMemoryError, SmartPool, SmartPoolConfig
from smartpool.debug_options import DebugOptions
from smartpool.metrics import register
from smartpool.telemetry.hooks import AllocateEvent, FreeEvent, Hooks, MapEvent

DOCS = Path(__file__).parents[1] / "docs"

# Keys below these are names of the program's: devices, calls, streams, tags, scopes.
OPEN = {"devices", "driver_calls", "streams", "tags", "tags_at_peak", "profiles", "cached_by_stream"}


def page(name):
    """Return the words that a page sets as code."""
    text = re.sub(r"```.*?```", "", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    return {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[A-Za-z_]+", code)}


def keys_of(value, *, named=True):
    """Return the keys of nested dictionaries that are the pool's own words."""
    if isinstance(value, list):
        return {key for item in value for key in keys_of(item)}
    if not isinstance(value, dict):
        return set()
    found = set(value) if named else set()
    for key, inner in value.items():
        found |= keys_of(inner, named=not (named and key in OPEN))
    return found


@pytest.fixture
def full():
    """A pool that has everything to tell."""
    config = SmartPoolConfig(record=True, track=True, stack_depth=3, max_bytes="64MiB")
    with SmartPool("model:1GiB", config) as pool:
        with pool.tag("weights"), pool.profile("scope"):
            pool.malloc(3 * MiB)
        pool.free(pool.malloc(MiB))
        yield pool


def test_every_key_of_the_statistics_is_described(full):
    assert keys_of(full.get_statistics()) - page("statistics.md") == set()


def test_every_key_of_the_memory_map_is_described(full):
    assert keys_of(full.memory_map().as_dict()) - page("statistics.md") == set()


def test_every_hook_and_its_events_are_described():
    words = page("statistics.md")
    assert {name for name in dir(Hooks) if name.startswith("on_")} <= words
    for event in (AllocateEvent, FreeEvent, MapEvent):
        assert {field.name for field in dataclasses.fields(event)} <= words


def test_every_kind_of_recommendation_is_described():
    source = (DOCS.parent / "smartpool" / "recommendations.py").read_text(encoding="utf-8")
    assert set(re.findall(r'kind="(\w+)"', source)) <= page("statistics.md")


def test_every_key_of_a_dump_is_described(full, tmp_path, monkeypatch):
    monkeypatch.setenv("SMARTPOOL_OUT_OF_MEMORY_DUMP", str(tmp_path))
    with pytest.raises(OutOfMemoryError) as caught:
        full.malloc(62 * MiB)
    document = json.loads(Path(caught.value.dump_path).read_text(encoding="utf-8"))
    elsewhere = {"snapshot", "memory_map"}  # described with the statistics
    own = {key: value for key, value in document.items() if key not in elsewhere}
    assert (keys_of(own) | elsewhere) - page("out-of-memory.md") == set()


def test_every_metric_is_described_and_every_described_one_is_there(full):
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    register(full, registry=registry)
    shown = {sample.name for family in registry.collect() for sample in family.samples}
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(smartpool_\w+)`", text))
    assert shown == described


def test_every_option_of_debug_mode_is_described():
    assert {field.name for field in dataclasses.fields(DebugOptions)} <= page("debugging.md")
