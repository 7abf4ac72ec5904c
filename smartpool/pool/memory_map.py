"""The memory map: what every byte that a pool holds is, by address, as plain data.

Made in two halves, so that nobody waits for it: under the pool's lock only dictionaries are copied
(3 ms for 100,000 blocks), and requests that a bin serves go on meanwhile; the rest, sorting and
naming, is done outside of the lock.

Consistency. The heap changes only under the lock, so blocks, gaps and chunks are of one instant: the
ranges of a map are disjoint and cover the chunks exactly. Whether a block is live or cached is read
from the table of live blocks, which the quick path changes without the lock: of a block that is
requested or freed at that very moment a map may say either.

Addresses are those at *home* (see `smartpool.pool.elastic`): a block that is shown in a window has one
range for each of its pieces, and `block` names the address that its holder knows.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from smartpool.pool.bins import Bin
from smartpool.pool.labels import NOBODY, Label

__all__ = ["VERSION", "BlockColumns", "ChunkColumns", "Layout", "MemoryMap", "RangeColumns", "make_map"]

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """What a heap copies under the lock.

    Attributes
    ----------
    blocks, gaps
        Start to size, at home: disjoint, and together exactly what `chunks` cover.
    chunks
        Start to size, at home.
    shown
        Start of a block at home to the address of the block that it is a piece of, where that is
        another address, and where in it the piece begins.
    """

    blocks: Mapping[int, int]
    gaps: Mapping[int, int]
    chunks: Mapping[int, int]
    shown: Mapping[int, tuple[int, int]]


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
        plain: dict[str, Any] = {
            "version": self.version,
            "device": self.device,
            "time": self.time,
            "granularity_bytes": self.granularity_bytes,
            "reserved_bytes": self.reserved_bytes,
            "cap_bytes": self.cap_bytes,
        }
        plain["stacks"] = self.stacks
        for name in ("ranges", "blocks", "chunks"):
            columns = getattr(self, name)
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
    planned = _cut_regions(regions, live)
    ranges = []
    for start, size in layout.blocks.items():
        block, offset = layout.shown.get(start, (start, 0))
        parts = planned.get(block)
        if parts is None:
            ranges.append((start, size, "live" if block in live else "cached", block))
            continue
        for low, high, state, owner in parts:
            cut_low, cut_high = max(low, offset), min(high, offset + size)
            if cut_low < cut_high:
                ranges.append((start + cut_low - offset, cut_high - cut_low, state, owner))
    ranges += [(start, size, "free", 0) for start, size in layout.gaps.items()]
    ranges.sort()
    stacks: dict[str, int] = {}
    columns = RangeColumns(*map(list, zip(*ranges, strict=True))) if ranges else RangeColumns([], [], [], [])
    return MemoryMap(
        version=VERSION,
        time=time.time(),
        ranges=columns,
        blocks=_blocks(live, labels, stacks),
        chunks=_chunks(layout.chunks, columns),
        stacks=list(stacks),
        **facts,
    )


def _cut_regions(
    regions: Iterable[tuple[int, int]], live: Mapping[int, Bin]
) -> dict[int, list[tuple[int, int, str, int]]]:
    """Return, by region, (from, to, state, block) relative to its start: live slots, and the rest."""
    cut: dict[int, list[tuple[int, int, str, int]]] = {}
    bounds = sorted(regions)
    if not bounds:
        return cut
    addresses = sorted(live)
    for base, size in bounds:
        parts: list[tuple[int, int, str, int]] = []
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
    address = sorted(live)
    bins = [live[pointer] for pointer in address]
    found = [labels.get(pointer, NOBODY) for pointer in address] if labels else [NOBODY] * len(address)
    return BlockColumns(
        address=address,
        nbytes=[bin_.size for bin_ in bins],
        requested_bytes=[bin_.nbytes for bin_ in bins],
        stream=[bin_.stream for bin_ in bins],
        tier=[bin_.tier.value for bin_ in bins],
        tag=[label.tag for label in found],
        stack=[-1 if label.stack is None else stacks.setdefault(label.site, len(stacks)) for label in found],
    )


def _chunks(chunks: Mapping[int, int], ranges: RangeColumns) -> ChunkColumns:
    """Return the chunks with the live bytes in each: one walk along both, in order of address."""
    starts = sorted(chunks)
    used = [0] * len(starts)
    index = 0
    for start, size, state in zip(ranges.address, ranges.nbytes, ranges.state, strict=True):
        if state != "live":
            continue
        end = start + size
        while index < len(starts) and starts[index] + chunks[starts[index]] <= start:
            index += 1
        here = index
        while here < len(starts) and starts[here] < end:
            used[here] += min(end, starts[here] + chunks[starts[here]]) - max(start, starts[here])
            here += 1
    return ChunkColumns(starts, [chunks[start] for start in starts], used)
