"""Metrics for Prometheus and whoever else reads OpenMetrics, by `prometheus_client` (extra ``metrics``).

Nothing is counted for it: a scrape asks each registered pool for its statistics, and costs what
`SmartPool.statistics` costs, on the scraping thread. Names follow the conventions: base units, the unit
last, ``_total`` for what only grows. Figures by tag and the counts of requests are there while the pool
tracks (`SmartPool.start_tracking`).

All pools of a registry are one collector, because a metric may appear once in an answer. A pool that cannot
be asked (its device is lost, or this is a forked child and the pool the parent's) is left out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from smartpool.errors import InvalidRequestError, MissingPackageError, SmartPoolError
from smartpool.forks import ModuleLock
from smartpool.log import LOGGER
from smartpool.telemetry.statistics import COUNTERS, GAUGES, MemorySnapshot, PoolStatistics
from smartpool.values import encodable, shown

if TYPE_CHECKING:
    from smartpool.smart_pool import SmartPool

__all__ = ["PoolsCollector", "register", "unregister"]

_RENAMED: Final = {"device_total_bytes": "device_capacity_bytes"}  # `total` is for counters
_DEVICE: Final = ("device", "pool")
_GROUPED: Final = {
    "fragmentation_ratio": ("part", "The live metric of fragmentation: its parts, and their weighted sum."),
    "tier_live_bytes": ("tier", "Bytes in live blocks, as requested, by tier."),
    "tier_cached_bytes": ("tier", "Freed blocks in bins, by tier."),
    "stream_live_bytes": ("stream", "Bytes in live blocks, as requested, by stream."),
    "stream_cached_bytes": ("stream", "Freed blocks in bins, by stream."),
    "tag_live_bytes": ("tag", "Bytes in live blocks by the tag of their request."),
    "tag_peak_bytes": ("tag", "The most live bytes of a tag."),
}
_COUNTED: Final = {
    "driver_calls": ("call", "Driver calls."),
    "planned_requests": ("result", "Requests in planned steps that came as planned, or not."),
    "allocations": ("tier", "Requests, while tracked."),
    "frees": ("tier", "Frees, while tracked."),
    "allocated_bytes": ("tier", "Bytes requested, while tracked."),
}
_FAMILIES: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    **{_RENAMED.get(name, name): ("Gauge", text, _DEVICE) for name, text in GAUGES.items()},
    **{name: ("Counter", text, _DEVICE) for name, text in COUNTERS.items()},
    **{name: ("Gauge", text, (*_DEVICE, label)) for name, (label, text) in _GROUPED.items()},
    **{name: ("Counter", text, (*_DEVICE, label)) for name, (label, text) in _COUNTED.items()},
    "pressure_ratio": (
        "Gauge", "Share in use of the limit or of the device, whichever is nearer to its end.", _DEVICE,
    ),
    "driver_seconds": ("Counter", "Time in the driver, where it is measured or modeled.", _DEVICE),
    "background_passes": ("Counter", "Passes of the background optimizer.", ("pool",)),
    "hook_failures": ("Counter", "Hooks that raised.", ("pool",)),
}  # fmt: skip
"""Of each family its kind, its text, and its labels in the order of their values."""

_UNITS: Final = ("bytes", "seconds", "ratio")

_registering: Final = ModuleLock()
_collectors: Final[WeakKeyDictionary[Any, PoolsCollector]] = WeakKeyDictionary()


def register(pool: SmartPool, *, registry: Any = None, name: str = "default") -> None:
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
        When another pool has this name there, it is no name, or the registry has metrics of these names.

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
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(f"name: expected text that tells pools apart, got {shown(name)}")
    with _registering.lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = PoolsCollector(import_module("prometheus_client.core"))
            try:
                registry.register(collector)
            except ValueError as error:
                raise InvalidRequestError(
                    f"registry: expected one without metrics of SmartPool's names, got {error}"
                ) from error
            _collectors[registry] = collector
        collector.add(encodable(name), pool)


def unregister(pool: SmartPool, *, registry: Any = None) -> None:
    """Show the figures of `pool` no more. Does nothing when they are not shown."""
    registry = _client().REGISTRY if registry is None else registry
    with _registering.lock:
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
        self._pools: WeakValueDictionary[str, SmartPool] = WeakValueDictionary()

    def add(self, name: str, pool: SmartPool) -> None:
        """Show a pool under a name."""
        if self._pools.get(name, pool) is not pool:
            raise InvalidRequestError(f"name: expected a name of its own for each pool, got {name!r} again")
        self._pools[name] = pool

    def remove(self, pool: SmartPool) -> None:
        """Show a pool no more."""
        for name, known in list(self._pools.items()):
            if known is pool:
                del self._pools[name]

    def describe(self) -> list[Any]:
        """Return the families without figures: a registry then knows the names, and asks no pool for them."""
        return list(self._families().values())

    def collect(self) -> Iterator[Any]:
        """Yield the families of metrics, each with the samples of all pools and devices."""
        families = self._families()
        with _registering.lock:  # which is not held while pools are asked
            pools = sorted(self._pools.items(), key=itemgetter(0))
        for name, pool in pools:
            try:
                statistics = pool.statistics
            except SmartPoolError as error:
                LOGGER.debug("pool %r has no metrics: %s", name, error)
                continue
            for family, values, figure in _figures(name, statistics):
                families[family].add_metric(values, figure)
            families["hook_failures"].add_metric((name,), pool.hooks.failures)
        yield from (family for family in families.values() if family.samples)

    def _families(self) -> dict[str, Any]:
        made = {}
        for name, (kind, text, labels) in _FAMILIES.items():
            unit = next((unit for unit in _UNITS if name.endswith(f"_{unit}")), "")
            family = getattr(self._core, f"{kind}MetricFamily")
            made[name] = family(f"smartpool_{name}", text, labels=labels, unit=unit)
        return made


_Sample = tuple[str, tuple[str, ...], float]  # the family, the values of its labels, and the figure


def _figures(name: str, statistics: PoolStatistics) -> Iterator[_Sample]:
    """Yield the samples of one pool."""
    yield "background_passes", (name,), statistics.background_passes
    names = [device.device for device in statistics.devices]
    for index, device in enumerate(statistics.devices):
        again = names[index] in names[:index]
        label = f"{names[index]}#{index}" if again else names[index]  # as `get_statistics`
        of_device = encodable(label), name
        for family, figure in _simple(device):
            yield family, of_device, figure
        for family, group, figure in _grouped(device):
            yield family, (*of_device, encodable(str(group))), figure


def _simple(now: MemorySnapshot) -> Iterator[tuple[str, float]]:
    for name in (*GAUGES, *COUNTERS):
        yield _RENAMED.get(name, name), getattr(now, name)
    yield "pressure_ratio", now.pressure
    yield "driver_seconds", now.driver_seconds


def _grouped(now: MemorySnapshot) -> Iterator[tuple[str, object, float]]:
    """Yield family, group and figure."""
    for part, value in now.fragmentation.as_dict().items():
        yield "fragmentation_ratio", part, value
    for call, count in now.driver_calls.items():
        yield "driver_calls", call, count
    yield "planned_requests", "hit", now.steps.hits
    yield "planned_requests", "miss", now.steps.misses
    for kind, groups in (("tier", now.tiers), ("stream", now.streams)):
        for key, group in groups.items():
            yield f"{kind}_live_bytes", key, group.live_bytes
            yield f"{kind}_cached_bytes", key, group.cached_bytes
    if now.tracked is None:
        return
    for tier, counts in now.tracked.tiers.items():
        yield "allocations", tier, counts.allocations
        yield "frees", tier, counts.frees
        yield "allocated_bytes", tier, counts.total_bytes
    for tag, counts in now.tracked.tags.items():
        yield "tag_live_bytes", tag, counts.current_bytes
        yield "tag_peak_bytes", tag, counts.peak_bytes


def _client() -> Any:
    try:
        return import_module("prometheus_client")
    except ImportError as error:
        raise MissingPackageError(
            "metrics need prometheus_client, which is not installed; run: pip install prometheus-client"
        ) from error
