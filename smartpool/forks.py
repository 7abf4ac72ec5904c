"""Forks: what a child process makes anew, because no thread but one exists in it.

Problem: a lock that another thread held as the process forked stays taken in the child for good, and so does
an event or a condition whose inner lock was. Any of them may be met there: by a destructor, a free, a close.
Method: who makes a lock makes it by `renewed`, which makes another one in every child. Whatever else a child
must do goes through `call_in_children`.
Rejected: reinitialising the lock in place, as the standard library does to its own. The thread that forks may
itself be inside of a ``with``, and would then release in the child what nobody holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["call_in_children", "renewed"]

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


def _after_fork_in_child() -> None:
    for owner, calls in list(_calls.items()):
        for call in calls:
            call(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
