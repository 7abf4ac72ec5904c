"""What debug mode tells when the program ends: leaks and overruns of pools that nobody closed.

A program that is run with ``SMARTPOOL_DEBUG=1`` need not know of `close`. So every pool in debug mode is
asked once more when the interpreter exits, while modules and devices are still there. Pools are held
weakly: one that nobody holds goes at once, and tells in its destructor what it had left.

Everything is one warning, so that a filter that makes warnings errors loses nothing of it.
"""

from __future__ import annotations

import atexit
import gc
import warnings
import weakref
from typing import Final, Protocol

from smartpool.log import LOGGER

__all__ = ["Witness", "ask_at_exit", "held_by_objects"]


class Witness(Protocol):
    """What knows of leaks and overruns that nobody was told of."""

    def last_words(self) -> list[str]:
        """Return what there is to tell; raise no `Exception`."""


_open: Final[weakref.WeakSet[Witness]] = weakref.WeakSet()


def ask_at_exit(witness: Witness) -> None:
    """Warn of what `witness` has to tell when the program ends, if it still exists then."""
    _open.add(witness)


def held_by_objects(manager: object) -> set[int]:
    """Return the addresses of the blocks that buffers and exports of `manager` hold: those are no leaks.

    They free their blocks when they die, which at the end of a program is a matter of order.
    """
    return {
        pointer
        for holder in gc.get_referrers(manager)
        if type(holder).__module__.startswith("smartpool.")
        and isinstance(pointer := getattr(holder, "pointer", None), int)
    }


@atexit.register
def _ask_all() -> None:
    if not _open:
        return
    gc.collect()  # buffers in cycles are no leaks, either
    words = "\n".join(word for witness in list(_open) for word in witness.last_words())
    if words:
        LOGGER.warning("%s", words)
        warnings.warn(words, RuntimeWarning, stacklevel=1)
