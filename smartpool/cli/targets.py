"""Files that a command is to write, looked at before the work; and what the system says, in words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from smartpool.errors import InvalidRequestError

__all__ = ["check_target", "explain"]


def check_target(path: Path | str | None, *, reads: Iterable[Path | str] = ()) -> None:
    """Raise `InvalidRequestError` when a file cannot or must not be written at `path`.

    Parameters
    ----------
    path
        Where a command is to write; None for no file.
    reads
        What the command reads: none of these files is to be overwritten by its result, under
        whatever name or link. Names of bundled traces, which are no files, do no harm.
    """
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise InvalidRequestError(f"{path}: expected a file to write, this is a folder; name a file in it")
    if not target.parent.is_dir():
        raise InvalidRequestError(_no_folder(str(path), target.parent))
    for source in map(Path, reads):
        if target.exists() and source.exists() and target.samefile(source):
            raise InvalidRequestError(
                f"{path}: expected another file than the input to write, this is {str(source)!r} itself "
                "and would be lost; name another"
            )


def _no_folder(path: str, folder: Path) -> str:
    return f"{path}: there is no folder {str(folder)!r}; make it, or name another"


def explain(error: OSError) -> str:
    """Return in words what the system says with a number.

    >>> explain(FileNotFoundError(2, "No such file or directory", "trace.npz"))
    "trace.npz: there is no such file; look at the spelling, and at the folder '.'"
    """
    name = error.filename
    if not isinstance(name, str | bytes | Path):
        return str(error)
    shown = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    folder = Path(shown).parent
    if isinstance(error, FileNotFoundError):
        if folder.is_dir():
            return f"{shown}: there is no such file; look at the spelling, and at the folder {str(folder)!r}"
        return _no_folder(shown, folder)
    if isinstance(error, IsADirectoryError):
        return f"{shown}: expected a file, this is a folder; name a file in it"
    if isinstance(error, PermissionError):
        return f"{shown}: this user may not read or write it; name another, or change its permissions"
    return f"{shown}: {error.strerror}"
