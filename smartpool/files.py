"""Opening files that others wrote: regular ones, within bounds, and without waiting for anybody."""

from __future__ import annotations

import os
import stat
from os import PathLike
from pathlib import Path
from typing import IO, Final

from smartpool.errors import SmartPoolError, TraceFormatError
from smartpool.units import GiB, format_size

__all__ = ["MAX_FILE_BYTES", "open_regular", "read_bytes"]

MAX_FILE_BYTES: Final = 4 * GiB


def open_regular(
    path: str | PathLike[str],
    *,
    most_bytes: int | None = None,
    error: type[SmartPoolError] = TraceFormatError,
) -> IO[bytes]:
    """Return a regular file of at most `most_bytes`, by default `MAX_FILE_BYTES`, open for reading.

    Raises
    ------
    SmartPoolError
        Of the class `error`, when it is no regular file (a device or a pipe has no end, and opening a pipe
        waits for who writes into it), or longer.
    OSError
        When there is no such file, or it cannot be opened.
    """
    most_bytes = MAX_FILE_BYTES if most_bytes is None else most_bytes
    _check(path, os.stat(path), most_bytes, error)  # noqa: PTH116 - str and PathLike alike
    file = Path(path).open("rb")  # noqa: SIM115 - handed on
    try:
        _check(path, os.fstat(file.fileno()), most_bytes, error)
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: str | PathLike[str], *, most_bytes: int | None = None) -> bytes:
    """Return a file's content; raises as `open_regular` does."""
    with open_regular(path, most_bytes=most_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # and not what somebody adds meanwhile


def _check(
    path: str | PathLike[str], status: os.stat_result, most_bytes: int, error: type[SmartPoolError]
) -> None:
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path}: expected a regular file, got a folder; name a file in it")
        raise error(
            f"{path}: expected a regular file, got a pipe or a device; write its content to a file first"
        )
    if status.st_size > most_bytes:
        raise error(
            f"{path}: expected at most {format_size(most_bytes)}, got {format_size(status.st_size)}; "
            "record a shorter part of the program"
        )
