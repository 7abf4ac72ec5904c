"""Pooling switched off: every request is a raw allocation of its own, every free a raw free."""

from __future__ import annotations

from collections.abc import Callable

from smartpool.pool.bins import Bin

__all__ = ["DirectBin"]


class DirectBin(Bin):
    """The bin of one raw allocation: what is put into it goes straight back to the device."""

    __slots__ = ("_release",)

    def __init__(self, like: Bin, release: Callable[[int], None]) -> None:
        super().__init__(like.nbytes, like.size, like.stream, like.tier, like.touched)
        self._release = release

    def append(self, pointer: int) -> None:
        """Free the allocation at `pointer`; raw frees wait for the device themselves."""
        self._release(pointer)
