"""Writing a trace in the format that a name asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Final

from smartpool.errors import ConfigurationError
from smartpool.trace.exporters.chrome import to_chrome_trace
from smartpool.trace.exporters.events_csv import to_csv
from smartpool.trace.exporters.torch_snapshot import to_torch_snapshot
from smartpool.trace.trace import Trace

__all__ = ["FORMATS", "format_of", "write_any"]

FORMATS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"npz": (".npz",), "torch": (".pickle", ".pkl"), "chrome": (".json",), "csv": (".csv",)}
)
"""The formats by name, and the endings of file names that ask for them."""

_WRITERS: Final[Mapping[str, Callable[[Trace, Path], None]]] = MappingProxyType(
    {"npz": Trace.save, "torch": to_torch_snapshot, "chrome": to_chrome_trace, "csv": to_csv}
)


def format_of(path: str | PathLike[str], to: str | None = None) -> str:
    """Return the format in which a file is to be written.

    Parameters
    ----------
    path
        Its ending decides unless `to` does.
    to
        One of `FORMATS`, or None.

    Raises
    ------
    ConfigurationError
        When there is no such format, or the name ends in none that is known.

    Examples
    --------
    >>> format_of("step.json"), format_of("step.dat", "csv")
    ('chrome', 'csv')
    """
    if to is not None:
        if to not in FORMATS:
            raise ConfigurationError("to", f"expected one of {', '.join(FORMATS)}, got {to!r}")
        return to
    suffix = Path(path).suffix.lower()
    for name, suffixes in FORMATS.items():
        if suffix in suffixes:
            return name
    known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
    raise ConfigurationError(
        "to", f"expected a file name that ends in {known}, or a format, got {str(path)!r}"
    )


def write_any(trace: Trace, path: str | PathLike[str], *, to: str | None = None) -> str:
    """Write a trace to `path` and return the name of the format.

    Parameters
    ----------
    trace, path
        What, and where to.
    to
        The format; None for the one that the name's ending asks for.

    Raises
    ------
    ConfigurationError
        As `format_of`; nothing is written then.
    OSError
        When the file cannot be written.
    """
    name = format_of(path, to)
    _WRITERS[name](trace, Path(path))
    return name
