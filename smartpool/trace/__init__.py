"""Recorded allocations: format, recording, importers, replay, baselines."""

from __future__ import annotations

from smartpool.trace.bundled import bundled, bundled_names
from smartpool.trace.importers import CupyMemoryHook, from_csv, from_rmm_log, from_torch_snapshot, read_any
from smartpool.trace.recorder import Recorder
from smartpool.trace.trace import ALLOCATE, FREE, Lifetimes, Trace

__all__ = [
    "ALLOCATE",
    "FREE",
    "CupyMemoryHook",
    "Lifetimes",
    "Recorder",
    "Trace",
    "bundled",
    "bundled_names",
    "from_csv",
    "from_rmm_log",
    "from_torch_snapshot",
    "read_any",
]
