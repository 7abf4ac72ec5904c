"""File descriptors that have one owner each.

Problem: a descriptor is a number, and once it is closed the number is another file's. Who closes first and
notes it afterwards closes that file, too, when an interrupt or another thread comes in between; who notes it
first may never close it.
Method: `io.FileIO`, whose `close` forgets the number and then closes it, in one step of C that no line of
Python and no interrupt comes into. A descriptor is closed when nobody holds its object any more, so that
whoever is in the middle of using it keeps it open: closing means to drop it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import starmap
from typing import Self

__all__ = ["Descriptor"]


class Descriptor(io.FileIO):
    """An open file; closed with the object. The number is `fileno`, good while the object is held.

    >>> import os
    >>> Descriptor("/dev/null").fileno() > 2, Descriptor.of(os.dup, 0).closed
    (True, False)
    """

    __slots__ = ()
    __del__ = io.FileIO.close  # of C, and without the warning that a file was dropped: that is how it ends

    @classmethod
    def of(cls, make: Callable[..., int], *arguments: object) -> Self:
        """Own the descriptor that ``make(*arguments)`` returns, in one step of C: it cannot get lost."""
        return next(map(cls, starmap(make, (arguments,))))
