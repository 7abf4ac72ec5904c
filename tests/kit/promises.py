"""What SmartPool promises, as the options of a contract: what our own tests hold it to.

Also an example of a whole contract, and for whoever wraps a pool and wants to attack the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from smartpool.errors import OutOfMemoryError
from smartpool.units import MiB

if TYPE_CHECKING:
    from smartpool.manager import AdvancedMemoryPoolManager

__all__ = ["pool_promises"]

_CHUNK: Final = 2 * MiB
_ROUNDING: Final = 8 * MiB  # of chunks, slabs and alignments around what is live


def pool_promises(capacity: int) -> dict[str, Any]:
    """Return what an `AdvancedMemoryPoolManager` on a device, or with a cap, of `capacity` bytes promises.

    Examples
    --------
    >>> from smartpool.manager import AdvancedMemoryPoolManager
    >>> from smartpool.testing import check_allocator
    >>> promises = pool_promises(64 << 20)
    >>> report = check_allocator(
    ...     AdvancedMemoryPoolManager, driver="model:64MiB", streams=2, examples=10, **promises
    ... )
    >>> report.checked["no overlap"] > 20
    True
    """
    return {
        "capacity": capacity,
        "alignment": 512,
        "errors": OutOfMemoryError,
        "zero_size": "distinct",
        "accounting": figures,
        "check": "check",
        "trim": trim,
        "close": "close",
        "upkeep": {"flush": "flush", "trim": "trim", "trim_half": trim_half},
        "malloc_aligned": malloc_aligned,
        "record_stream": "record_stream",
        "must_serve": partial(must_serve, capacity),
    }


def figures(pool: AdvancedMemoryPoolManager) -> dict[str, Any]:
    """Return what the pool says of itself."""
    return {
        "live_bytes": pool.live_bytes,
        "live_blocks": pool.live_blocks(),
        "reserved_bytes": pool.reserved_bytes,
        "peak_reserved_bytes": pool.peak_reserved_bytes,
    }


def trim(pool: AdvancedMemoryPoolManager) -> None:
    """Give everything back that is idle, once it is."""
    pool.trim(wait=True)


def trim_half(pool: AdvancedMemoryPoolManager) -> None:
    """Give back until half of what is reserved is left, or as much as can be."""
    pool.trim(pool.reserved_bytes // 2)


def malloc_aligned(
    pool: AdvancedMemoryPoolManager, nbytes: int, alignment: int, stream: object = None
) -> int:
    """Ask with the stream by name, as the kit does."""
    return pool.malloc_aligned(nbytes, alignment, stream)


def must_serve(capacity: int, live: Sequence[int], nbytes: int) -> bool:
    """Say which requests fit wherever the gaps are: each block rounded up to chunks, and some to spare."""
    if not live:
        return nbytes <= capacity // _CHUNK * _CHUNK
    return sum(max(_CHUNK, size) for size in live) + nbytes + _ROUNDING <= capacity
