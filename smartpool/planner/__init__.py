"""Intervals become offsets: weighted interval-graph colouring. Pure integers."""

from __future__ import annotations

from smartpool.planner.intervals import FREE, IntervalSet
from smartpool.planner.plans import Plan
from smartpool.planner.portfolio import plan, solve
from smartpool.planner.validate import validate

__all__ = ["FREE", "IntervalSet", "Plan", "plan", "solve", "validate"]
