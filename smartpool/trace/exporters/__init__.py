"""Traces for other tools: PyTorch's viewer, Perfetto, spreadsheets."""

from __future__ import annotations

from smartpool.trace.exporters.chrome import to_chrome_trace
from smartpool.trace.exporters.events_csv import to_csv
from smartpool.trace.exporters.torch_snapshot import to_torch_snapshot
from smartpool.trace.exporters.write import FORMATS, format_of, write_any

__all__ = ["FORMATS", "format_of", "to_chrome_trace", "to_csv", "to_torch_snapshot", "write_any"]
