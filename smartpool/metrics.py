"""Metrics for Prometheus and whoever else reads OpenMetrics, by `prometheus_client` (extra ``metrics``).

Nothing is counted for it: a scrape asks each registered pool for its statistics, and costs what
`SmartPool.statistics` costs, on the scraping thread. Names follow the conventions: base units, the unit
last, ``_total`` for what only grows. Figures by tag and the counts of requests are there while the pool
tracks (`SmartPool.start_tracking`).

All pools of a registry are one collector, because a metric may appear once in an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from smartpool.errors import InvalidRequestError, MissingPackageError
from smartpool.pool.telemetry.statistics import MemorySnapshot, PoolStatistics

if TYPE_CHECKING:
    from smartpool.faces.watching import WatchingFace

__all__ = ["PoolsCollector", "register", "unregister"]

_GAUGES: Final = {
    "live_bytes": "Bytes in live blocks, as requested.",
    "live_blocks": "Live blocks.",
    "cached_bytes": "Freed blocks in bins, ready for a request of their size.",
    "gap_bytes": "Free ranges between blocks, mapped.",
    "reserved_bytes": "Physical memory that the pool holds.",
    "peak_reserved_bytes": "The most physical memory that the pool ever held.",
    "peak_live_bytes": "The most live bytes that were seen.",
    "largest_free_bytes": "The largest free range.",
    "cap_bytes": "What the pool may hold at most.",
    "device_free_bytes": "Free on the device, by its driver.",
    "device_total_bytes": "Memory of the device.",
    "pressure_ratio": "Share in use of the limit or of the device, whichever is nearer to its end.",
}
_COUNTERS: Final = {
    "searches": "Requests that missed their bin.",
    "flushes": "Times that the bins were emptied.",
    "grows": "Times that memory was mapped.",
    "waits": "Waits between streams that were queued on the device.",
    "out_of_memory_errors": "Requests that failed for lack of memory.",
}
_UNITS: Final = ("bytes", "seconds", "ratio")
_RENAMED: Final = {"device_total_bytes": "device_capacity_bytes"}  # `total` is for counters

_lock: Final = threading.Lock()
_collectors: Final[WeakKeyDictionary[Any, PoolsCollector]] = WeakKeyDictionary()


def register(pool: WatchingFace, *, registry: Any = None, name: str = "default") -> None:
    """Show the figures of `pool` in a registry of `prometheus_client`, with the label ``pool=name``.

    The pool is not kept alive; when it is gone, so are its figures.

    Parameters
    ----------
    pool
        The pool.
    registry
        A `CollectorRegistry`; None for the one that `prometheus_client` serves by itself.
    name
        Tells pools of one process apart.

    Raises
    ------
    MissingPackageError
        When `prometheus_client` is not installed.
    InvalidRequestError
        When another pool has this name there.

    Examples
    --------
    >>> import smartpool.metrics
    >>> from prometheus_client import CollectorRegistry, generate_latest
    >>> registry, pool = CollectorRegistry(), smartpool.SmartPool("model:1GiB")
    >>> smartpool.metrics.register(pool, registry=registry)
    >>> b'smartpool_live_bytes{device="model:1GiB",pool="default"} 0.0' in generate_latest(registry)
    True
    >>> pool.close()
    """
    client = _client()
    registry = client.REGISTRY if registry is None else registry
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = PoolsCollector(import_module("prometheus_client.core"))
            registry.register(collector)
            _collectors[registry] = collector
        collector.add(name, pool)


def unregister(pool: WatchingFace, *, registry: Any = None) -> None:
    """Show the figures of `pool` no more. Does nothing when they are not shown."""
    registry = _client().REGISTRY if registry is None else registry
    with _lock:
        collector = _collectors.get(registry)
        if collector is not None:
            collector.remove(pool)


class PoolsCollector:
    """The metrics of some pools, computed when somebody asks; a collector of `prometheus_client`.

    Parameters
    ----------
    core
        The module `prometheus_client.core`.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._pools: WeakValueDictionary[str, WatchingFace] = WeakValueDictionary()

    def add(self, name: str, pool: WatchingFace) -> None:
        """Show a pool under a name."""
        if self._pools.get(name, pool) is not pool:
            raise InvalidRequestError(f"name: expected a name of its own for each pool, got {name!r} again")
        self._pools[name] = pool

    def remove(self, pool: WatchingFace) -> None:
        """Show a pool no more."""
        for name, shown in list(self._pools.items()):
            if shown is pool:
                del self._pools[name]

    def describe(self) -> list[Any]:
        """Return nothing: a registry then does not ask for figures when this is registered."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the families of metrics, each with the samples of all pools and devices."""
        families = _Families(self._core)
        for name, pool in sorted(self._pools.items()):
            statistics = pool.statistics
            for index, device in enumerate(statistics.devices):
                again = any(other.device == device.device for other in statistics.devices[:index])
                label = f"{device.device}#{index}" if again else device.device  # as `get_statistics`
                families.add_device({"device": label, "pool": name}, device)
            families.add_pool(name, pool, statistics)
        yield from families.made.values()


class _Families:
    """Families of metrics by name, made when their first sample comes."""

    def __init__(self, core: Any) -> None:
        self.made: dict[str, Any] = {}
        self._gauge = core.GaugeMetricFamily
        self._counter = core.CounterMetricFamily

    def _add(self, made: Any, name: str, text: str, labels: dict[str, str], value: float) -> None:
        family = self.made.get(name)
        if family is None:
            unit = next((unit for unit in _UNITS if name.endswith(f"_{unit}")), "")
            family = self.made[name] = made(f"smartpool_{name}", text, labels=list(labels), unit=unit)
        family.add_metric(list(labels.values()), value)

    def add_pool(self, name: str, pool: WatchingFace, statistics: PoolStatistics) -> None:
        """Add what belongs to no device."""
        labels = {"pool": name}
        text = "Passes of the background optimiser."
        self._add(self._counter, "background_passes", text, labels, statistics.background_passes)
        self._add(self._counter, "hook_failures", "Hooks that raised.", labels, pool.hooks.failures)

    def add_device(self, labels: dict[str, str], now: MemorySnapshot) -> None:
        """Add the samples of one device."""
        for name, text in _GAUGES.items():
            value = now.pressure if name == "pressure_ratio" else getattr(now, name)
            self._add(self._gauge, _RENAMED.get(name, name), text, labels, value)
        for name, text in _COUNTERS.items():
            self._add(self._counter, name, text, labels, getattr(now, name))
        for part, value in now.fragmentation.as_dict().items():
            text = "The live metric of fragmentation: its parts, and their weighted sum."
            self._add(self._gauge, "fragmentation_ratio", text, {**labels, "part": part}, value)
        for call, count in now.driver_calls.items():
            self._add(self._counter, "driver_calls", "Driver calls.", {**labels, "call": call}, count)
        text = "Time in the driver, where it is measured or modelled."
        self._add(self._counter, "driver_seconds", text, labels, now.driver_seconds)
        for result, count in (("hit", now.steps.hits), ("miss", now.steps.misses)):
            text = "Requests in planned steps that came as planned, or not."
            self._add(self._counter, "planned_requests", text, {**labels, "result": result}, count)
        for kind, groups in (("tier", now.tiers), ("stream", now.streams)):
            for key, group in groups.items():
                own = {**labels, kind: str(key)}
                text = f"Bytes in live blocks, as requested, by {kind}."
                self._add(self._gauge, f"{kind}_live_bytes", text, own, group.live_bytes)
                text = f"Freed blocks in bins, by {kind}."
                self._add(self._gauge, f"{kind}_cached_bytes", text, own, group.cached_bytes)
        self._add_tracked(labels, now)

    def _add_tracked(self, labels: dict[str, str], now: MemorySnapshot) -> None:
        if now.tracked is None:
            return
        for tier, counts in now.tracked.tiers.items():
            own = {**labels, "tier": tier}
            self._add(self._counter, "allocations", "Requests, while tracked.", own, counts.allocations)
            self._add(self._counter, "frees", "Frees, while tracked.", own, counts.frees)
            text = "Bytes requested, while tracked."
            self._add(self._counter, "allocated_bytes", text, own, counts.total_bytes)
        for tag, counts in now.tracked.tags.items():
            own = {**labels, "tag": tag}
            text = "Bytes in live blocks by the tag of their request."
            self._add(self._gauge, "tag_live_bytes", text, own, counts.current_bytes)
            text = "The most live bytes of a tag."
            self._add(self._gauge, "tag_peak_bytes", text, own, counts.peak_bytes)


def _client() -> Any:
    try:
        return import_module("prometheus_client")
    except ImportError as error:
        raise MissingPackageError(
            "metrics need prometheus_client, which is not installed; run: pip install prometheus-client"
        ) from error
