"""Subinterpreters: memory is managed in the main interpreter only.

Subinterpreters share the process's memory and not its objects: the libraries under a pool (`ctypes`
callbacks, NumPy, the bindings of the driver) know one interpreter or none, buffers cannot be handed to
another, and what one leaves behind when it ends nobody frees. NumPy refuses them as well; importing it
in one may even keep the main interpreter from importing it later, so this is asked before.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Final

from smartpool.errors import UnsupportedError

__all__ = ["require_main_interpreter"]

_MODULES: Final = ("_interpreters", "_xxsubinterpreters")  # CPython's own: from 3.13 on, and before


@cache
def require_main_interpreter() -> None:
    """Raise `UnsupportedError` in a subinterpreter."""
    for name in _MODULES:
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        current, main = (_number(ask()) for ask in (interpreters.get_current, interpreters.get_main))
        if current != main:
            raise UnsupportedError(
                f"expected the main interpreter, got subinterpreter {current}: use smartpool in the main one,"
                " and processes for isolation"
            )
        return


def _number(interpreter: object) -> int:
    """Return an interpreter's number, which some versions put first in a tuple."""
    number: Any = interpreter[0] if isinstance(interpreter, tuple) else interpreter
    return int(number)
