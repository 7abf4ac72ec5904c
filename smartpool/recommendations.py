"""What would make a pool better, each with the figure that says so.

Nothing here is a rule of thumb about programs in general: a recommendation comes from the pool's own
statistics, or from its own recording, replayed with the change on a model of the device. Where nothing
is recorded, the first recommendation is to record. ``smartpool advise`` says it of a trace in a file.

The thresholds say what is worth a reader's time, not what is good: a change of less than 2 % of what
is reserved, or of less than 16 MiB, is not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from smartpool.config import POLICIES, SmartPoolConfig
from smartpool.driver.model import ModelDriver
from smartpool.errors import InvalidRequestError
from smartpool.manager import AdvancedMemoryPoolManager
from smartpool.smart_pool import SmartPool
from smartpool.telemetry.statistics import MemorySnapshot
from smartpool.trace.replay import Run, replay
from smartpool.trace.targets import PoolTarget
from smartpool.trace.trace import ALLOCATE, Trace
from smartpool.units import MiB, TiB, format_size

__all__ = ["Recommendation", "recommend"]

_WORTH: Final = 0.02  # of what is reserved
_WORTH_BYTES: Final = 16 * MiB
_WORTH_TIME: Final = 0.3  # of what the driver takes
_FEW_EVENTS: Final = 100
_STEPS_MISS: Final = 0.1
_STEPS_LEFT: Final = 0.5
_FEW_STEPS: Final = 3
_WORD: Final = 16  # sizes in a row
_PLACES: Final = 64  # where they stood before
_EVIDENCE: Final = 2048  # requests, or one whole repetition, that a period explains
_AGREEMENT: Final = 0.99  # of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One thing to change.

    Attributes
    ----------
    kind
        A name for it: ``"policy"``, ``"record"``, ``"steps"``, ``"stream"``, ``"limit"``,
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
        yield _advice(now.device, "record", text)
        return
    for advice in _from_recording(config, now.device, trace):
        if advice.kind != "steps" or not now.steps.hits:  # steps are served from plans already
            yield advice


def _from_recording(config: SmartPoolConfig, device: str, trace: Trace) -> Iterator[Recommendation]:
    if len(trace) < _FEW_EVENTS:
        return
    yield from _from_replays(config, device, trace)
    yield from _from_repetition(device, trace)


# ---------------------------------------------------------------------- from statistics alone


def _from_statistics(config: SmartPoolConfig, now: MemorySnapshot) -> Iterator[Recommendation]:
    advice = partial(_advice, now.device)
    worth = max(_WORTH_BYTES, int(_WORTH * now.reserved_bytes))
    for stream, group in now.streams.items():
        cached = group.cached_bytes
        if cached >= worth and not group.live_blocks:
            text = (
                f"stream {stream} strands {format_size(cached)} in {group.cached_blocks} freed blocks and "
                "has nothing live: if it is not used any more, optimize_memory() lets other streams have them"
            )
            yield advice("stream", text, cached, stream=stream, cached_bytes=cached)
    cap, beyond = now.cap_bytes, now.device_free_bytes
    near = now.reserved_bytes >= config.memory_pressure_threshold * cap
    if config.max_bytes is not None and near and beyond >= worth:
        text = (
            f"raise max_bytes: {format_size(now.peak_reserved_bytes)} of the limit of {format_size(cap)} "
            f"were reserved, while the device has {format_size(beyond)} free"
        )
        yield advice("limit", text, cap_bytes=cap, device_free_bytes=beyond)
    idle = now.reserved_bytes - now.block_bytes
    overall = now.fragmentation.overall
    if not config.enable_auto_defragmentation and overall > config.fragmentation_threshold and idle >= worth:
        text = (
            f"enable_auto_defragmentation=True, or call optimize_memory(): fragmentation is {overall:.0%}, "
            f"above the threshold of {config.fragmentation_threshold:.0%}, and {format_size(idle)} idle"
        )
        yield advice("defragmentation", text, idle, fragmentation=overall, idle_bytes=idle)
    if not config.enable_advanced_pooling:
        calls, seconds = now.driver_calls.get("allocate", 0), now.driver_seconds
        text = (
            f"enable_advanced_pooling=True: {calls} requests went to the driver, which took {seconds:.3g} s"
        )
        yield advice("pooling", text, calls=calls, driver_seconds=seconds)
    steps = now.steps
    asked = steps.hits + steps.misses
    missed = asked >= _FEW_EVENTS and steps.misses > _STEPS_MISS * asked
    if missed or steps.left >= max(_FEW_STEPS, _STEPS_LEFT * steps.planned):
        text = (
            f"{steps.misses} of {asked} requests in planned steps came otherwise than planned, and "
            f"{steps.left} of {steps.planned} repetitions were left to the heap in the middle: mark phases "
            "that differ as steps of different names, so that each has its own plan"
        )
        yield advice("steps", text, hits=steps.hits, misses=steps.misses, left=steps.left)


def _advice(device: str, kind: str, text: str, nbytes: int = 0, **figures: object) -> Recommendation:
    return Recommendation(kind=kind, device=device, text=text, nbytes=nbytes, figures=figures)


# ---------------------------------------------------------------------- from the recording


def _from_replays(config: SmartPoolConfig, device: str, trace: Trace) -> Iterator[Recommendation]:
    """Replay with the other named policies, beside the one that the pool has."""
    own = _replayed(config, trace)
    replayed = f"your recording of {len(trace)} events, replayed on the model of a device"
    for name, place in POLICIES.items():
        if config.policy in (name, place):
            continue
        other = _replayed(replace(config, policy=name), trace)
        peak, peak_then = own.peak_reserved_bytes, other.peak_reserved_bytes
        seconds, seconds_then = own.driver_seconds, other.driver_seconds
        saved = peak - peak_then
        if saved >= max(_WORTH_BYTES, int(_WORTH * peak)):
            text = (
                f"policy={name!r} would save {format_size(saved)} of {format_size(peak)} for "
                f"{(seconds_then - seconds) * 1e3:+.1f} ms in the driver: {replayed}"
            )
        elif -saved <= _WORTH * peak and seconds - seconds_then > _WORTH_TIME * seconds:
            text = (
                f"policy={name!r} would spend {seconds_then * 1e3:.1f} ms in the driver instead of "
                f"{seconds * 1e3:.1f}, for {format_size(max(0, -saved))} more memory: {replayed}"
            )
            saved = 0
        else:
            continue
        yield _advice(
            device, "policy", text, saved,
            policy=name, events=len(trace), peak_reserved_bytes=peak, peak_reserved_bytes_then=peak_then,
            driver_seconds=seconds, driver_seconds_then=seconds_then,
        )  # fmt: skip


def _replayed(config: SmartPoolConfig, trace: Trace) -> Run:
    plain = replace(
        config, max_bytes=None, record=False, track=False, stack_depth=0, debug=False, shareable=False
    )
    manager = AdvancedMemoryPoolManager(ModelDriver(64 * TiB), plain)
    return replay(trace, PoolTarget(manager), streams="own")


def _from_repetition(device: str, trace: Trace) -> Iterator[Recommendation]:
    sizes = trace.size[trace.op == ALLOCATE]
    period = _period(sizes)
    if period is not None:
        text = (
            f"mark steps (with pool.step(): ...): the last of {len(sizes)} recorded requests repeat after "
            f"every {period}, and none was served from a plan"
        )
        yield _advice(device, "steps", text, period=period, requests=len(sizes))


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
