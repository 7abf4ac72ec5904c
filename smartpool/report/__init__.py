"""Tables, pictures and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartpool.lazy import lazy_names

if TYPE_CHECKING:
    from smartpool.report.write import report

__all__ = ["report"]

__getattr__, __dir__ = lazy_names(__name__, {"report": "smartpool.report.write"})
