"""Exact search: fit intervals into a capacity, and plan large real instances around their hot core."""

from __future__ import annotations

from smartpool.planner.search.fitting import fit
from smartpool.planner.search.hot_core import hot_core
from smartpool.planner.search.restarts import ProvedInfeasible

__all__ = ["ProvedInfeasible", "fit", "hot_core"]
