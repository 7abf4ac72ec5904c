"""PyTorch's caching allocator, as its rules are published.

Source: PyTorch 2.11, ``c10/cuda/CUDACachingAllocator.cpp`` and the notes on memory management in its
documentation. The rules:

* sizes are rounded up to 512 bytes, or with `roundup_power2_divisions` to one of so many steps between
  two powers of two;
* requests of up to 1 MiB live in segments of 2 MiB, all others apart from them: in segments of 20 MiB
  below 10 MiB, and from there on in segments of their own size rounded up to 2 MiB;
* the best fit among the cached blocks of the stream serves; among equals the lowest address;
* what is left of a block becomes a block of its own from 512 bytes on in the pool of small requests,
  and above 1 MiB in that of large ones;
* a freed block is coalesced with its free neighbors, and its segment is kept;
* with `max_split_bytes`, blocks of that size or more are not split, serve no smaller request, and serve
  a large one only if they exceed it by less than 20 MiB;
* when the driver has no memory left, such large cached blocks of the stream are given back first, the
  fitting one or as many as it takes; then every segment in which nothing is live.

Checked against the peaks recorded on all nine traces, in three settings: equal to the byte.
Left out: `garbage_collection_threshold`, which acts only together with a memory fraction (the peaks
recorded with 0.6 and no fraction are those without it); private pools of CUDA graphs; blocks that other
streams use (`record_stream`), of which a trace tells nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.errors import InvalidRequestError
from smartpool.trace.baselines.base import CachingBaseline
from smartpool.trace.baselines.blocks import Block, FreeBlocks
from smartpool.units import MiB, align_up

__all__ = ["LARGE_SEGMENT", "SMALL_LIMIT", "SMALL_SEGMENT", "PyTorchAllocator", "round_request"]

GRAIN: Final = 512
SMALL_LIMIT: Final = 1 * MiB
SMALL_SEGMENT: Final = 2 * MiB
LARGE_SEGMENT: Final = 20 * MiB
_OWN_SEGMENT: Final = 10 * MiB
_OWN_SEGMENT_GRAIN: Final = 2 * MiB
_NEVER: Final = 1 << 63


class PyTorchAllocator(CachingBaseline):
    """The caching allocator over ``cudaMalloc``.

    Parameters
    ----------
    driver
        The memory.
    max_split_bytes
        ``max_split_size_mb`` in bytes; None for no limit.
    roundup_power2_divisions
        Steps between two powers of two, a power of two itself; 0 for the plain rounding.
    """

    name = "pytorch"

    def __init__(
        self, driver: Driver, *, max_split_bytes: int | None = None, roundup_power2_divisions: int = 0
    ) -> None:
        super().__init__(driver)
        self._max_split = _NEVER if max_split_bytes is None else max_split_bytes
        self._divisions = checked_divisions(roundup_power2_divisions)
        self._small: defaultdict[int, FreeBlocks] = defaultdict(FreeBlocks)
        self._large: defaultdict[int, FreeBlocks] = defaultdict(FreeBlocks)

    def _rounded(self, nbytes: int) -> int:
        return round_request(nbytes, self._divisions)

    def _home(self, size: int, stream: int) -> FreeBlocks:
        pool = self._small if size <= SMALL_LIMIT else self._large
        return pool[stream]

    def _lists(self) -> Iterable[FreeBlocks]:
        return [*self._large.values(), *self._small.values()]

    def _choose(self, home: FreeBlocks, size: int) -> Block | None:
        block = home.best(size)
        limit = self._max_split
        if block is None or block.size < limit:
            return block
        return block if size >= limit and block.size < size + LARGE_SEGMENT else None

    def _splits(self, block: Block, size: int) -> bool:
        if size <= SMALL_LIMIT:
            return True  # sizes are multiples of 512: the rest is at least that
        return block.size - size > SMALL_LIMIT and size < self._max_split

    def _grow(self, home: FreeBlocks, size: int) -> Block:
        return self._grown(
            lambda: self._new_segment(_segment_size(size), home),
            size,
            lambda: self._release_oversize(home, size),
            self._release_whole_segments,
        )

    def _release_oversize(self, home: FreeBlocks, size: int) -> bool:
        """Give back unsplittable blocks of one stream: one that would do, or the largest until they do."""
        if self._max_split == _NEVER:
            return False
        wanted = max(size, self._max_split)
        fitting = home.best(wanted)
        if fitting is not None:
            self._release(fitting)
            return True
        released = 0
        for block in list(reversed(home)):
            if released >= wanted or block.size < self._max_split:
                break
            released += block.size
            self._release(block)
        return released >= wanted


def round_request(nbytes: int, divisions: int = 0) -> int:
    """Return the size of the block that serves a request.

    Examples
    --------
    >>> round_request(1), round_request(513), round_request(1200 << 20, 4) >> 20
    (512, 1024, 1280)
    """
    if divisions <= 1 or nbytes <= GRAIN * divisions:
        return max(GRAIN, align_up(nbytes, GRAIN))
    power = 1 << (nbytes.bit_length() - 1)  # the largest power of two that is at most nbytes
    return align_up(nbytes, max(1, power // divisions))


def checked_divisions(divisions: int) -> int:
    """Return `divisions`, or raise where PyTorch refuses it."""
    if divisions < 0 or divisions & (divisions - 1):
        raise InvalidRequestError(f"roundup_power2_divisions: expected a power of two, got {divisions}")
    return divisions


def _segment_size(size: int) -> int:
    if size <= SMALL_LIMIT:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < _OWN_SEGMENT else align_up(size, _OWN_SEGMENT_GRAIN)
