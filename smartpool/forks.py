"""Forks: what a child process makes anew, because no thread but one exists in it, and what it leaves alone.

A pool belongs to the process that opened it. A child inherits its books, but not what they describe: a CUDA
context is of no use in it, and the chunks of the `cpu` device are shared pages, so that a child that went on
allocating would write into the parent's blocks, and one that trimmed would empty them. So every pool is
disowned in the child. What was live stays readable there where the memory is shared.

Problem: a lock that another thread held as the process forked stays taken in the child for good, and so does
an event or a condition whose inner lock was. Any of them may be met there: by a destructor, a free, a close.
Method: who makes a lock makes it by `renewed`, which makes another one in every child. Whatever else a child
must do goes through `call_in_children`.
Rejected: reinitializing the lock in place, as the standard library does to its own. The thread that forks may
itself be inside of a ``with``, and would then release in the child what nobody holds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["ModuleLock", "call_in_children", "held_if_free", "renewed"]

Owner = TypeVar("Owner")
Made = TypeVar("Made")

_calls: Final[WeakKeyDictionary[Any, list[Callable[[Any], object]]]] = WeakKeyDictionary()


def call_in_children(owner: Owner, call: Callable[[Owner], object]) -> None:
    """Call ``call(owner)`` in every process that forks from this one while `owner` exists.

    Owners come in the order in which they first asked. `call` must not hold `owner`, which may be a class.
    """
    _calls.setdefault(owner, []).append(call)


def renewed(owner: object, name: str, make: Callable[[], Made]) -> Made:
    """Set the attribute `name` of `owner` to ``make()``, now and in every forked child; return it.

    >>> import threading
    >>> class Table:
    ...     def __init__(self):
    ...         self.lock = renewed(self, "lock", threading.Lock)
    """
    call_in_children(owner, lambda owner: setattr(owner, name, make()))
    made = make()
    setattr(owner, name, made)
    return made


class ModuleLock:
    """A lock of a module: ``with it.lock:``."""

    def __init__(self, make: Callable[[], Any] = threading.RLock) -> None:
        self.lock = renewed(self, "lock", make)


@contextmanager
def held_if_free(lock: Any, patience_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock in the block when it can be had in that time, -1 for any, and say whether.

    An interrupt between `acquire` and `try` would leave the lock taken for good; here it finds it released.
    """
    taken: list[bool] = []
    try:
        waits = patience_s != 0
        # In one step of C: the lock is in the list, or not taken.
        taken.extend(filter(None, map(lock.acquire, (waits,), (patience_s if waits else -1,))))
        yield bool(taken)
    finally:
        if taken:
            lock.release()


def _after_fork_in_child() -> None:
    for owner, calls in list(_calls.items()):
        for call in calls:
            call(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
