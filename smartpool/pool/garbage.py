"""Garbage that holds memory: it is collected before a request fails for lack of memory.

Buffers in reference cycles are live until Python's collector comes by, and that comes by the number of
objects, not by their bytes: a program may run out of memory of which it holds nothing. So a request that is
about to fail collects once, outside of the pool's lock, since destructors may take any lock of the program's,
and is tried again.

Rejected: collecting under the lock, as callbacks are called there; collecting by bytes requested, which costs
programs that make no cycles.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from smartpool.errors import OutOfMemoryError

__all__ = ["GarbageMayHelpError", "collection_allowed", "uncollected"]

_here: Final = threading.local()


class GarbageMayHelpError(OutOfMemoryError):
    """A request fails unless garbage holds what it needs. Never leaves the pool."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Let requests of this thread fail without collecting: destructors may do what a capture forbids."""
    _here.forbidden = True
    try:
        yield
    finally:
        _here.forbidden = False


def collection_allowed() -> bool:
    """Return whether destructors may run now on this thread."""
    return not getattr(_here, "forbidden", False)
