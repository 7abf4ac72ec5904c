"""Traces from what other tools write: PyTorch snapshots, RMM logs, CuPy's memory hook."""

from __future__ import annotations

from smartpool.trace.importers.cupy_hook import CupyMemoryHook
from smartpool.trace.importers.detect import read_any
from smartpool.trace.importers.events_csv import from_csv
from smartpool.trace.importers.rmm_log import from_rmm_log
from smartpool.trace.importers.torch_snapshot import from_torch_snapshot

__all__ = ["CupyMemoryHook", "from_csv", "from_rmm_log", "from_torch_snapshot", "read_any"]
