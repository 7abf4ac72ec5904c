"""Steps that are undone when a later one fails.

A call that takes several steps registers an undo for each. Where the failure is a driver's, all undos
work, or keep on the books what could not be undone. Where it is an interrupt, which may come in the
middle of a step, an undo can meet books that are half written: what it says then is of no interest,
since the books are mended before the next call, and the caller is to see the interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from smartpool.errors import SmartPoolError

__all__ = ["Undo"]


class Undo:
    """What to call, last first, when the block ends before `keep` was called.

    As a `contextlib.ExitStack`, at a fifth of its time, and an interrupt comes out of it as itself,
    whatever the undos say.
    """

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def callback(self, undo: Callable[..., object], *arguments: object) -> None:
        """Let `undo(*arguments)` be called, before those that are registered already."""
        self._steps.append((undo, arguments))

    def keep(self) -> None:
        """Forget the undos: everything was done."""
        self._steps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = error
        while self._steps:
            undo, arguments = self._steps.pop()
            try:
                undo(*arguments)
            except BaseException as another:  # noqa: BLE001 - the other undos come first
                if failure is not None and not isinstance(failure, SmartPoolError):
                    continue  # an interrupt, here or before: what undos say behind it is of no interest
                if another.__context__ is error and another is not failure:
                    another.__context__ = failure
                failure = another
        if failure is None or failure is error:
            return
        behind = failure.__context__
        try:
            raise failure
        finally:
            failure.__context__ = behind  # which `raise` made the first one
