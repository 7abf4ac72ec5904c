"""What each driver call costs on the modeled device: one NVIDIA H200, driver 580 (CUDA 13.0).

Every cost is a line, ``base + per_mib * MiB``, fitted to medians measured from Python on an idle
device, so the binding's own microsecond is in them: two runs of `bench/gpu/driver_costs.py` (the
later is `bench/results/driver_costs.json`) and an earlier study of the virtual-memory calls. The
three agree within 10 % on short calls; what grows with size (`free`, `release_chunk`) differed by
up to 40 % between machines of the same kind, and the lines run between. `docs/drivers.md` shows
the measurements beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from smartpool.prices import Cost, Prices
from smartpool.units import MiB

__all__ = ["H200", "Cost", "CostTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """The cost of every call of the protocol, by its name.

    Attributes
    ----------
    allocate, free
        For the physical memory that a raw allocation takes or returns, in MiB.
    allocate_small, free_small
        For raw memory of up to `small_limit` bytes. It shares pages: `allocate` and `free` come on
        top when a page is taken or returned.
    enable_access_call, enable_access, enable_access_again
        Once a call, for each mapping in the range without access, and for each that has it already:
        one call over many mappings saves next to nothing on the new ones.
    unmap
        For each mapping in the range.
    """

    memory_info: Cost
    allocate: Cost
    free: Cost
    allocate_small: Cost
    free_small: Cost
    small_limit: int
    reserve: Cost
    unreserve: Cost
    create_chunk: Cost
    release_chunk: Cost
    map_chunk: Cost
    enable_access_call: Cost
    enable_access: Cost
    enable_access_again: Cost
    unmap: Cost
    create_stream: Cost
    destroy_stream: Cost
    synchronize: Cost
    create_event: Cost
    destroy_event: Cost
    record_event: Cost
    event_done: Cost
    wait_event: Cost
    synchronize_event: Cost
    fill: Cost
    copy: Cost
    allocate_host: Cost
    free_host: Cost

    @property
    def prices(self) -> Prices:
        """What the pool computes with: the virtual-memory calls, one chunk a call."""
        return Prices(
            create=self.create_chunk,
            map=self.map_chunk,
            access=self.enable_access_call + self.enable_access,
            unmap=self.unmap,
            release=self.release_chunk,
        )


H200 = CostTable(
    memory_info=Cost(6.5),
    allocate=Cost(49.0, 0.09),
    free=Cost(42.0, 0.65),
    allocate_small=Cost(2.4),
    free_small=Cost(3.0),
    small_limit=1 * MiB,
    reserve=Cost(3.7),
    unreserve=Cost(6.5),
    create_chunk=Cost(12.5, 0.02),
    release_chunk=Cost(14.0, 0.68),
    map_chunk=Cost(1.9, 0.0006),
    enable_access_call=Cost(1.1),
    enable_access=Cost(29.0, 0.042),
    enable_access_again=Cost(0.3),
    unmap=Cost(19.5, 0.0125),
    create_stream=Cost(3.8),
    destroy_stream=Cost(4.1),
    synchronize=Cost(1.1),
    create_event=Cost(0.7),
    destroy_event=Cost(0.8),
    record_event=Cost(1.0),
    event_done=Cost(1.0),
    wait_event=Cost(0.9),
    synchronize_event=Cost(0.9),
    fill=Cost(5.3),
    copy=Cost(6.3),
    allocate_host=Cost(50.0, 250.0),  # a guess: pages are touched for the first time
    free_host=Cost(50.0, 60.0),
)
"""One NVIDIA H200."""
