"""The memory map: what every byte that a pool holds is, by address, as plain data.

Made in two halves, so that nobody waits for it: under the pool's lock only dictionaries are copied
(6 ms for 100,000 blocks), and requests that a bin serves go on meanwhile; the rest, sorting and
naming, is done outside of the lock.

Consistency. The heap changes only under the lock, so blocks, gaps and chunks are of one instant: the
ranges of a map are disjoint and cover the chunks exactly. Whether a block is live or cached is read
from the table of live blocks, which the quick path changes without the lock: of a block that is
requested or freed at that very moment a map may say either.

Addresses are those at *home* (see `smartpool.heap.elastic`): a block that is shown in a window has one
range for each of its pieces, and `block` names the address that its holder knows.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from smartpool.heap.protocol import Layout
from smartpool.pool.bins import Bin
from smartpool.telemetry.labels import Label
from smartpool.tiers import LARGEST, Tier

__all__ = ["STATES", "VERSION", "BlockColumns", "ChunkColumns", "MemoryMap", "RangeColumns", "make_map"]

VERSION: Final = 1
STATES: Final = ("cached", "live", "planned", "free")

_TIERS: Final = np.array([tier.value for tier in Tier], object)
_nbytes: Final = attrgetter("nbytes")
_size: Final = attrgetter("size")
_stream: Final = attrgetter("stream")
_Part: TypeAlias = tuple[int, int, str, int]  # of a region: from, to, state, address of the block


@dataclass(frozen=True, slots=True)
class RangeColumns:
    """Ranges that cover everything mapped, by address; one entry a range in each list.

    Attributes
    ----------
    address, nbytes
        Where it is at home.
    state
        ``"live"``, ``"cached"`` (freed, in a bin), ``"planned"`` (kept for the next repetition of a
        step) or ``"free"`` (a gap).
    block
        The address of the block that it belongs to; 0 for a gap.
    """

    address: list[int]
    nbytes: list[int]
    state: list[str]
    block: list[int]


@dataclass(frozen=True, slots=True)
class BlockColumns:
    """The live blocks by address, as their holders know it; one entry a block in each list.

    Attributes
    ----------
    address, nbytes
        Where, and how large after rounding.
    requested_bytes
        As requested.
    stream
        The stream that it was requested for.
    tier
        ``"small"``, ``"medium"``, ``"large"`` or ``"huge"``.
    tag
        What `SmartPool.tag` named it; None where nothing did, or nobody was tracking.
    stack
        Where it was requested, as an index into `MemoryMap.stacks`; -1 where that was not recorded.
    """

    address: list[int]
    nbytes: list[int]
    requested_bytes: list[int]
    stream: list[int]
    tier: list[str]
    tag: list[str | None]
    stack: list[int]


@dataclass(frozen=True, slots=True)
class ChunkColumns:
    """The chunks (raw segments where a device has no virtual memory) by address.

    Attributes
    ----------
    address, nbytes
        Where it is mapped at home.
    used_bytes
        Bytes of it in live blocks; 0 is an idle chunk.
    """

    address: list[int]
    nbytes: list[int]
    used_bytes: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMap:
    """One device's memory by address. `docs/statistics.md` describes every field.

    Attributes
    ----------
    version
        Of this format: 1.
    time
        Seconds since the epoch.
    """

    version: int
    device: str
    time: float
    granularity_bytes: int
    reserved_bytes: int
    cap_bytes: int
    ranges: RangeColumns
    blocks: BlockColumns
    chunks: ChunkColumns
    stacks: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return everything in plain dictionaries and lists, ready for JSON. Nothing is copied twice."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("ranges", "blocks", "chunks"):
            columns = plain[name]
            plain[name] = {field: getattr(columns, field) for field in columns.__slots__}
        return plain


def make_map(
    layout: Layout,
    live: Mapping[int, Bin],
    *,
    regions: Iterable[tuple[int, int]],
    labels: Mapping[int, Label],
    **facts: Any,
) -> MemoryMap:
    """Return the map of a layout. O(n log n); holds no lock.

    Parameters
    ----------
    layout, live
        Copies of the heap's books and of the table of live blocks.
    regions
        Address and bytes of the regions of planned steps.
    labels
        Address of a live block to who asked for it, where that was tracked.
    facts
        `device`, `granularity_bytes`, `reserved_bytes` and `cap_bytes`.
    """
    columns = _ranges(layout, live, _cut_regions(regions, live))
    stacks: dict[str, int] = {}
    return MemoryMap(
        version=VERSION,
        time=time.time(),
        ranges=columns,
        blocks=_blocks(live, labels, stacks),
        chunks=_chunks(layout.chunks, columns),
        stacks=list(stacks),
        **facts,
    )


def _ranges(layout: Layout, live: Mapping[int, Bin], planned: Mapping[int, list[_Part]]) -> RangeColumns:
    """Return the ranges by address: blocks in bulk, and one by one those that are not what they seem."""
    odd = layout.shown.keys() | (planned.keys() & layout.blocks.keys())
    blocks = layout.blocks if not odd else {k: v for k, v in layout.blocks.items() if k not in odd}
    cut = [row for start in odd for row in _pieces(layout, live, planned, start)]
    gaps = layout.gaps
    address = np.array([*blocks, *(row[0] for row in cut), *gaps], np.int64)
    nbytes = np.array([*blocks.values(), *(row[1] for row in cut), *gaps.values()], np.int64)
    state = np.concatenate([
        np.fromiter(map(live.__contains__, blocks), np.int8, len(blocks)),  # STATES: 1 is live, 0 cached
        np.array([STATES.index(row[2]) for row in cut], np.int8),
        np.full(len(gaps), STATES.index("free"), np.int8),
    ])  # fmt: skip
    owner = np.array([*blocks, *(row[3] for row in cut), *[0] * len(gaps)], np.int64)
    order = np.argsort(address)
    return RangeColumns(
        address=address[order].tolist(),
        nbytes=nbytes[order].tolist(),
        state=np.array(STATES, object)[state[order]].tolist(),
        block=owner[order].tolist(),
    )


def _pieces(
    layout: Layout, live: Mapping[int, Bin], planned: Mapping[int, list[_Part]], start: int
) -> Iterator[tuple[int, int, str, int]]:
    """Yield the ranges of a block that is a piece of another or the region of a step."""
    size = layout.blocks[start]
    block, offset = layout.shown.get(start, (start, 0))
    parts = planned.get(block)
    if parts is None:
        yield start, size, "live" if block in live else "cached", block
        return
    for low, high, state, owner in parts:
        cut_low, cut_high = max(low, offset), min(high, offset + size)
        if cut_low < cut_high:
            yield start + cut_low - offset, cut_high - cut_low, state, owner


def _cut_regions(regions: Iterable[tuple[int, int]], live: Mapping[int, Bin]) -> dict[int, list[_Part]]:
    """Return, by region, (from, to, state, block) relative to its start: live slots, and the rest."""
    cut: dict[int, list[_Part]] = {}
    bounds = sorted(regions)
    if not bounds:
        return cut
    addresses = sorted(live)
    for base, size in bounds:
        parts: list[_Part] = []
        at = 0
        for address in _within(addresses, base, base + size):
            offset = address - base
            if offset > at:
                parts.append((at, offset, "planned", base))
            at = offset + live[address].size
            parts.append((offset, at, "live", address))
        if at < size:
            parts.append((at, size, "planned", base))
        cut[base] = parts
    return cut


def _within(addresses: list[int], start: int, end: int) -> list[int]:
    return addresses[bisect_left(addresses, start) : bisect_left(addresses, end)]


def _blocks(live: Mapping[int, Bin], labels: Mapping[int, Label], stacks: dict[str, int]) -> BlockColumns:
    """Return the columns of the live blocks; stacks that are met get the next number in `stacks`."""
    address = np.sort(np.fromiter(live, np.int64, len(live))).tolist()
    bins = list(map(live.__getitem__, address))
    requested = list(map(_nbytes, bins))
    tag: list[str | None] = [None] * len(address)
    stack = [-1] * len(address)
    for index, pointer in enumerate(address) if labels else ():
        label = labels.get(pointer)
        if label is not None:
            tag[index] = label.tag
            if label.stack is not None:
                stack[index] = stacks.setdefault(label.site, len(stacks))
    return BlockColumns(
        address=address,
        nbytes=list(map(_size, bins)),
        requested_bytes=requested,
        stream=list(map(_stream, bins)),
        tier=_TIERS[np.searchsorted(LARGEST, requested)].tolist(),
        tag=tag,
        stack=stack,
    )


def _chunks(chunks: Mapping[int, int], ranges: RangeColumns) -> ChunkColumns:
    """Return the chunks with the live bytes in each: those below its end, less those below its start."""
    starts = np.sort(np.fromiter(chunks, np.int64, len(chunks)))
    sizes = np.fromiter(map(chunks.__getitem__, starts.tolist()), np.int64, len(chunks))
    live = np.array(ranges.state, object) == "live"
    low = np.array(ranges.address, np.int64)[live]
    size = np.array(ranges.nbytes, np.int64)[live]
    before = np.concatenate([[0], np.cumsum(size)])

    def below(address: NDArray[np.int64]) -> NDArray[np.int64]:
        whole = np.searchsorted(low, address, side="right")  # ranges that begin at or before it
        if not len(low):
            return np.zeros_like(address)
        last = np.maximum(whole - 1, 0)
        reach = np.minimum(low[last] + size[last], address) - low[last]
        return np.where(whole > 0, before[last] + np.maximum(reach, 0), 0)

    used = below(starts + sizes) - below(starts)
    return ChunkColumns(starts.tolist(), sizes.tolist(), used.tolist())
