"""The traces that come with the package: small recordings of real GPU workloads.

They let the demo and the first experiment run without a download. `smartpool/data/` holds them;
`docs/traces.md` says what each recorded.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from smartpool.errors import TraceError

__all__ = ["bundled", "bundled_names"]


def bundled_names() -> list[str]:
    """Return the names of the bundled traces, sorted.

    >>> bundled_names()
    ['dataframe-mix', 'llama-train', 'multistream-mix']
    """
    return sorted(path.stem for path in _folder().glob("*.npz"))


def bundled(name: str) -> Path:
    """Return the path of a bundled trace.

    Raises
    ------
    TraceError
        When there is none of that name; the message lists those there are.

    Examples
    --------
    >>> bundled("dataframe-mix").name
    'dataframe-mix.npz'
    """
    if name not in bundled_names():
        raise TraceError(f"expected one of {', '.join(bundled_names())}, got {name!r}")
    return _folder() / f"{name}.npz"


def _folder() -> Path:
    # A path, not a stream: the package is installed as files, as the demo's users expect to open them.
    return Path(str(resources.files("smartpool"))) / "data"
