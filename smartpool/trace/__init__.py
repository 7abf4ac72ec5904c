"""Recorded allocations: format, recording, importers, replay, baselines."""

from __future__ import annotations

from smartpool.trace.bundled import bundled, bundled_names
from smartpool.trace.trace import ALLOCATE, FREE, Lifetimes, Trace

__all__ = ["ALLOCATE", "FREE", "Lifetimes", "Trace", "bundled", "bundled_names"]
