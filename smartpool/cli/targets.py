"""Files that a command reads and writes, ``-`` among them.

A command's input and its result may be ``-``: standard input or standard output. Readers want a regular file,
which does not grow and can be read twice, so standard input is copied into one first, within their bounds.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from smartpool.errors import InvalidRequestError
from smartpool.files import MAX_FILE_BYTES, explain, no_folder
from smartpool.units import MiB, format_size

__all__ = ["HTML", "check_target", "read_from", "tell", "written_to"]

HTML: Final = (".html", ".htm")
_STREAM: Final = "-"
_DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})")


@contextmanager
def read_from(source: str | Path) -> Iterator[Path]:
    """Yield a file to read: `source`, or for ``-`` and our own descriptors a copy of what comes from them."""
    name = str(source)
    found = _DESCRIPTOR.fullmatch("/dev/fd/0" if name in (_STREAM, "/dev/stdin") else name)
    if found is None:
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="smartpool-") as folder:
        path = Path(folder) / "standard-input"
        _copy(name, int(found[1]), path)
        yield path


def _copy(name: str, descriptor: int, path: Path) -> None:
    try:
        with open(descriptor, "rb", closefd=False) as stream, path.open("wb") as file:
            while part := stream.read(MiB):
                if file.tell() + len(part) > MAX_FILE_BYTES:
                    raise InvalidRequestError(
                        f"{name}: expected at most {format_size(MAX_FILE_BYTES)}, got more; record a shorter "
                        "part of the program"
                    )
                file.write(part)
    except OSError as error:
        raise InvalidRequestError(f"{name}: expected something to read, got: {explain(error)}") from None


@contextmanager
def written_to(target: str | Path) -> Iterator[Path]:
    """Yield the file to write: `target`, or for ``-`` one that goes to standard output in the end."""
    if str(target) != _STREAM:
        try:
            yield Path(target)
        except OSError as error:
            error.filename = error.filename or str(target)  # a full disk has no name
            raise
        return
    with tempfile.TemporaryDirectory(prefix="smartpool-") as folder:
        path = Path(folder) / "standard-output"
        yield path
        sys.stdout.flush()
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)


def tell(line: str, *results: str | Path | None) -> None:
    """Print a line for people: to standard error where one of the results has standard output for itself."""
    print(line, file=sys.stderr if any(str(result) == _STREAM for result in results) else sys.stdout)


def check_target(
    path: Path | str | None,
    *,
    reads: Iterable[Path | str] = (),
    endings: tuple[str, ...] = (),
    prints: str | None = None,
) -> None:
    """Raise `InvalidRequestError` when a file cannot or must not be written at `path`.

    Parameters
    ----------
    path
        Where a command is to write; None for no file.
    reads
        What the command reads: none of these files is to be overwritten by its result, under
        whatever name or link. Names of bundled traces, which are no files, do no harm.
    endings
        What the name of such a file ends in, if it has an ending; empty for any.
    prints
        What else the command prints to standard output; None when ``-`` may have it.
    """
    if path is None:
        return
    if str(path) == _STREAM:
        if prints is not None:
            raise InvalidRequestError(
                f"{path}: expected the name of a file, as {prints} goes to standard output; name one"
            )
        return
    target = Path(path)
    if target.is_dir():
        raise InvalidRequestError(f"{path}: expected a file to write, this is a folder; name a file in it")
    if not target.parent.is_dir():
        raise InvalidRequestError(no_folder(str(path), target.parent))
    for source in map(Path, reads):
        if target.exists() and source.exists() and target.samefile(source):
            raise InvalidRequestError(
                f"{path}: expected another file than the input to write, this is {str(source)!r} itself "
                "and would be lost; name another"
            )
    if endings and target.suffix and target.suffix.lower() not in endings:
        raise InvalidRequestError(
            f"{path}: expected a name that ends in {' or '.join(endings)}, as that is what is written, "
            f"got {target.suffix}; rename it"
        )
