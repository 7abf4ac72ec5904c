"""The mapper: who maps ahead, on a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

__all__ = ["Mapper", "MapsAhead"]

_PAUSE_S: Final = 50e-6
"""Between two chunks: Python's locks are not fair, and who waits for the pool's is to get it."""


class MapsAhead(Protocol):
    """A pool that can map ahead."""

    def map_ahead(self) -> int:
        """Map one chunk that will be needed, and return its bytes; 0 when none can be foreseen."""


class Mapper:
    """What the mapper's thread works on (`smartpool.maintenance.background.Background`).

    Between two chunks it lets go of the lock and waits for a moment, so requests go first.
    """

    def __init__(self, pools: Sequence[MapsAhead]) -> None:
        self._pools = pools

    def background_pass(self) -> None:
        """Map all that can be foreseen now."""
        for pool in self._pools:
            while pool.map_ahead():
                time.sleep(_PAUSE_S)
