"""Intervals become offsets: weighted interval-graph colouring. Pure integers."""

from __future__ import annotations

from smartpool.free_ranges import interval_fragmentation
from smartpool.planner.coloring import WeightedIntervalGraphColoring, color_by_weight
from smartpool.planner.intervals import FREE, IntervalSet
from smartpool.planner.patterns import AccessPatterns, SizeClass
from smartpool.planner.plans import Plan
from smartpool.planner.portfolio import plan, solve
from smartpool.planner.reading import read_csv, write_csv
from smartpool.planner.validate import validate

__all__ = [
    "FREE",
    "AccessPatterns",
    "IntervalSet",
    "Plan",
    "SizeClass",
    "WeightedIntervalGraphColoring",
    "color_by_weight",
    "interval_fragmentation",
    "plan",
    "read_csv",
    "solve",
    "validate",
    "write_csv",
]
