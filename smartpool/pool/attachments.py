"""What attaches to a pool: the few methods by which planned steps and captures take part in its slow path.

The pool knows nothing of either. It hands itself over with each call, rather than being held: a pool that
nobody holds any more is to go at once, not with the next collection. All are called under its lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from smartpool.pool.bins import Bin

Pool = Any  # a `SlowPath`, which stands on this module

__all__ = ["Attachment", "CaptureRoute", "PlacedApart", "PlannedRequests", "RequestFront"]


class Attachment(Protocol):
    """Holds blocks of the heap for others, which lie inside of them.

    Attributes
    ----------
    held
        What `give_way` could give back something of; empty for nothing.
    """

    @property
    def held(self) -> Sequence[object]:
        """See above."""

    def give_way(self, pool: Pool) -> None:
        """Give back all that nobody lives in, before the pool grows, trims or fails."""

    def before_flush(self, pool: Pool) -> None:
        """Give back what has become free of itself."""

    def before_capture(self) -> None:
        """Raise `CaptureError` where no stream can be captured now."""

    def regions(self) -> list[tuple[int, int]]:
        """Return address and bytes of each block of the heap that is held."""

    def keeps_open(self) -> bool:
        """Return whether the memory of a closed pool must stay, though nothing is live."""

    def recover(self, pool: Pool) -> None:
        """Make what is held whole again, after a call that was broken off; the heap is already."""

    def check(self, pool: Pool) -> None:
        """Prove the invariants; `InvariantError`."""

    def close(self) -> None:
        """Serve nothing any more."""


class RequestFront(Protocol):
    """Serves requests before they reach the pool, of blocks that are live to it, where no Python runs."""

    def drain(self, *, everything: bool = False) -> None:
        """Give back, by `free` alone, what other requests may need; with `everything`, all that it has.

        May be called in the middle of a request, and by any thread.
        """

    def switch(self, *, on: bool) -> None:
        """Serve requests, or give all back and let every one of them reach the pool."""


class PlannedRequests(Protocol):
    """Serves requests from a plan."""

    def serve(self, bin_: Bin, pool: Pool) -> int | None:
        """Return the address of a planned block, entered as live, or None: the heap serves the request."""


class PlacedApart(Protocol):
    """Places some requests apart from the others, and keeps memory asleep.

    Attributes
    ----------
    heap_asleep
        Whether the memory of the heap is given back.
    """

    @property
    def heap_asleep(self) -> bool:
        """See above."""

    def serve(self, nbytes: int, stream: int, alignment: int) -> int | None:
        """Return the address of a block, entered as live; None where the request is like any other.

        Raises `AsleepError` for one whose memory sleeps.
        """

    def require_awake(self, pointer: int) -> None:
        """Raise `AsleepError` where the memory of a live block sleeps."""


class CaptureRoute(Protocol):
    """Where requests go while a stream is captured: nothing is given back, asked or waited for."""

    def request(self, pool: Pool, nbytes: int, stream: object, alignment: int) -> int:
        """Serve a request. Holds no lock."""

    def bin_of(self, pool: Pool, nbytes: int, stream: int) -> Bin:
        """Return the bin of a request size on another stream than the default one."""

    def bins(self) -> list[Bin]:
        """Return the bins that are hidden from requests."""

    def owe(self, region: int, size: int, streams: tuple[int, ...]) -> None:
        """Keep a block of the heap that became free, until the capture ends."""
