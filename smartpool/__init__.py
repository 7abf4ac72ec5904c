"""SmartPool: a GPU memory pool in pure Python on the raw CUDA driver."""

from __future__ import annotations

__version__ = "0.1.0"
