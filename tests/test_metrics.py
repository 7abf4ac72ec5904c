"""Metrics: what a scrape says is what the pool says, under names that keep the conventions."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from smartpool import (
    InvalidRequestError,
    MiB,
    MissingPackageError,
    OutOfMemoryError,
    SmartPool,
    SmartPoolConfig,
)
from smartpool.metrics import register, unregister
from smartpool.values import encodable

prometheus_client = pytest.importorskip("prometheus_client")
generate_latest = pytest.importorskip("prometheus_client.openmetrics.exposition").generate_latest
families_of = pytest.importorskip("prometheus_client.openmetrics.parser").text_string_to_metric_families

HOSTILE = 'a "tag"\nwith {braces}, and \\'


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


def scraped(registry):
    """Return (sample name, labels) -> value, by way of the text that goes over the wire."""
    text = generate_latest(registry).decode()
    families = list(families_of(text))
    assert len({family.name for family in families}) == len(families)
    return families, {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def worked(pool):
    """Do some of everything, and return the pool's own account of it."""
    stream = pool.managers[0].driver.create_stream()
    with pool.tag(HOSTILE):
        pool.malloc(3 * MiB)
    pool.malloc(40 * MiB, stream)
    pool.free(pool.malloc(5000))
    with pytest.raises(OutOfMemoryError):
        pool.malloc(60 * MiB)
    pool.free(pool.malloc(5000))
    return pool.statistics.devices[0]


def test_every_sample_is_the_pools_own_figure(registry):
    with SmartPool("model:1GiB", SmartPoolConfig(max_bytes="64MiB", track=True)) as pool:
        now = worked(pool)
        register(pool, registry=registry, name="main")
        _, samples = scraped(registry)

        def value(name, **labels):
            return samples[name, frozenset({"device": "model:1GiB", "pool": "main", **labels}.items())]

        for name in (
            "live_bytes", "live_blocks", "cached_bytes", "gap_bytes", "reserved_bytes", "peak_reserved_bytes",
            "largest_free_bytes", "cap_bytes", "device_free_bytes",
        ):  # fmt: skip
            assert value(f"smartpool_{name}") == getattr(now, name), name
        assert value("smartpool_device_capacity_bytes") == now.device_total_bytes
        assert value("smartpool_out_of_memory_errors_total") == 1
        assert value("smartpool_searches_total") == now.searches
        assert value("smartpool_pressure_ratio") == pytest.approx(now.pressure)
        for part, expected in now.fragmentation.as_dict().items():
            assert value("smartpool_fragmentation_ratio", part=part) == pytest.approx(expected)
        for tier, group in now.tiers.items():
            assert value("smartpool_tier_live_bytes", tier=tier) == group.live_bytes
        for stream, group in now.streams.items():
            assert value("smartpool_stream_live_bytes", stream=str(stream)) == group.live_bytes
        assert value("smartpool_tag_live_bytes", tag=HOSTILE) == 3 * MiB
        assert value("smartpool_allocations_total", tier="small") == 2
        assert value("smartpool_allocated_bytes_total", tier="large") == 40 * MiB
        assert value("smartpool_driver_calls_total", call="map_chunk") == now.driver_calls["map_chunk"]


def test_names_units_and_kinds_keep_the_conventions(registry):
    with SmartPool("model:1GiB", SmartPoolConfig(max_bytes="64MiB", track=True)) as pool:
        worked(pool)
        register(pool, registry=registry)
        families, _ = scraped(registry)
        assert len(families) > 25
        for family in families:
            assert family.name.startswith("smartpool_")
            assert family.documentation.endswith(".")
            assert family.type in ("gauge", "counter")
            for word, unit in (("bytes", "bytes"), ("seconds", "seconds"), ("ratio", "ratio")):
                assert (unit == family.unit) == family.name.endswith(word), family.name
            assert "total" not in family.name
            assert all(s.name.endswith("_total") == (family.type == "counter") for s in family.samples)


def test_counters_only_grow(registry):
    with SmartPool("model:1GiB", SmartPoolConfig(track=True)) as pool:
        register(pool, registry=registry)
        before = scraped(registry)[1]
        for _ in range(3):
            pool.free(pool.malloc(MiB))
            pool.trim()
        after = scraped(registry)[1]
        assert all(after[key] >= value for key, value in before.items() if key[0].endswith("_total"))
        assert any(after[key] > value for key, value in before.items() if key[0].endswith("_total"))


def test_several_pools_and_devices_share_the_families(registry):
    with SmartPool(["model:1GiB", "model:1GiB"]) as one, SmartPool("model:2GiB") as two:
        register(one, registry=registry, name="one")
        register(two, registry=registry, name="two")
        with pytest.raises(InvalidRequestError, match="one"):
            register(two, registry=registry, name="one")
        families, _ = scraped(registry)
        live = next(family for family in families if family.name == "smartpool_live_bytes")
        assert {(s.labels["pool"], s.labels["device"]) for s in live.samples} == {
            ("one", "model:1GiB"), ("one", "model:1GiB#1"), ("two", "model:2GiB"),
        }  # fmt: skip
        unregister(one, registry=registry)
        assert len(scraped(registry)[0][0].samples) == 1


def test_registering_asks_the_pool_nothing_and_does_not_keep_it_alive(registry):
    pool = SmartPool("model:1GiB", SmartPoolConfig(enable_auto_defragmentation=False))
    calls = pool.managers[0].driver.calls["memory_info"]
    register(pool, registry=registry)
    assert pool.managers[0].driver.calls["memory_info"] == calls
    del pool
    gc.collect()
    assert scraped(registry)[0] == []


def test_the_registry_that_the_client_serves_is_the_default():
    with SmartPool("model:1GiB") as pool:
        register(pool)
        assert b"smartpool_live_bytes" in prometheus_client.generate_latest()
        unregister(pool)
        assert b"smartpool_live_bytes" not in prometheus_client.generate_latest()


def test_every_family_can_be_asked_for_by_name(registry):
    """As by ``/metrics?name[]=``: the names are told before there is a figure."""
    with SmartPool("model:1GiB", SmartPoolConfig(max_bytes="64MiB", track=True)) as pool:
        register(pool, registry=registry)
        worked(pool)
        for family in scraped(registry)[0]:
            names = {sample.name for sample in family.samples}
            for name in names:
                found = scraped(registry.restricted_registry([name]))[0]
                assert [one.name for one in found] == [family.name]
                assert len(found[0].samples) == len(family.samples)


def test_names_that_are_taken_are_refused_on_either_side(registry):
    with SmartPool("model:1GiB") as pool:
        taken = prometheus_client.CollectorRegistry()
        prometheus_client.Gauge("smartpool_live_bytes", "mine", registry=taken)
        with pytest.raises(InvalidRequestError, match="smartpool_live_bytes"):
            register(pool, registry=taken)
        assert generate_latest(taken).count(b"smartpool_live_bytes") == 3  # only the program's own
        register(pool, registry=registry)
        with pytest.raises(ValueError, match="smartpool_live_bytes"):
            prometheus_client.Gauge("smartpool_live_bytes", "mine", registry=registry)


@pytest.mark.parametrize("name", [3, None, "", b"main", ["main"], 10**50])
def test_what_is_no_name(registry, name):
    with SmartPool("model:1GiB") as pool, pytest.raises(InvalidRequestError, match="name: expected"):
        register(pool, registry=registry, name=name)


def test_one_odd_text_does_not_take_the_page_from_the_others(registry):
    """Names that UTF-8 cannot encode come from the file system: as tags, of pools, and of devices."""
    odd = "caf\udce9"
    prometheus_client.Gauge("app_up", "the program's own", registry=registry).set(1)
    with SmartPool("model:1GiB", SmartPoolConfig(track=True)) as pool:
        pool.managers[0].driver.name = odd
        register(pool, registry=registry, name=odd)
        with pool.tag(odd):
            pool.malloc(100)
        samples = scraped(registry)[1]
        assert samples["app_up", frozenset()] == 1
        shown = encodable(odd)
        labels = frozenset({"device": shown, "pool": shown, "tag": shown}.items())
        assert samples["smartpool_tag_live_bytes", labels] == 100


def test_a_pool_that_cannot_be_asked_is_left_out(registry):
    with SmartPool("model:1GiB") as ill, SmartPool("model:2GiB") as well:
        register(ill, registry=registry, name="an ill one")
        register(well, registry=registry, name="well")
        faults = ill.managers[0].driver.faults
        faults.fail("memory_info", times=1 << 20)
        assert {dict(labels).get("pool") for _, labels in scraped(registry)[1]} == {"well"}
        faults.clear()
        assert {dict(labels).get("pool") for _, labels in scraped(registry)[1]} == {"an ill one", "well"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:This process .*is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_the_page_without_the_parents_pools(registry):
    prometheus_client.Gauge("app_up", "the program's own", registry=registry).set(1)
    with SmartPool("model:1GiB") as pool:
        register(pool, registry=registry)
        child = os.fork()
        if not child:
            code = 1
            try:
                samples = scraped(registry)[1]
                with SmartPool("model:2GiB") as own:
                    register(own, registry=registry, name="own")
                    named = {dict(labels).get("pool") for _, labels in scraped(registry)[1]}
                code = 0 if set(samples) == {("app_up", frozenset())} and named == {None, "own"} else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert scraped(registry)[0]


def test_without_the_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        SmartPool("model:1GiB") as pool,
        pytest.raises(MissingPackageError, match="run: pip install prometheus-client"),
    ):
        register(pool)
