"""Waiting for what another thread or process does: as long as it takes on a busy machine, not for ever."""

from __future__ import annotations

import time

__all__ = ["PATIENCE_S", "wait_until"]

PATIENCE_S = 300
"""Nothing here takes a hundredth of this on a machine that has nothing else to do."""


def wait_until(condition):
    """Return when `condition()` is true; fail when that does not come to be."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {PATIENCE_S} s in vain"
        time.sleep(0.001)
