"""What would make a pool better, each with the figure that says so.

Nothing here is a rule of thumb about programs in general: a recommendation comes from the pool's own
statistics, or from its own recording, replayed with the change on a model of the device. Where nothing
is recorded, the first recommendation is to record. ``smartpool advise`` says it of a trace in a file.

The thresholds say what is worth a reader's time, not what is good: a change of less than 2 % of what
is reserved, or of less than 16 MiB, is not told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import InvalidRequestError
from smartpool.pool.manager import AdvancedMemoryPoolManager
from smartpool.pool.telemetry.statistics import MemorySnapshot
from smartpool.smart_pool import SmartPool
from smartpool.trace.replay import Run, replay
from smartpool.trace.targets import PoolTarget
from smartpool.trace.trace import ALLOCATE, Trace
from smartpool.units import MiB, TiB, format_size

__all__ = ["Recommendation", "recommend"]

_WORTH: Final = 0.02  # of what is reserved
_WORTH_BYTES: Final = 16 * MiB
_FEW_EVENTS: Final = 100
_STEPS_MISS: Final = 0.1
_STEPS_LEFT: Final = 0.5
_FEW_STEPS: Final = 3
_BINS_MISS: Final = 0.4
_ENOUGH_REQUESTS: Final = 50
_WORD: Final = 16  # sizes in a row
_PLACES: Final = 64  # where they stood before
_EVIDENCE: Final = 2048  # requests, or one whole repetition, that a period explains
_AGREEMENT: Final = 0.99  # of them
_STEPS_PER_OCTAVE: Final = 8  # sizes that a runtime might round to, between two powers of two


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One thing to change.

    Attributes
    ----------
    kind
        A name for it: ``"policy"``, ``"record"``, ``"sizes"``, ``"steps"``, ``"stream"``, ``"limit"``,
        ``"defragmentation"``, ``"pooling"`` or ``"idle"``.
    device
        Where.
    text
        What to do and why, with the figures.
    nbytes
        Bytes that it would save, as far as that is known.
    figures
        The figures that led to it, by name.
    """

    kind: str
    device: str
    text: str
    nbytes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


def recommend(
    source: SmartPool | Trace, *, config: SmartPoolConfig | None = None
) -> tuple[Recommendation, ...]:
    """Return what is worth changing, the most bytes first.

    A recording is replayed up to three times, at some 5 us an event.

    Parameters
    ----------
    source
        A pool, of which statistics and recording are looked at, if it records; or a trace.
    config
        How the pool behaves that a trace is played on; None for the defaults. A pool has its own.

    Examples
    --------
    >>> import smartpool
    >>> with smartpool.SmartPool("model:1GiB") as pool:
    ...     [advice.kind for advice in recommend(pool)]
    ['record']
    """
    if isinstance(source, Trace):
        found = list(_from_recording(config or SmartPoolConfig(), source.name, source))
    elif isinstance(source, SmartPool):
        found = [
            advice
            for number, now in enumerate(source.statistics.devices)
            for advice in _of_device(source.config, now, source.recording(number))
        ]
    else:
        raise InvalidRequestError(f"expected a SmartPool or a Trace, got {source!r}")
    return tuple(sorted(found, key=lambda advice: -advice.nbytes))


def _of_device(config: SmartPoolConfig, now: MemorySnapshot, trace: Trace | None) -> Iterator[Recommendation]:
    yield from _from_statistics(config, now)
    if trace is None or len(trace) < _FEW_EVENTS:
        text = "start_recording(), let the program run, and ask again: recordings are replayed with changes"
        yield Recommendation(kind="record", device=now.device, text=text)
        return
    for advice in _from_recording(config, now.device, trace):
        if advice.kind != "steps" or not now.steps.hits:  # steps are served from plans already
            yield advice


def _from_recording(config: SmartPoolConfig, device: str, trace: Trace) -> Iterator[Recommendation]:
    if len(trace) < _FEW_EVENTS:
        return
    yield from _from_replays(config, device, trace)
    yield from _from_sizes(device, trace)
    yield from _from_repetition(device, trace)


# ---------------------------------------------------------------------- from statistics alone


def _from_statistics(config: SmartPoolConfig, now: MemorySnapshot) -> Iterator[Recommendation]:
    worth = max(_WORTH_BYTES, int(_WORTH * now.reserved_bytes))
    for stream, group in now.streams.items():
        if group.cached_bytes >= worth and not group.live_blocks:
            yield Recommendation(
                kind="stream",
                device=now.device,
                text=f"stream {stream} strands {format_size(group.cached_bytes)} in {group.cached_blocks} "
                "freed blocks and has nothing live: if it is not used any more, optimize_memory() lets other "
                "streams have them",
                nbytes=group.cached_bytes,
                figures={"stream": stream, "cached_bytes": group.cached_bytes},
            )
    beyond = now.device_free_bytes
    near = now.reserved_bytes >= config.memory_pressure_threshold * now.cap_bytes
    if config.max_bytes is not None and near and beyond >= worth:
        yield Recommendation(
            kind="limit",
            device=now.device,
            text=f"raise max_bytes: {format_size(now.peak_reserved_bytes)} of the limit of "
            f"{format_size(now.cap_bytes)} were reserved, while the device has {format_size(beyond)} free",
            figures={"cap_bytes": now.cap_bytes, "device_free_bytes": beyond},
        )
    idle = now.reserved_bytes - now.block_bytes
    overall = now.fragmentation.overall
    if not config.enable_auto_defragmentation and overall > config.fragmentation_threshold and idle >= worth:
        yield Recommendation(
            kind="defragmentation",
            device=now.device,
            text="enable_auto_defragmentation=True, or call optimize_memory(): fragmentation is "
            f"{overall:.0%}, above the threshold of {config.fragmentation_threshold:.0%}, and "
            f"{format_size(idle)} idle",
            nbytes=idle,
            figures={"fragmentation": overall, "idle_bytes": idle},
        )
    if not config.enable_advanced_pooling:
        calls = now.driver_calls.get("allocate", 0)
        yield Recommendation(
            kind="pooling",
            device=now.device,
            text=f"enable_advanced_pooling=True: {calls} requests each went to the driver, which took "
            f"{now.driver_seconds:.3g} s",
            figures={"calls": calls, "driver_seconds": now.driver_seconds},
        )
    steps = now.steps
    asked = steps.hits + steps.misses
    missed = asked >= _FEW_EVENTS and steps.misses > _STEPS_MISS * asked
    if missed or steps.left >= max(_FEW_STEPS, _STEPS_LEFT * steps.planned):
        yield Recommendation(
            kind="steps",
            device=now.device,
            text=f"{steps.misses} of {asked} requests in planned steps came otherwise than planned, and "
            f"{steps.left} of {steps.planned} repetitions were left to the heap in the middle: mark phases "
            "that differ as steps of different names, so that each has its own plan",
            figures={"hits": steps.hits, "misses": steps.misses, "left": steps.left},
        )


# ---------------------------------------------------------------------- from the recording


def _from_replays(config: SmartPoolConfig, device: str, trace: Trace) -> Iterator[Recommendation]:
    """Replay with the other named policies, beside the one that the pool has."""
    own = _replayed(config, trace)
    for name, place in POLICIES.items():
        if config.policy in (name, place):
            continue
        other = _replayed(replace(config, policy=name), trace)
        saved = own.peak_reserved_bytes - other.peak_reserved_bytes
        milliseconds = (other.driver_seconds - own.driver_seconds) * 1e3
        figures = {
            "policy": name,
            "events": len(trace),
            "peak_reserved_bytes": own.peak_reserved_bytes,
            "peak_reserved_bytes_then": other.peak_reserved_bytes,
            "driver_seconds": own.driver_seconds,
            "driver_seconds_then": other.driver_seconds,
        }
        if saved >= max(_WORTH_BYTES, int(_WORTH * own.peak_reserved_bytes)):
            yield Recommendation(
                kind="policy",
                device=device,
                text=f"policy={name!r} would save {format_size(saved)} of "
                f"{format_size(own.peak_reserved_bytes)} for {milliseconds:+.1f} ms in the driver: your "
                f"recording of {len(trace)} events, replayed on the model of a device",
                nbytes=saved,
                figures=figures,
            )
        elif -saved <= _WORTH * own.peak_reserved_bytes and milliseconds < -0.3e3 * own.driver_seconds:
            yield Recommendation(
                kind="policy",
                device=device,
                text=f"policy={name!r} would spend {other.driver_seconds * 1e3:.1f} ms in the driver instead "
                f"of {own.driver_seconds * 1e3:.1f}, for {format_size(max(0, -saved))} more memory: your "
                f"recording of {len(trace)} events, replayed on the model of a device",
                figures=figures,
            )


def _replayed(config: SmartPoolConfig, trace: Trace) -> Run:
    plain = replace(
        config, max_bytes=None, record=False, track=False, stack_depth=0, debug=False, shareable=False
    )
    manager = AdvancedMemoryPoolManager(ModelDriver(64 * TiB), plain)
    return replay(trace, PoolTarget(manager), streams="own")


def _from_sizes(device: str, trace: Trace) -> Iterator[Recommendation]:
    """Find sizes that miss their bins, and would not if they were rounded up a little."""
    exact, rounded, requests, sizes = _bin_hits(trace)
    for group, count in requests.most_common():
        misses = 1 - exact[group] / count
        if count < _ENOUGH_REQUESTS or misses <= _BINS_MISS or len(sizes[group]) < 2:
            continue
        then = 1 - rounded[group] / count
        if then > misses / 2:
            continue
        low, high = min(sizes[group]), max(sizes[group])
        yield Recommendation(
            kind="sizes",
            device=device,
            text=f"{count} requests from {format_size(low)} to {format_size(high)} come in "
            f"{len(sizes[group])} sizes and miss their bins {misses:.0%} of the time; rounded up to "
            f"{format_size(group)} it would be {then:.0%}, for at most {format_size(group - low)} more each",
            figures={
                "rounded_bytes": group,
                "requests": count,
                "sizes": len(sizes[group]),
                "miss_share": misses,
                "miss_share_then": then,
            },
        )


def _bin_hits(trace: Trace) -> tuple[Counter[int], Counter[int], Counter[int], dict[int, set[int]]]:
    """Return by rounded size: hits of bins of exact and of rounded sizes, requests, and the sizes met."""
    exact: Counter[int] = Counter()
    rounded: Counter[int] = Counter()
    requests: Counter[int] = Counter()
    sizes: dict[int, set[int]] = defaultdict(set)
    free: Counter[tuple[str, int, int]] = Counter()
    for op, nbytes, stream in zip(trace.op.tolist(), trace.size.tolist(), trace.stream.tolist(), strict=True):
        group = _round_up(nbytes)
        own, shared = ("own", nbytes, stream), ("shared", group, stream)
        if op != ALLOCATE:
            free[own] += 1
            free[shared] += 1
            continue
        requests[group] += 1
        sizes[group].add(nbytes)
        for bin_, hits in ((own, exact), (shared, rounded)):
            if free[bin_]:
                free[bin_] -= 1
                hits[group] += 1
    return exact, rounded, requests, sizes


def _round_up(nbytes: int) -> int:
    """Return the next size of the form ``(8 + k) * 2**n`` with ``0 <= k < 8``.

    >>> _round_up(1000), _round_up(1024), _round_up(1025)
    (1024, 1024, 1152)
    """
    step = max(512, 1 << max(0, (nbytes - 1).bit_length() - 1)) // _STEPS_PER_OCTAVE
    return -(-nbytes // step) * step


def _from_repetition(device: str, trace: Trace) -> Iterator[Recommendation]:
    sizes = trace.size[trace.op == ALLOCATE]
    period = _period(sizes)
    if period is not None:
        yield Recommendation(
            kind="steps",
            device=device,
            text=f"mark steps (with pool.step(): ...): the last of {len(sizes)} recorded requests repeat "
            f"after every {period}, and none was served from a plan",
            figures={"period": period, "requests": len(sizes)},
        )


def _period(sizes: NDArray[np.int64]) -> int | None:
    """Return after how many requests a sequence of sizes repeats itself at its end; None if it does not.

    Where the last `_WORD` sizes stood before tells what it could be.
    """
    last = len(sizes) - 1
    earlier = np.flatnonzero(sizes[_WORD:last] == sizes[last]) + _WORD if last > _WORD else sizes[:0]
    for back in range(1, _WORD):
        earlier = earlier[sizes[earlier - back] == sizes[last - back]]
    for period in (last - earlier[: -_PLACES - 1 : -1]).tolist():
        evidence = max(period, _EVIDENCE)
        if period + evidence > len(sizes):
            break
        early = sizes[len(sizes) - evidence - period : len(sizes) - period]
        if np.mean(sizes[len(sizes) - evidence :] == early) >= _AGREEMENT:
            return period if period >= _WORD else None  # what is shorter, bins serve as well
    return None
