"""What each driver call costs on the modelled device: one NVIDIA H200, driver 580 (CUDA 13.0).

Every cost is a line, ``base + per_mib * MiB``, fitted to medians that were measured from Python,
so the binding's own microsecond is in them. Calls over several mappings cost the sum over the
mappings, because the driver works handle by handle.
"""

from __future__ import annotations

from dataclasses import dataclass

from smartpool.units import MiB

__all__ = ["H200", "Cost", "CostTable"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds: `base`, and `per_mib` for each MiB of the call.

    Examples
    --------
    >>> round(Cost(14.0, 0.7).seconds(2 << 20) * 1e6, 3)
    15.4
    """

    base: float
    per_mib: float = 0.0

    def seconds(self, nbytes: int = 0) -> float:
        """Return the cost in seconds of a call over `nbytes`."""
        return (self.base + self.per_mib * nbytes / MiB) * 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """The cost of every call of the protocol, by its name.

    `enable_access` and `unmap` are for each mapping in the range. `allocate_small` and
    `free_small` are for raw memory of up to `small_limit` bytes, which shares pages.
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
    enable_access: Cost
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


H200 = CostTable(
    memory_info=Cost(4.6),
    allocate=Cost(60.0, 0.30),
    free=Cost(30.0, 2.0),
    allocate_small=Cost(60.0),
    free_small=Cost(30.0),
    small_limit=1 * MiB,
    reserve=Cost(3.0),
    unreserve=Cost(3.0),
    create_chunk=Cost(12.5, 0.030),
    release_chunk=Cost(14.0, 0.69),
    map_chunk=Cost(2.4, 0.0018),
    enable_access=Cost(30.0, 0.044),
    unmap=Cost(18.5, 0.0145),
    create_stream=Cost(5.0),
    destroy_stream=Cost(5.0),
    synchronize=Cost(3.0),
    create_event=Cost(0.5),
    destroy_event=Cost(0.5),
    record_event=Cost(1.9),
    event_done=Cost(0.5),
    wait_event=Cost(1.0),
    synchronize_event=Cost(1.0),
    fill=Cost(2.0, 0.26),
    copy=Cost(2.0, 0.5),
)
"""One NVIDIA H200."""
