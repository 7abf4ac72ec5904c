"""What a pool says about itself: frozen snapshots, derived when asked for.

The quick path counts nothing. Live bytes are the sum over the table of live blocks, cached bytes
the sum over the bins, and so on: a snapshot costs O(live blocks), about 50 ns for each, whatever
was recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import nan
from typing import TYPE_CHECKING, Any, Final, TypeVar

from smartpool.pool.bins import Bin
from smartpool.pool.slow_path import steady
from smartpool.steps.stepping import StepStatistics
from smartpool.telemetry.fragmentation import Fragmentation, fragmentation_of
from smartpool.telemetry.tracked import Tracked
from smartpool.tiers import Tier, tier_of
from smartpool.units import MiB, format_size

if TYPE_CHECKING:
    from smartpool.pool.slow_path import SlowPath

__all__ = [
    "COUNTERS",
    "GAUGES",
    "GroupSnapshot",
    "MemorySnapshot",
    "OptimizationOutcome",
    "PoolStatistics",
    "Reduction",
    "by_stream",
    "by_tier",
    "take_snapshot",
]


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """One tier or stream: live blocks and bytes as requested, and bytes cached in its bins."""

    live_blocks: int
    live_bytes: int
    cached_blocks: int
    cached_bytes: int


def _gauge(meaning: str) -> dict[str, str]:
    return {"gauge": meaning}


def _count(meaning: str) -> dict[str, str]:
    return {"counter": meaning}


@dataclass(frozen=True, slots=True, repr=False)
class MemorySnapshot:
    """One device's memory at an instant. All sizes in bytes.

    A figure that is marked as a gauge or a counter is shown by that mark: in the metrics with its text, and
    in the frames of the live page.

    Attributes
    ----------
    live_bytes, live_blocks
        As requested, before rounding to 512.
    block_bytes
        Live blocks after rounding.
    cached_bytes
        Freed blocks in bins, ready for a request of the same size.
    gap_bytes
        Free ranges of the arenas, mapped.
    reserved_bytes, peak_reserved_bytes
        Physical memory that the pool holds, now and at most.
    peak_live_bytes
        The largest `live_bytes` seen when the pool grew or was looked at; exact while tracking.
    largest_free_bytes
        The largest gap.
    cap_bytes, device_free_bytes, device_total_bytes
        The pool's limit, and what the driver says.
    searches, flushes, grows
        How often a request had to look for a gap, bins were emptied, and no gap was found.
    waits
        Waits between streams that were queued on the device.
    steps
        Planned steps: how many, hits, misses, bytes planned.
    driver_calls
        Number of driver calls by name.
    driver_seconds
        What they cost, where that is measured or modeled.
    tiers, streams
        Live and cached blocks by the tier of the request, and by the stream: that of the request for
        live blocks, that of the last use for cached ones.
    fragmentation
        The live metric by its parts.
    tracked
        Exact figures by tier, stream, tag and scope; None while nobody tracks.
    out_of_memory_errors
        Requests that failed for lack of memory.
    """

    device: str
    live_bytes: int = field(metadata=_gauge("Bytes in live blocks, as requested."))
    live_blocks: int = field(metadata=_gauge("Live blocks."))
    block_bytes: int
    cached_bytes: int = field(metadata=_gauge("Freed blocks in bins, ready for a request of their size."))
    gap_bytes: int = field(metadata=_gauge("Free ranges between blocks, mapped."))
    reserved_bytes: int = field(metadata=_gauge("Physical memory that the pool holds."))
    peak_reserved_bytes: int = field(metadata=_gauge("The most physical memory that the pool ever held."))
    peak_live_bytes: int = field(metadata=_gauge("The most live bytes that were seen."))
    largest_free_bytes: int = field(metadata=_gauge("The largest free range."))
    cap_bytes: int = field(metadata=_gauge("What the pool may hold at most."))
    device_free_bytes: int = field(metadata=_gauge("Free on the device, by its driver."))
    device_total_bytes: int = field(metadata=_gauge("Memory of the device."))
    searches: int = field(metadata=_count("Requests that had to look for a gap."))
    flushes: int = field(metadata=_count("Times that the bins were emptied."))
    grows: int = field(metadata=_count("Times that memory was mapped."))
    waits: int = field(metadata=_count("Waits between streams that were queued on the device."))
    steps: StepStatistics
    driver_calls: Mapping[str, int]
    driver_seconds: float
    tiers: Mapping[str, GroupSnapshot]
    streams: Mapping[int, GroupSnapshot]
    fragmentation: Fragmentation
    tracked: Tracked | None = None
    out_of_memory_errors: int = field(default=0, metadata=_count("Requests that failed for lack of memory."))

    def __repr__(self) -> str:
        return (
            f"<MemorySnapshot of {self.device}: {format_size(self.live_bytes)} live in {self.live_blocks} "
            f"blocks, {format_size(self.reserved_bytes)} reserved>"
        )

    def __str__(self) -> str:
        parts = self.fragmentation.as_dict()
        overall = parts.pop("overall")
        rows = {
            "live": f"{format_size(self.live_bytes)} in {self.live_blocks} blocks, "
            f"at most {format_size(self.peak_live_bytes)}",
            "reserved": f"{format_size(self.reserved_bytes)} of {format_size(self.cap_bytes)}, "
            f"at most {format_size(self.peak_reserved_bytes)}",
            "cached": f"{format_size(self.cached_bytes)} in bins, {format_size(self.gap_bytes)} in gaps, "
            f"the largest {format_size(self.largest_free_bytes)}",
            "fragmentation": f"{overall:.1%}: " + ", ".join(f"{name} {x:.1%}" for name, x in parts.items()),
            "driver": f"{sum(self.driver_calls.values())} calls, {self.driver_seconds * 1e3:.3g} ms",
        }
        return "\n".join([self.device, *(f"  {name:<13} {text}" for name, text in rows.items())])

    @property
    def pressure(self) -> float:
        """Share in use of the cap or of the device, whichever is nearer to its end, in [0, 1]."""
        device = 1 - self.device_free_bytes / self.device_total_bytes
        return max(self.reserved_bytes / self.cap_bytes, device)

    def as_dict(self) -> dict[str, Any]:
        """Return everything in plain dictionaries, ready for JSON."""
        return asdict(self) | {
            "streams": {str(stream): asdict(group) for stream, group in self.streams.items()},
            "fragmentation": self.fragmentation.as_dict(),
            "pressure": self.pressure,
            "tracked": None if self.tracked is None else self.tracked.as_dict(),
        }


def _marked(kind: str) -> dict[str, str]:
    return {one.name: one.metadata[kind] for one in fields(MemorySnapshot) if kind in one.metadata}


GAUGES: Final = _marked("gauge")
"""The figures of a `MemorySnapshot` that go up and down, with what they mean."""

COUNTERS: Final = _marked("counter")
"""Those that only grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """Fragmentation of a recorded run against the caching baseline on the same requests.

    Attributes
    ----------
    events
        Requests and frees that were recorded.
    fragmentation, baseline_fragmentation
        ``1 - peak live / peak reserved`` of the pool, and of the model of PyTorch's caching
        allocator on the recorded requests.
    """

    events: int
    fragmentation: float
    baseline_fragmentation: float

    @property
    def percentage(self) -> float:
        """By how many per cent the pool's fragmentation is below the baseline's; negative if above."""
        if self.baseline_fragmentation <= 0:
            return 0.0 if self.fragmentation <= 0 else -100.0
        return 100 * (1 - self.fragmentation / self.baseline_fragmentation)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationOutcome:
    """What one optimization did.

    Attributes
    ----------
    fragmentation_before, fragmentation_after
        Overall live metric of the worst device among `devices`.
    memory_freed_bytes
        Given back to the devices.
    """

    devices: tuple[str, ...]
    fragmentation_before: float
    fragmentation_after: float
    memory_freed_bytes: int

    @property
    def fragmentation_reduced(self) -> float:
        """By how much the live metric fell."""
        return self.fragmentation_before - self.fragmentation_after

    @property
    def memory_freed_mb(self) -> float:
        """Given back to the devices, in MiB."""
        return self.memory_freed_bytes / MiB


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolStatistics:
    """A pool at an instant, over all its devices. `as_dict` says it in plain dictionaries, `str` to a reader.

    Attributes
    ----------
    devices
        One snapshot a device.
    reduction
        Against the caching baseline, as `SmartPool.measured_reduction` found it last; None before.
    target_reduction
        What `target_achieved` asks for, as a share.
    optimizations, memory_freed_bytes
        Calls of `SmartPool.optimize_memory`, and times that the background optimizer gave memory of a device
        back; and how much both gave back.
    """

    devices: tuple[MemorySnapshot, ...]
    reduction: Reduction | None
    target_reduction: float
    optimizations: int
    memory_freed_bytes: int
    background_running: bool
    background_passes: int
    background_error: BaseException | None

    def __repr__(self) -> str:
        return f"<PoolStatistics: {', '.join(map(repr, self.devices))}>"

    def __str__(self) -> str:
        rows = {
            "reduction": _basis(self.reduction),
            "optimizer": f"gave {format_size(self.memory_freed_bytes)} back in {self.optimizations} passes",
        }
        own = (f"  {name:<13} {text}" for name, text in rows.items())
        return "\n".join([*map(str, self.devices), "pool", *own])

    @property
    def current_fragmentation(self) -> float:
        """The live metric, weighted over devices by what they reserve; 0 when nothing is reserved."""
        reserved = sum(device.reserved_bytes for device in self.devices)
        if not reserved:
            return 0.0
        return sum(d.fragmentation.overall * d.reserved_bytes for d in self.devices) / reserved

    @property
    def overall_reduction_percentage(self) -> float:
        """The reduction that was measured last, in per cent; ``nan`` before one was measured."""
        return nan if self.reduction is None else self.reduction.percentage

    @property
    def target_achieved(self) -> bool:
        """Whether the reduction that was measured last reaches the target; False before."""
        return self.overall_reduction_percentage >= 100 * self.target_reduction

    def _by_name(self) -> dict[str, dict[str, Any]]:
        """Return the devices by name; one that is there again is numbered: ``cpu``, ``cpu#1``."""
        named: dict[str, dict[str, Any]] = {}
        for index, device in enumerate(self.devices):
            name = f"{device.device}#{index}" if device.device in named else device.device
            named[name] = device.as_dict()
        return named

    def as_dict(self) -> dict[str, Any]:
        """Return everything in plain dictionaries, ready for JSON."""
        error = self.background_error
        return {
            "smartpool_stats": {
                "current_fragmentation": self.current_fragmentation,
                "live_bytes": sum(device.live_bytes for device in self.devices),
                "live_blocks": sum(device.live_blocks for device in self.devices),
                "reserved_bytes": sum(device.reserved_bytes for device in self.devices),
                "overall_reduction_percentage": self.overall_reduction_percentage,
                "overall_reduction_basis": _basis(self.reduction),
                "target_reduction_percentage": 100 * self.target_reduction,
                "target_achieved": self.target_achieved,
                "optimizations": self.optimizations,
                "memory_freed_mb": self.memory_freed_bytes / MiB,
            },
            "devices": self._by_name(),
            "background": {
                "running": self.background_running,
                "passes": self.background_passes,
                "error": None if error is None else f"{type(error).__name__}: {error}",
            },
        }


def _basis(reduction: Reduction | None) -> str:
    if reduction is None:
        return "nothing was measured: call start_recording(), and in the end measured_reduction()"
    return (
        f"{reduction.percentage:.1f} % measured on {reduction.events} recorded events: "
        f"{reduction.fragmentation:.2%} fragmentation here, "
        f"{reduction.baseline_fragmentation:.2%} with PyTorch's caching allocator (modeled)"
    )


Key = TypeVar("Key", bound=Hashable)
Counted = Iterable[tuple[Bin, int]]


def by_tier(live: Counted, cached: Counted) -> dict[str, GroupSnapshot]:
    """Return blocks and bytes by tier, from the number of blocks of each bin."""
    empty: dict[str, list[int]] = {tier.value: [0, 0, 0, 0] for tier in Tier}
    return _grouped(empty, lambda bin_: bin_.tier.value, live, cached)


def by_stream(live: Counted, cached: Counted) -> dict[int, GroupSnapshot]:
    """Return blocks and bytes by stream, from the number of blocks of each bin."""
    return _grouped({}, lambda bin_: bin_.stream, live, [(bin_, count) for bin_, count in cached if count])


def _grouped(
    figures: dict[Key, list[int]], key_of: Callable[[Bin], Key], live: Counted, cached: Counted
) -> dict[Key, GroupSnapshot]:
    for bin_, count in live:
        figure = figures.setdefault(key_of(bin_), [0, 0, 0, 0])
        figure[0] += count
        figure[1] += bin_.nbytes * count
    for bin_, count in cached:
        figure = figures.setdefault(key_of(bin_), [0, 0, 0, 0])
        figure[2] += count
        figure[3] += bin_.size * count
    return {key: GroupSnapshot(*figure) for key, figure in figures.items()}


def take_snapshot(pool: SlowPath, steps: StepStatistics) -> MemorySnapshot:
    """Return what is known of a pool now, but for the requests themselves. In its critical section."""
    if pool.front is not None:
        pool.front.drain(everything=True)
    live = Counter(steady(pool.live)).items()  # by bin: one pass over the blocks, in C
    cached = [(bin_, len(bin_)) for bin_ in [*pool.every_bin(), *_deferred_bins(pool)]]
    live_bytes = sum(bin_.nbytes * count for bin_, count in live)
    pool.peak_live_bytes = max(pool.peak_live_bytes, live_bytes)
    info = pool.driver.memory_info()
    return MemorySnapshot(
        device=pool.driver.name,
        live_bytes=live_bytes,
        live_blocks=sum(count for _, count in live),
        block_bytes=sum(bin_.size * count for bin_, count in live),
        cached_bytes=sum(bin_.size * count for bin_, count in cached),
        gap_bytes=sum(pool.heap.free_ranges()),
        reserved_bytes=pool.memory.reserved_bytes,
        peak_reserved_bytes=pool.memory.peak_reserved_bytes,
        peak_live_bytes=pool.peak_live_bytes,
        largest_free_bytes=pool.heap.largest_gap_bytes,
        cap_bytes=pool.memory.cap_bytes,
        device_free_bytes=info.free,
        device_total_bytes=info.total,
        searches=pool.searches,
        flushes=pool.flushes,
        grows=pool.grows,
        waits=pool.clock.waits,
        steps=steps,
        driver_calls=dict(pool.driver.calls),
        driver_seconds=pool.driver.seconds,
        tiers=by_tier(live, cached),
        streams=by_stream(live, cached),
        fragmentation=fragmentation_of(pool, live_bytes),
    )


def _deferred_bins(pool: SlowPath) -> list[Bin]:
    """Return a bin for each block that was freed and is not joined yet, for counting."""
    bins = []
    for stream, deferred in list(pool.deferred.items()):
        for pointer in deferred.copy():
            size = pool.heap.block_size(pointer) or 0
            bins.append(Bin(size, size, stream, tier_of(size), set()))
            bins[-1].append(pointer)
    return bins
