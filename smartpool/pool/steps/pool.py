"""What steps need of the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from smartpool.pool.bins import Bin, LiveTable, RequestObserver

__all__ = ["StepPool"]


class StepPool(Protocol):
    """A pool, as its steps see it. All under its lock."""

    late_frees: Callable[[], None] | None

    @property
    def live_table(self) -> LiveTable:
        """The table of live blocks."""

    def bins_of(self, stream: int) -> dict[int, Bin]:
        """Return the table of bins of a stream."""

    def bin_of(self, nbytes: int, stream: int) -> Bin:
        """Return the bin of a request size on a stream, whatever stands for it in the table."""

    def acquire_region(self, size: int, stream: int) -> int | None:
        """Return the address of a block of `size` bytes, of what is free; None if that is too little."""

    def room_bytes(self) -> tuple[int, int]:
        """Return the bytes of the largest region that can be made of what is free, and of the rest."""

    def split_region(self, address: int, sizes: Sequence[int]) -> None:
        """Turn the block at `address` into blocks of `sizes`, which together are as large, in one step."""

    def release_region(self, region: list[int], size: int, streams: tuple[int, ...]) -> None:
        """Take the block back whose address is in `region`, and empty that; `streams` may still touch it."""

    def order_behind(self, streams: tuple[int, ...], stream: int) -> None:
        """Order later work on `stream` behind all work queued so far on `streams`."""

    def add_observer(self, observer: RequestObserver) -> None:
        """Tell an observer of every request and free."""

    def remove_observer(self, observer: RequestObserver) -> None:
        """Tell it no more."""
