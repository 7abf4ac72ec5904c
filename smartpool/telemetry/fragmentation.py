"""The live metric: fragmentation as a weighted sum of three parts, each in [0, 1].

=============  ======  ==============================================================================
part           weight  formula
=============  ======  ==============================================================================
interval graph   0.40  `smartpool.free_ranges.scatter` of the free ranges that lie between blocks in
                       mapped memory: 0 when nothing is free or all that is free is one range,
                       towards 1 when much is free and in many pieces
pool             0.30  ``1 - live / reserved``: reserved by the pool and not live; live as requested
GPU              0.30  ``1 - live / taken``, with `taken` the device memory that the driver reports
                       as used now beyond what was used before the pool opened: what the driver
                       adds (rounding, page tables, its own caches), and what others in the process
                       took meanwhile, is in it
=============  ======  ==============================================================================

Every part is 0 when its denominator is 0. The sum of squares is the chance that two free bytes,
drawn at random, lie in one range (the Herfindahl index of the free ranges): unlike ``1 - largest /
free`` it does not jump when one range is split, and does not forgive hundreds of small holes
beside one large one.

The fragmentation of a *run* is another figure, ``1 - peak live / peak reserved``: the definition
of GMLake (ASPLOS 2024) and STAlloc (2025), which `smartpool replay` reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from smartpool.free_ranges import gaps_between, scatter

if TYPE_CHECKING:
    from smartpool.pool.slow_path import SlowPath

__all__ = ["WEIGHTS", "Fragmentation", "fragmentation_of", "share_wasted"]

WEIGHTS: Final = {"interval_graph": 0.4, "pool": 0.3, "gpu": 0.3}


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """The three parts, and their weighted sum.

    Examples
    --------
    >>> Fragmentation(interval_graph=0.5, pool=0.1, gpu=0.1).overall
    0.26
    """

    interval_graph: float
    pool: float
    gpu: float

    @property
    def overall(self) -> float:
        """The weighted sum, in [0, 1]."""
        interval_graph, pool, gpu = WEIGHTS.values()
        return round(interval_graph * self.interval_graph + pool * self.pool + gpu * self.gpu, 12)

    def as_dict(self) -> dict[str, float]:
        """Return the parts and ``overall`` by name."""
        return {part: getattr(self, part) for part in WEIGHTS} | {"overall": self.overall}


def share_wasted(live_bytes: int, held_bytes: int) -> float:
    """Return the share of `held_bytes` that is not live, in [0, 1]; 0 when nothing is held.

    >>> share_wasted(75, 100), share_wasted(0, 0)
    (0.25, 0.0)
    """
    return min(1.0, max(0.0, 1 - live_bytes / held_bytes)) if held_bytes > 0 else 0.0


def fragmentation_of(pool: SlowPath, live_bytes: int) -> Fragmentation:
    """Return the metric of a pool with so many bytes live, as requested. In its critical section."""
    info = pool.driver.memory_info()
    taken = info.total - info.free - pool.used_before
    scattered = 0.0
    if pool.config.enable_interval_coloring:
        layout = pool.heap.layout()
        between = gaps_between(layout.blocks, layout.gaps)
        scattered = scatter(between, sum(layout.blocks.values()))
    return Fragmentation(
        interval_graph=scattered,
        pool=share_wasted(live_bytes, pool.memory.reserved_bytes),
        gpu=share_wasted(live_bytes, taken),
    )
