"""Forks: a pool belongs to the process that opened it.

A child inherits the pool's books, but not what they describe: a CUDA context is of no use in it, no
thread but one exists there, and the chunks of the `cpu` device are shared pages, so that a child that
went on allocating would write into the parent's blocks, and one that trimmed would empty them. So
every pool is disowned in the child. What was live stays readable there where the memory is shared.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

__all__ = ["Disownable", "disown_in_children"]


class Disownable(Protocol):
    """What can be told that it belongs to the parent."""

    def disown(self) -> None:
        """Leave everything to the parent, and take no lock: its holder may not exist here."""


_opened: Final[weakref.WeakSet[Disownable]] = weakref.WeakSet()


def disown_in_children(pool: Disownable) -> None:
    """Call `pool.disown()` in every process that forks from this one while the pool exists."""
    _opened.add(pool)


def _after_fork_in_child() -> None:
    for pool in list(_opened):
        pool.disown()
    _opened.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
