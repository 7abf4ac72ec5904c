"""Steps that are undone when a later one fails.

A call that takes several steps registers an undo for each. Where the failure is a driver's, all undos
work, or keep on the books what could not be undone. Where it is an interrupt, which may come in the
middle of a step, an undo can meet books that are half written: what it says then is of no interest,
since the books are mended before the next call, and the caller is to see the interrupt.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from smartpool.errors import SmartPoolError

__all__ = ["Undo"]


class Undo(ExitStack):
    """An `ExitStack` out of which an interrupt comes as itself, whatever the undos say."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None:
        try:
            return super().__exit__(kind, error, traceback)
        except BaseException as another:
            if error is None or error is another or isinstance(error, SmartPoolError):
                raise
        raise error
