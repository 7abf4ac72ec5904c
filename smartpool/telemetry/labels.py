"""Who asked for a block: the tag that was set where it was requested, and the Python stack.

A tag is a context variable, so it follows a thread, a task or a generator's caller, and setting one
costs the same whether anybody tracks or not. A stack is kept as code objects and instruction offsets
(0.1 us a frame); lines and names are looked up when somebody reads it. Equal stacks are one label, so
a block costs a reference.

Rejected: `traceback.extract_stack` (reads source files, 20 us and more), line numbers at once (each a
search in a table of the code object), and the hash of a code object, which is that of its contents.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

from smartpool.errors import InvalidRequestError
from smartpool.scopes import holds, scoped
from smartpool.values import encodable

__all__ = ["NOBODY", "Label", "StackLabels", "current_label", "tagged"]

_OWN_FOLDER: Final = str(Path(__file__).parents[1]) + os.sep  # not of a neighbor whose name begins alike
_MOST_STACKS: Final = 1 << 16  # that are remembered for reuse, about 50 MB


class Label:
    """A tag and a stack.

    Attributes
    ----------
    tag
        The tag; None where none was set.
    stack
        Code objects and offsets of instructions, the innermost call first; None where not recorded.
    """

    __slots__ = ("_site", "stack", "tag")

    def __init__(self, tag: str | None, stack: tuple[tuple[CodeType, int], ...] | None = None) -> None:
        self.tag = tag
        self.stack = stack
        self._site: str | None = None

    def __repr__(self) -> str:
        return f"<Label {self.tag!r}: {self.site.splitlines()[:1]}>"

    @property
    def site(self) -> str:
        """The stack as text, a line a frame: ``file:line function``, the innermost first."""
        if self._site is None:
            calls = (
                f"{code.co_filename}:{_line(code, offset)} {code.co_qualname}"
                for code, offset in self.stack or ()
            )
            self._site = encodable("\n".join(calls))
        return self._site

    @property
    def described(self) -> str | None:
        """The stack, and the tag as its last line; None where neither is known."""
        lines = [text for text in (self.site, self.tag and f"tag {self.tag}") if text]
        return "\n".join(lines) or None


NOBODY: Final = Label(None)
"""The label of a block of which nothing is known."""

_current: Final[ContextVar[Label]] = ContextVar("smartpool.label", default=NOBODY)

current_label: Final = _current.get
"""Return the label of a request that is made here, without its stack."""


@scoped
def tagged(name: str) -> Iterator[None]:
    """Label requests that are made in this context with the tag `name`; the innermost one counts.

    >>> with tagged("weights"):
    ...     current_label().tag
    'weights'
    """
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(f"tag: expected a name, got {name!r}")
    with holds(_current, Label(encodable(name))):
        yield


class StackLabels:
    """Labels with stacks of up to `depth` frames, those of this package left out.

    Parameters
    ----------
    depth
        Frames that are kept.
    """

    __slots__ = ("_depth", "_known", "_own")

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._known: dict[tuple[object, ...], Label] = {}  # a label keeps the code of its key alive
        self._own: dict[int, tuple[bool, CodeType]] = {}  # by id of the code, which is kept alive

    def here(self) -> Label:
        """Return the label of a request that is made by the caller of this package. O(frames)."""
        frame = sys._getframe(1)  # noqa: SLF001 - the documented way, and the only cheap one
        own = self._own
        while frame is not None:  # out of the package
            code = frame.f_code
            known = own.get(id(code))
            if known is None:
                if len(own) >= _MOST_STACKS:  # of a program that makes code as it goes
                    own.clear()
                known = own[id(code)] = (code.co_filename.startswith(_OWN_FOLDER), code)
            if not known[0]:
                break
            frame = frame.f_back  # type: ignore[assignment]
        tag, first = _current.get().tag, frame
        key: list[object] = [tag]
        left = self._depth
        while frame is not None and left:
            key += (id(frame.f_code), frame.f_lasti)
            frame = frame.f_back  # type: ignore[assignment]
            left -= 1
        label = self._known.get(tuple(key))
        return self._learn(tuple(key), tag, first) if label is None else label

    def _learn(self, key: tuple[object, ...], tag: str | None, frame: FrameType | None) -> Label:
        stack: list[tuple[CodeType, int]] = []
        while frame is not None and len(stack) < self._depth:
            stack.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        if len(self._known) >= _MOST_STACKS:
            self._known.clear()
        return self._known.setdefault(key, Label(tag, tuple(stack)))


def _line(code: CodeType, offset: int) -> int:
    """Return the line of the instruction at `offset`."""
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno
