"""Reading files of other tools within bounds."""

from __future__ import annotations

import os
import stat
from os import PathLike
from pathlib import Path
from typing import IO, Final

from smartpool.errors import TraceFormatError
from smartpool.units import GiB, format_size

__all__ = ["MAX_FILE_BYTES", "check_regular", "read_bytes"]

MAX_FILE_BYTES: Final = 4 * GiB


def read_bytes(path: str | PathLike[str]) -> bytes:
    """Return a regular file's content.

    Raises
    ------
    TraceFormatError
        When it is no regular file (a device or a pipe has no end) or longer than `MAX_FILE_BYTES`.
    OSError
        When it cannot be opened.
    """
    with Path(path).open("rb") as file:
        length = check_regular(path, file)
        return file.read(length)


def check_regular(path: str | PathLike[str], file: IO[bytes] | IO[str]) -> int:
    """Return the length of an open file, or raise as `read_bytes` does."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise TraceFormatError(f"{path}: expected a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise TraceFormatError(
            f"{path}: expected at most {format_size(MAX_FILE_BYTES)}, got {format_size(status.st_size)}; "
            "record a shorter part of the program"
        )
    return status.st_size
