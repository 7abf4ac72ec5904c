"""The mapper: who maps ahead, on a thread of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Mapper", "MapsAhead"]


class MapsAhead(Protocol):
    """A pool that can map ahead."""

    def map_ahead(self) -> int:
        """Map one chunk that will be needed, and return its bytes; 0 when none can be foreseen."""


class Mapper:
    """What the mapper's thread works on (`smartpool.pool.background.Background`).

    Between two chunks it lets go of the lock, so requests go first.
    """

    def __init__(self, pools: Sequence[MapsAhead]) -> None:
        self._pools = pools

    def background_pass(self) -> None:
        """Map all that can be foreseen now."""
        for pool in self._pools:
            while pool.map_ahead():
                pass
