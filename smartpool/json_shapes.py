"""JSON that somebody else wrote, checked field by field: what is read of it is as it must be.

A shape is a `Kind` for a value, a list of one shape for a list, and a dictionary for an object: of its
fields those are kept that the shape names. A name that ends in ``?`` may be missing; ``*`` stands for any
names. Text is kept so that UTF-8 can encode it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from smartpool.values import encodable, shown

__all__ = ["COUNT", "TEXT", "Kind", "checked"]

_LONGEST_NAME: Final = 60


class Kind(NamedTuple):
    """What a value may be, as a test and in words."""

    good: Callable[[Any], bool]
    words: str


TEXT: Final = Kind(lambda value: isinstance(value, str), "text")
COUNT: Final = Kind(lambda value: type(value) is int and 0 <= value < 1 << 62, "an integer from 0 to 2**62")


def checked(value: Any, shape: Any, place: str) -> Any:
    """Return of a value what its shape names.

    Parameters
    ----------
    value
        What `json` read.
    shape
        What it must be.
    place
        How messages call it; empty for a document whose fields go by their own names.

    Raises
    ------
    ValueError
        When something is not as it must be; the message says where, what was expected and what came.

    Examples
    --------
    >>> shape = {"name": TEXT, "sizes": [COUNT], "note?": TEXT}
    >>> checked({"name": "a", "sizes": [1, 2], "more": None}, shape, "entry")
    {'name': 'a', 'sizes': [1, 2]}
    >>> checked({"name": "a", "sizes": [-1]}, shape, "entry")
    Traceback (most recent call last):
    ValueError: expected entry.sizes to be an integer from 0 to 2**62, got -1
    """
    if isinstance(shape, Kind):
        if not shape.good(value):
            raise ValueError(f"expected {place} to be {shape.words}, got {_kind(value)}")
        return encodable(value) if isinstance(value, str) else value
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"expected {place} to be a list, got {_kind(value)}")  # noqa: TRY004 - of one class
        return [checked(one, shape[0], place) for one in value]
    if not isinstance(value, dict):
        raise ValueError(f"expected {place!r} to be an object, got {_kind(value)}")  # noqa: TRY004
    if "*" in shape:
        return {
            encodable(name): checked(one, shape["*"], f"{place}.{name[:_LONGEST_NAME]}")
            for name, one in value.items()
        }
    missing = sorted(name for name in shape if not name.endswith("?") and name not in value)
    if missing:
        raise ValueError(f"{place or 'the document'} has no {missing[0]}")
    names = {name.removesuffix("?"): inner for name, inner in shape.items()}
    return {
        name: checked(value[name], inner, f"{place}.{name}" if place else name)
        for name, inner in names.items()
        if name in value
    }


def _kind(value: object) -> str:
    """Return a value for a message; what may be of any length by its type."""
    return shown(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
