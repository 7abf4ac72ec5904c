"""What the live page shows: frames of a pool, made when somebody asks for one.

A frame holds the pool's figures and its memory map at the resolution of the asking screen: cells of
equal size over *positions*, which count mapped bytes from the lowest address up and leave out the
addresses between. A pool of 10^5 blocks so becomes some 40 kB a frame.

Looking costs the pool what `SmartPool.memory_map` and `AdvancedMemoryPoolManager.snapshot` cost. A
frame says how long it took, and the page waits in proportion, so that however large the pool, looking
takes at most a fifth of one core. Several pages that look at once share one frame's data.
"""

from __future__ import annotations

import base64
import itertools
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from smartpool.drawing.assets import tier_color
from smartpool.drawing.raster import beginnings, coverage, shares
from smartpool.errors import InvalidRequestError
from smartpool.forks import renewed
from smartpool.telemetry.statistics import COUNTERS, GAUGES
from smartpool.tiers import LARGEST, Tier, tier_of
from smartpool.units import format_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smartpool.config import SmartPoolConfig
    from smartpool.manager import AdvancedMemoryPoolManager
    from smartpool.telemetry.hooks import Hooks
    from smartpool.telemetry.memory_map import MemoryMap
    from smartpool.telemetry.out_of_memory import OutOfMemoryReport
    from smartpool.telemetry.statistics import MemorySnapshot

__all__ = ["LiveView", "ViewedPool"]

_MOST_CELLS: Final = 1 << 17
_FRESH_S: Final = 0.1  # data that young serves whoever asks
_HOLDERS: Final = 12
_EVENTS: Final = 50
_STATES: Final = ("free", "live", "cached", "planned")
_OF_TIER: Final = ("live_blocks", "live_bytes", "cached_bytes")


class ViewedPool(Protocol):
    """What the page needs of a pool: `SmartPool` is one."""

    config: SmartPoolConfig
    managers: tuple[AdvancedMemoryPoolManager, ...]
    hooks: Hooks

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""

    def memory_map(self, device_id: int = 0) -> MemoryMap:
        """Return what lies where on a device."""


class LiveView:
    """Frames of one pool, for any number of pages. Thread-safe.

    Parameters
    ----------
    pool
        The pool to look at. It is not kept from being closed.
    """

    def __init__(self, pool: ViewedPool) -> None:
        self._pool = pool
        self._begun = time.monotonic()
        self._lock = renewed(self, "_lock", threading.RLock)
        self._looks: dict[int, _Look] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<LiveView of {self._pool!r}>"

    def note_failure(self, report: OutOfMemoryReport) -> None:
        """Show on every page that a request failed for lack of memory."""
        # Without our lock: this runs under the pool's, and who makes a frame takes them the other way round.
        clock = time.strftime("%H:%M:%S")
        self._events.append({"number": next(self._numbers), "clock": clock, "text": report.message()})

    def frame(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return a frame, ready for JSON; `docs/live.md` describes it.

        Parameters
        ----------
        question
            ``device`` (number), ``first`` and ``last`` (positions in bytes; None for the end),
            ``cells`` (how many), ``after`` (the number of the last event that is known).

        Raises
        ------
        InvalidRequestError
            When something in it is not what it should be.
        """
        device = _integer(question, "device", 0, len(self._pool.managers) - 1)
        cells = _integer(question, "cells", 1, _MOST_CELLS)
        after = _integer(question, "after", 0, 1 << 53)
        begun = time.perf_counter()
        look = self._look(device)
        first, last = _view(question, look.extent_bytes)
        now = look.now
        return {
            "time": time.monotonic() - self._begun,
            "devices": [manager.driver.name for manager in self._pool.managers],
            "device": device,
            "closed": self._pool.closed,
            "policy": str(self._pool.config.policy),
            "figures": _figures(now),
            "tiers": [
                {
                    "name": tier.value,
                    "title": tier.title,
                    "color": tier_color(number),
                    **{name: getattr(now.tiers[tier.value], name) for name in _OF_TIER},
                }
                for number, tier in enumerate(Tier)
            ],
            "holders": look.holders,
            "map": look.cells(first, last, cells),
            "events": [event for event in list(self._events) if event["number"] > after],
            "seconds": time.perf_counter() - begun,
        }

    def block(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return what lies at the positions from ``first`` to ``last`` of ``device``, in lines of text."""
        device = _integer(question, "device", 0, len(self._pool.managers) - 1)
        look = self._look(device)
        first, last = _view(question, look.extent_bytes)
        return {"lines": look.describe(first, last)}

    def _look(self, device: int) -> _Look:
        with self._lock:
            look = self._looks.get(device)
            if look is None or time.monotonic() - look.taken > _FRESH_S:
                look = self._looks[device] = _Look.at(self._pool, device)
            return look


@dataclass(frozen=True, slots=True)
class _Look:
    """One device at one instant, in arrays over the ranges of its map."""

    taken: float
    now: MemorySnapshot
    map: MemoryMap
    ends: NDArray[np.int64]  # positions: the sum of all ranges up to and with this one
    sizes: NDArray[np.int64]
    states: NDArray[np.int8]
    tiers: NDArray[np.int8]
    holders: list[dict[str, Any]]

    @classmethod
    def at(cls, pool: ViewedPool, device: int) -> _Look:
        now = pool.managers[device].snapshot()
        layout = pool.memory_map(device)
        ranges = layout.ranges
        sizes = np.array(ranges.nbytes, dtype=np.int64)
        codes = {state: code for code, state in enumerate(_STATES)}
        return cls(
            taken=time.monotonic(),
            now=now,
            map=layout,
            ends=np.cumsum(sizes),
            sizes=sizes,
            states=np.array([codes[state] for state in ranges.state], dtype=np.int8),
            tiers=_tiers_of(layout, sizes),
            holders=_holders(layout),
        )

    @property
    def extent_bytes(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def cells(self, first: int, last: int, cells: int) -> dict[str, Any]:
        """Return the map between two positions, at a resolution of `cells`."""
        starts = self.ends - self.sizes
        if first == last:  # nothing is mapped
            last = first + 1

        def covered(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
            return coverage(starts[chosen], self.ends[chosen], first, last, cells)

        used = self.states != _STATES.index("free")
        by_tier = [covered(used & (self.tiers == tier)) for tier in range(len(Tier))]
        by_state = {state: covered(self.states == code) for code, state in enumerate(_STATES)}
        return {
            "first": first,
            "last": last,
            "extent_bytes": self.extent_bytes,
            "chunks": len(self.map.chunks.address),
            "tier": _packed(np.argmax(by_tier, axis=0).astype(np.uint8)),
            "edge": _packed(beginnings(starts[used], first, last, cells)),
            **{state: _packed(shares(part, first, last)) for state, part in by_state.items()},
        }

    def describe(self, first: int, last: int) -> list[str]:
        """Say what lies between two positions; the largest part first."""
        low = int(np.searchsorted(self.ends, first, side="right"))
        high = int(np.searchsorted(self.ends, max(last, first + 1) - 1, side="right"))
        if low >= len(self.ends):
            return ["nothing is mapped here"]
        found = range(low, min(high, len(self.ends) - 1) + 1)
        index = max(found, key=lambda at: (self.states[at] != 0, self.sizes[at]))
        lines = self._describe_range(index)
        if len(found) > 1:
            lines.append(f"and {len(found) - 1:,} more ranges in this cell")
        return lines

    def _describe_range(self, index: int) -> list[str]:
        ranges, blocks = self.map.ranges, self.map.blocks
        state, nbytes, address = ranges.state[index], ranges.nbytes[index], ranges.address[index]
        if state == "free":
            return [f"gap of {format_size(nbytes)}", f"at {address:#x}"]
        owner = ranges.block[index]
        at = int(np.searchsorted(np.array(blocks.address, dtype=np.int64), owner))
        if state != "live" or at == len(blocks.address) or blocks.address[at] != owner:
            return [f"{state}: {format_size(nbytes)}", f"at {address:#x}", f"tier {tier_of(nbytes).value}"]
        lines = [
            f"live: {format_size(blocks.requested_bytes[at])}",
            f"at {owner:#x}, {blocks.requested_bytes[at]:,} bytes",
            f"tier {blocks.tier[at]}, stream {blocks.stream[at]}",
        ]
        if blocks.tag[at] is not None:
            lines.append(f"tag {blocks.tag[at]}")
        if address != owner or nbytes != blocks.nbytes[at]:
            lines.append(f"stitched: this piece is {format_size(nbytes)} at {address:#x}")
        return lines


def _tiers_of(layout: MemoryMap, sizes: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return the tier of each range by the size of its block."""
    whole = sizes.copy()
    owners = np.array(layout.ranges.block, dtype=np.int64)
    known = np.array(layout.blocks.address, dtype=np.int64)
    if len(known) and len(owners):
        at = np.minimum(np.searchsorted(known, owners), len(known) - 1)
        mine = known[at] == owners
        whole[mine] = np.array(layout.blocks.nbytes, dtype=np.int64)[at[mine]]
    return np.searchsorted(np.array(LARGEST), whole, side="left").astype(np.int8)


def _holders(layout: MemoryMap) -> list[dict[str, Any]]:
    """Return who holds most: by tag where blocks have one, by size where not."""
    held: dict[str, list[int]] = {}
    blocks = layout.blocks
    for nbytes, tag in zip(blocks.requested_bytes, blocks.tag, strict=True):
        entry = held.setdefault(tag if tag is not None else f"blocks of {format_size(nbytes)}", [0, 0])
        entry[0] += 1
        entry[1] += nbytes
    most = sorted(held.items(), key=lambda item: -item[1][1])[:_HOLDERS]
    return [{"label": label, "blocks": count, "bytes": nbytes} for label, (count, nbytes) in most]


def _figures(now: MemorySnapshot) -> dict[str, Any]:
    return {
        **{name: getattr(now, name) for name in GAUGES},
        "fragmentation": now.fragmentation.as_dict(),
        "driver_seconds": now.driver_seconds,
        "counters": {
            **{name: getattr(now, name) for name in COUNTERS},
            "driver_calls": sum(now.driver_calls.values()),
            "step_hits": now.steps.hits,
        },
    }


def _packed(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _view(question: Mapping[str, Any], extent_bytes: int) -> tuple[int, int]:
    """Return the positions asked for, within what is mapped now."""
    first = _integer(question, "first", 0, 1 << 62)
    last = extent_bytes if question.get("last") is None else _integer(question, "last", 0, 1 << 62)
    if last < first:
        raise InvalidRequestError(f"expected last at or above first, {first}, got {last}")
    last = min(last, extent_bytes)
    return min(first, max(0, last - 1)), last


def _integer(question: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = question.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JavaScript knows no integers
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequestError(f"{name}: expected an integer from {low} to {high}, got {value!r}")
    return value
