"""Exact search: fit intervals into a capacity, or prove that nothing fits."""

from __future__ import annotations

from smartpool.planner.search.restarts import ProvedInfeasible, fit

__all__ = ["ProvedInfeasible", "fit"]
