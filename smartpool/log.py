"""The one logger of the package, ``smartpool``.

=========  ==========================================================================================
level      what
=========  ==========================================================================================
DEBUG      memory was mapped or given back: by chunk
INFO       the background optimizer gave memory back, and why
WARNING    a request failed for lack of memory; blocks were live when a pool in debug mode was closed; a
           graph was captured outside of `SmartPool.capture`, once
ERROR      the background optimizer or a hook failed; debug mode found memory overwritten
=========  ==========================================================================================

Requests and frees are never logged: use a hook or a recording. Nothing is printed unless the program
configures `logging`.
"""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["LOGGER"]

LOGGER: Final = logging.getLogger("smartpool")
LOGGER.addHandler(logging.NullHandler())
