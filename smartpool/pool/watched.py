"""A pool that can be watched: by address, by observers, and when memory runs out."""

from __future__ import annotations

from smartpool.pool.direct import DirectBin
from smartpool.pool.memory_map import Layout, MemoryMap, make_map
from smartpool.pool.searching import SearchingPool

__all__ = ["WatchedPool"]


class WatchedPool(SearchingPool):
    """What a pool shows of itself. `AdvancedMemoryPoolManager` is the whole."""

    def memory_map(self) -> MemoryMap:
        """Return what every byte that the pool holds is, by address. O(n log n).

        The pool's lock is held while dictionaries are copied, no longer.
        """
        with self._writing():
            if self.late_frees is not None:
                self.late_frees()
            live = self._live.copy()
            layout = self._heap.layout() if self._pooling else self._direct_layout()
            regions = self._steps.regions()
            reserved, cap = self._memory.reserved_bytes, self._memory.cap_bytes
        return make_map(
            layout,
            live,
            regions=regions,
            labels={},
            device=self.driver.name,
            granularity_bytes=self.driver.granularity,
            reserved_bytes=reserved,
            cap_bytes=cap,
        )

    def _direct_layout(self) -> Layout:
        """Return the raw allocations of a pool without pooling: each is a chunk with one block in it."""
        segments = self._memory.segments()
        shown = {
            bin_.segment: (pointer, 0)
            for pointer, bin_ in self._live.copy().items()
            if isinstance(bin_, DirectBin)
        }
        return Layout(blocks=segments, gaps={}, chunks=segments, shown=shown)
