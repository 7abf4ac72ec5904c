"""Moved to `smartpool.manager`: this path goes with the next release."""

from __future__ import annotations

import warnings
from importlib import import_module


def __getattr__(name: str) -> object:
    if name != "AdvancedMemoryPoolManager":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("smartpool.pool.manager is smartpool.manager now", DeprecationWarning, stacklevel=2)
    return getattr(import_module("smartpool.manager"), name)
