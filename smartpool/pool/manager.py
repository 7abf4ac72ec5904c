"""Moved to `smartpool.manager`: this path goes with the next release."""

from __future__ import annotations

import warnings
from importlib import import_module


def __getattr__(name: str) -> object:
    warnings.warn("smartpool.pool.manager is smartpool.manager now", DeprecationWarning, stacklevel=2)
    return getattr(import_module("smartpool.manager"), name)
