"""Policies: what a pool pays for with bytes, and what with driver calls.

A new chunk costs about 47 us (create, map, enable access), showing one a second time 32 (map,
enable access); its size hardly matters. So large chunks save calls; but the free part in the
middle of a chunk is of use to nobody, so large chunks cost bytes. The other knob is the *slack*:
reserved memory may grow unasked up to ``(1 + slack)`` times the largest live bytes so far. Below
that peak a waste takes nothing from anyone; above it, free pieces are stitched together before
anything is created.

`docs/elastic.md` has the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from smartpool.units import KiB, MiB, align_down, align_up

__all__ = ["POLICY_OF_NAME", "Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers of one policy.

    Parameters
    ----------
    slack
        Share of the largest live bytes so far by which reserved memory may exceed it unasked.
    chunk_share, smallest_chunk
        A chunk is at most this share of the largest live bytes so far, or `smallest_chunk` bytes
        if that is more.
    cap_share
        A chunk is at most this share of the pool's cap, so that little is lost to the parts of
        chunks when the cap is nearly reached.
    ahead
        Growing takes at least this share of the largest live bytes at once, within the budget.
    slab_limit, slab_bytes
        Requests below `slab_limit` bytes are placed in slabs of `slab_bytes`.
    waste
        A gap that would leave more than this times the request is taken only after the bins were
        emptied: what was freed lately may fit better.
    tidy
        How many gaps are compared for the place that leaves least edge; 0 for plain best fit.
    edge_price
        Microseconds a MiB that it is worth to use up the edge of a chunk in a window.
    """

    slack: float
    chunk_share: float
    smallest_chunk: int
    cap_share: float = 1 / 512
    ahead: float = 0.0
    slab_limit: int = 64 * KiB
    slab_bytes: int = 2 * MiB
    waste: float = 0.5
    tidy: int = 0
    edge_price: float = 4.0

    def budget_bytes(self, peak_live_bytes: int) -> int:
        """Return the reserved bytes up to which growing is free."""
        return int((1 + self.slack) * peak_live_bytes)

    def growth_bytes(self, missing: int, peak_live_bytes: int, budget_bytes: int, granularity: int) -> int:
        """Return how much to map when `missing` bytes, within the budget, are needed."""
        ahead = min(budget_bytes, int(self.ahead * peak_live_bytes))
        return max(missing, align_down(ahead, granularity))

    def cut(self, size: int, *, peak_live_bytes: int, cap_bytes: int, granularity: int) -> Iterator[int]:
        """Yield the sizes of chunks that together make `size` bytes, as even as the granularity allows.

        >>> MiB = 1 << 20
        >>> policy = Policy(slack=0, chunk_share=0.1, smallest_chunk=4 * MiB)
        >>> cut = policy.cut(14 * MiB, peak_live_bytes=0, cap_bytes=1 << 40, granularity=2 * MiB)
        >>> [part // MiB for part in cut]
        [4, 4, 4, 2]
        """
        largest = max(self.smallest_chunk, int(self.chunk_share * peak_live_bytes))
        largest = max(align_down(min(largest, int(self.cap_share * cap_bytes)), granularity), granularity)
        pieces = -(-size // largest)
        while size:
            part = min(size, align_up(-(-size // pieces), granularity))
            yield part
            size -= part
            pieces -= 1


POLICY_OF_NAME: Final = {
    "tight": Policy(
        slack=0.0, chunk_share=0.0, smallest_chunk=2 * MiB, slab_limit=0, waste=0.0, tidy=4, edge_price=20.0
    ),
    "balanced": Policy(slack=0.01, chunk_share=1 / 32, smallest_chunk=8 * MiB, ahead=0.01),
    "fast": Policy(slack=0.03, chunk_share=1 / 16, smallest_chunk=32 * MiB, ahead=0.02),
}
