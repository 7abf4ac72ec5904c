"""Policies: what a pool pays for with bytes, and what with driver calls.

A chunk costs about 50 us whether it is made new (create 13, map 2, access 30) or stolen (map 2,
access 30, later unmap 19), so calls are saved only by leaving more memory mapped, and bytes only
by mapping less. The knob between them is the *slack*: reserved memory may grow freely up to
``(1 + slack)`` times the largest live bytes so far. Below that peak a waste costs nothing that
anyone could use; above it an idle chunk is stolen before a new one is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smartpool.units import MiB

__all__ = ["POLICY_OF_NAME", "Policy"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of one policy.

    Parameters
    ----------
    slack
        Share of the largest live bytes so far by which reserved memory may exceed it unasked.
    chunk_share
        A new chunk is this share of what is reserved, rounded down to a power of two ...
    smallest_chunk, largest_chunk
        ... and kept within these bounds, in bytes.
    """

    slack: float
    chunk_share: float
    smallest_chunk: int
    largest_chunk: int

    def budget_bytes(self, peak_live_bytes: int) -> int:
        """Return the reserved bytes up to which new chunks are made without looking for idle ones."""
        return int((1 + self.slack) * peak_live_bytes)

    def chunk_bytes(self, missing: int, reserved_bytes: int) -> int:
        """Return the largest chunk to make when `missing` bytes are to be mapped."""
        wanted = max(int(reserved_bytes * self.chunk_share), self.smallest_chunk)
        chunk = min(1 << wanted.bit_length() - 1, self.largest_chunk)
        return min(chunk, missing) if missing >= self.smallest_chunk else self.smallest_chunk


POLICY_OF_NAME: Final = {
    "tight": Policy(slack=0.0, chunk_share=1 / 1024, smallest_chunk=2 * MiB, largest_chunk=2 * MiB),
    "balanced": Policy(slack=0.01, chunk_share=1 / 64, smallest_chunk=2 * MiB, largest_chunk=32 * MiB),
    "fast": Policy(slack=0.10, chunk_share=1 / 16, smallest_chunk=2 * MiB, largest_chunk=256 * MiB),
}
