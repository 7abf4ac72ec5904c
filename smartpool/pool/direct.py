"""Pooling switched off: every request is a raw allocation of its own, every free a raw free."""

from __future__ import annotations

from collections.abc import Callable

from smartpool.pool.bins import Bin

__all__ = ["DirectBin"]


class DirectBin(Bin):
    """The bin of one raw allocation: what is put into it goes straight back to the device.

    Parameters
    ----------
    like
        The bin of such requests.
    segment
        Address of the raw allocation; a block of large alignment begins behind it.
    release
        Gives it back; told the address and the streams that used it.
    """

    __slots__ = ("_release", "segment")

    def __init__(self, like: Bin, segment: int, release: Callable[[int, tuple[int, ...]], None]) -> None:
        super().__init__(like.nbytes, like.size, like.stream, like.tier, like.touched)
        self.quiet = False  # it holds nothing, so nobody need empty it
        self.segment = segment
        self._release = release

    def own(self) -> Bin:
        """Return another bin for the block, to be told of further streams."""
        own = DirectBin(self, self.segment, self._release)
        own.others = self.others
        return own

    def append(self, pointer: int) -> None:  # noqa: ARG002 - a bin's method
        """Free the allocation, once its streams have done with it."""
        self._release(self.segment, (self.stream, *self.others))
