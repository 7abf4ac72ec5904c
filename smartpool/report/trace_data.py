"""What the page of a trace carries for its script: columns of numbers, and what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smartpool.drawing.assets import tier_color
from smartpool.report.analysis import Analysis, title_of
from smartpool.report.chart import slots_of
from smartpool.tiers import Tier
from smartpool.trace.layouts import Layout
from smartpool.trace.trace import Trace

__all__ = ["about", "columns_of", "slot_of", "tag_of"]


def columns_of(found: Analysis) -> dict[str, NDArray[Any]]:
    """Return every column that the script wants, by name."""
    trace = found.trace
    lifetimes = trace.lifetimes()
    columns: dict[str, NDArray[Any]] = {
        "time": trace.t_us,
        "start": lifetimes.start,
        "life": lifetimes.end - lifetimes.start,
        "size": lifetimes.size,
        "stream": trace.stream[lifetimes.start],
    }
    if trace.site is not None:
        columns["site"] = trace.site[lifetimes.start]
    for index, layout in enumerate(found.layouts):
        columns |= {f"{index}.{name}": values for name, values in _layout_columns(layout, trace).items()}
    return columns


def _layout_columns(layout: Layout, trace: Trace) -> dict[str, NDArray[Any]]:
    columns = {
        "offset": layout.offset,
        "held_start": layout.held_start,
        "held_end": layout.held_end,
        "held_offset": layout.held_offset,
        "held_size": layout.held_size,
        "change": layout.change,
        "reserved": layout.reserved,
    }
    if not np.array_equal(layout.number, np.arange(trace.allocations)):
        columns |= {"number": layout.number, "size": layout.size}  # otherwise one rectangle an allocation
    return columns


def about(found: Analysis) -> dict[str, Any]:
    """Return what the script needs to know beside the columns."""
    trace = found.trace
    return {
        "name": trace.name,
        "events": trace.events,
        "streams": trace.streams,
        "tiers": [
            {"name": tier.title, "most": tier.most, "color": tier_color(number)}
            for number, tier in enumerate(Tier)
        ],
        "sites": list(trace.sites),
        "tags": [tag_of(site) for site in trace.sites],
        "layouts": [
            {
                "name": layout.allocator,
                "title": title_of(layout),
                "slot": slot_of(found, layout),
                "span": layout.span_bytes,
            }
            for layout in found.layouts
        ],
    }


def tag_of(site: str) -> str | None:
    """Return the tag that a recording of ours puts below a stack (`pool.telemetry.labels`), or None."""
    last = site.splitlines()[-1] if site else ""
    return last.removeprefix("tag ") if last.startswith("tag ") else None


def slot_of(found: Analysis, layout: Layout) -> int | None:
    """Return the color of an allocator that was replayed; None for plans and recordings."""
    return slots_of(run.allocator for run in found.runs).get(layout.allocator)
