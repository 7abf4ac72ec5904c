"""Opening files that others wrote: regular ones, within bounds, and without waiting for anybody.

A file that gzip packed is opened unpacked, whatever its name, and counts as what it unpacks to: at most the
larger of 16 MiB and 100 times its length, which is five times what real logs and snapshots do.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from os import PathLike
from typing import IO, Final

from smartpool.errors import SmartPoolError, TraceFormatError
from smartpool.units import GiB, MiB, format_size

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_RATIO",
    "allowed_bytes",
    "explain",
    "no_folder",
    "open_regular",
    "read_bytes",
    "size_of_file",
]

MAX_FILE_BYTES: Final = 4 * GiB
_GZIP: Final = b"\x1f\x8b"
MAX_RATIO: Final = 100
_FREE_OF_RATIO: Final = 16 * MiB  # small files may shrink as well as they can


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
        Of the class `error`, when it is no regular file (a device or a pipe has no end), longer, or packed
        and damaged.
    OSError
        When there is no such file, or it cannot be opened.
    """
    most_bytes = MAX_FILE_BYTES if most_bytes is None else most_bytes
    try:
        status = os.stat(path)  # noqa: PTH116 - first, because opening some devices does something
    except ValueError:
        raise error(f"{path!r:.100}: expected the name of a file, got one with a NUL in it") from None
    _check(path, status, most_bytes, error)
    # Of a name that became a pipe meanwhile the shorter way would wait for who writes into it.
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115 - and not file = Path(path).open("rb")
    try:
        _check(path, os.fstat(file.fileno()), most_bytes, error)
        if not file.peek(2).startswith(_GZIP):
            return file
        with file:
            return _unpacked(path, file, most_bytes, error)
    except BaseException:
        file.close()
        raise


def read_bytes(
    path: str | PathLike[str],
    *,
    most_bytes: int | None = None,
    error: type[SmartPoolError] = TraceFormatError,
) -> bytes:
    """Return a file's content; raises as `open_regular` does."""
    with open_regular(path, most_bytes=most_bytes, error=error) as file:
        return file.read(size_of_file(file))  # and not what somebody adds meanwhile


def size_of_file(file: IO[bytes]) -> int:
    """Return how many bytes an open file has, and go to its beginning."""
    nbytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return nbytes


def allowed_bytes(packed_bytes: int) -> int:
    """Return to how many bytes a packed file of that length may claim to unpack."""
    return max(_FREE_OF_RATIO, MAX_RATIO * packed_bytes)


def explain(error: object) -> str:
    """Return an error in words; of the system's own, without its number and with what to do.

    >>> explain(FileNotFoundError(2, "No such file or directory", "trace.npz"))
    "trace.npz: there is no such file; look at the spelling, and at the folder '.'"
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = error.filename
    if not isinstance(name, str | bytes | PathLike):
        return error.strerror
    shown = os.fsdecode(name)
    folder = os.path.dirname(shown) or "."  # noqa: PTH120 - pathlib is imported by those who need it
    if isinstance(error, FileNotFoundError):
        if os.path.isdir(folder):  # noqa: PTH112
            return f"{shown}: there is no such file; look at the spelling, and at the folder {folder!r}"
        return no_folder(shown, folder)
    if isinstance(error, IsADirectoryError):
        return f"{shown}: expected a file, this is a folder; name a file in it"
    if isinstance(error, PermissionError):
        return f"{shown}: this user may not read or write it; name another, or change its permissions"
    return f"{shown}: {error.strerror}"


def no_folder(path: str, folder: str | PathLike[str]) -> str:
    """Say that the folder of a file is missing."""
    return f"{path}: there is no folder {str(folder)!r}; make it, or name another"


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check(
    path: str | PathLike[str], status: os.stat_result, most_bytes: int, error: type[SmartPoolError]
) -> None:
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path}: expected a regular file, got a folder; name a file in it")
        raise error(
            f"{path}: expected a regular file, got a pipe or a device; write its content to a file first, "
            "or on the command line name '-' and let standard input be it"
        )
    if status.st_size > most_bytes:
        raise error(
            f"{path}: expected at most {format_size(most_bytes)}, got {format_size(status.st_size)}; "
            "record a shorter part of the program"
        )


def _unpacked(
    path: str | PathLike[str], file: IO[bytes], most_bytes: int, error: type[SmartPoolError]
) -> IO[bytes]:
    """Return what gzip packed, in memory."""
    most = min(most_bytes, allowed_bytes(size_of_file(file)))
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            data = packed.read(most + 1)
    except (OSError, EOFError, zlib.error) as wrong:
        raise error(f"{path}: expected a whole file packed by gzip, got a damaged one: {wrong}") from None
    if len(data) > most:
        raise error(
            f"{path}: expected a file that unpacks to at most {format_size(most)}, got more; refused, as "
            "recordings do not shrink so far"
        )
    return io.BytesIO(data)
