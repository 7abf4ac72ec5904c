"""Files that a command is to write, looked at before the work; and what the system says, in words."""

from __future__ import annotations

from pathlib import Path

from smartpool.errors import InvalidRequestError

__all__ = ["check_target", "explain"]


def check_target(path: Path | str | None) -> None:
    """Raise `InvalidRequestError` when a file cannot be written at `path`; None stands for no file."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise InvalidRequestError(f"{path}: expected a file to write, this is a folder; name a file in it")
    if not target.parent.is_dir():
        raise InvalidRequestError(
            f"{path}: expected a folder {str(target.parent)!r} to write into, there is none; make it first"
        )


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
        return f"{shown}: there is no folder {str(folder)!r}; make it, or name another"
    if isinstance(error, IsADirectoryError):
        return f"{shown}: expected a file, this is a folder; name a file in it"
    if isinstance(error, PermissionError):
        return f"{shown}: this user may not read or write it; name another, or change its permissions"
    return f"{shown}: {error.strerror}"
