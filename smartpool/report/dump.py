"""Reading the file that an out-of-memory error leaves. `docs/out-of-memory.md` describes it.

The file is somebody else's: it is read within bounds, every value that the report shows is checked, and
nothing in it is run. What the report does not show, keys that are not known among it, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from smartpool.errors import TraceFormatError
from smartpool.files import open_regular, read_bytes
from smartpool.units import MiB
from smartpool.values import encodable, shown

__all__ = ["DUMP_FORMAT", "Dump", "is_dump", "read_dump"]

DUMP_FORMAT: Final = "smartpool-out-of-memory"
_VERSION: Final = 1
_MAP_VERSION: Final = 1
_MAX_BYTES: Final = 512 * MiB
_HEAD: Final = 4096
_LIMIT: Final = 1 << 62

_Check = Callable[[object], bool]
_Fields = Mapping[str, tuple[_Check, str]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dump:
    """A dump that was checked.

    Parameters
    ----------
    name
        The file's name.
    facts
        Of ``time``, ``smartpool``, ``stack`` and ``thread`` those that it has, as text.
    story
        Its ``story``: figures are integers, ``holders`` and ``advice`` lists of mappings.
    ranges, blocks
        Columns of the memory map, of one length each.
    stacks
        What the blocks' ``stack`` counts in.
    """

    name: str
    facts: Mapping[str, str]
    story: Mapping[str, Any]
    ranges: Mapping[str, Sequence[Any]]
    blocks: Mapping[str, Sequence[Any]]
    stacks: Sequence[str]


def is_dump(path: str | PathLike[str]) -> bool:
    """Whether a file begins like a dump. `OSError` when it cannot be opened."""
    with open_regular(path) as file:
        head = file.read(_HEAD).lstrip()
    return head.startswith(b"{") and DUMP_FORMAT.encode() in head


def read_dump(path: str | PathLike[str]) -> Dump:
    """Return the dump in a file.

    Raises
    ------
    TraceFormatError
        When the file is no such dump, of a later version, or damaged.
    OSError
        When it cannot be opened.
    """
    data = read_bytes(path, most_bytes=_MAX_BYTES)
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"{path}: expected an out-of-memory dump, got no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != DUMP_FORMAT:
        raise TraceFormatError(f"{path}: expected an out-of-memory dump with 'format' {DUMP_FORMAT!r}")
    if document.get("version") != _VERSION:
        raise TraceFormatError(
            f"{path}: expected a dump of version {_VERSION}, got {document.get('version')!r:.60}; "
            "use the SmartPool that wrote it, or a later one"
        )
    where = str(path)
    layout = _mapping(where, "memory_map", document.get("memory_map", {}))
    if layout.get("version", _MAP_VERSION) != _MAP_VERSION:
        raise TraceFormatError(
            f"{path}: expected a memory map of version {_MAP_VERSION}, got {_kind(layout['version'])}; "
            "use the SmartPool that wrote it, or a later one"
        )
    return Dump(
        name=Path(path).stem,
        facts=_facts(where, document),
        story=_story(where, _mapping(where, "story", document.get("story"))),
        ranges=_columns(where, "ranges", layout, _RANGES),
        blocks=_columns(where, "blocks", layout, _BLOCKS, optional=("stack",)),
        stacks=_list(where, "memory_map.stacks", layout.get("stacks", []), _is_text, "texts"),
    )


# ---------------------------------------------------------------------- what a value may be


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LIMIT


def _is_count_or_none(value: object) -> bool:
    return value is None or _is_count(value)


def _is_share(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < _LIMIT)


def _is_name_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_handle(value: object) -> bool:
    return isinstance(value, str) or (type(value) is int and abs(value) < 1 << 64)


def _is_place(value: object) -> bool:
    return value is None or (type(value) is int and abs(value) < _LIMIT)


_COUNT: Final = (_is_count, "an integer from 0 to 2**62")
_TEXT: Final = (_is_text, "text")
_FIGURES: Final[_Fields] = {
    "requested_bytes": (_is_size, "a number of bytes"),  # it may be what no memory holds
    **dict.fromkeys(("live_bytes", "live_blocks", "reserved_bytes", "cap_bytes"), _COUNT),
}
_MORE: Final[_Fields] = {
    **dict.fromkeys(
        ("cached_bytes", "gap_bytes", "largest_free_bytes", "device_free_bytes", "device_total_bytes"), _COUNT
    ),
    "device": _TEXT,
    "stream": (_is_handle, "a number or text"),
    "code": _TEXT,
}
_HOLDER: Final[_Fields] = {"kind": _TEXT, "name": _TEXT, "blocks": _COUNT, "nbytes": _COUNT}
_ADVICE: Final[_Fields] = {"text": _TEXT, "nbytes": (_is_count_or_none, "a number of bytes or null")}
_RANGES: Final[_Fields] = {"address": _COUNT, "nbytes": _COUNT, "state": _TEXT, "block": _COUNT}
_BLOCKS: Final[_Fields] = {
    "address": _COUNT,
    "requested_bytes": _COUNT,
    "stream": (_is_handle, "numbers or texts"),
    "tier": _TEXT,
    "tag": (_is_name_or_none, "texts or null"),
    "stack": (_is_place, "numbers of stacks"),
}


# ---------------------------------------------------------------------- the parts


def _facts(where: str, document: Mapping[str, Any]) -> Mapping[str, str]:
    facts = _checked(where, "", document, dict.fromkeys(("time", "smartpool", "stack"), _TEXT))
    process = _mapping(where, "process", document.get("process", {}))
    return facts | _checked(where, "process.", process, {"thread": _TEXT})


def _story(where: str, story: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _FIGURES:
        if key not in story:
            raise TraceFormatError(f"{where}: expected story.{key}, a number of bytes or blocks, got none")
    parts = _mapping(where, "story.fragmentation", story.get("fragmentation", {}))
    shares = dict.fromkeys(parts, (_is_share, "a number"))
    return {
        **_checked(where, "story.", story, {**_FIGURES, **_MORE}),
        "fragmentation": {
            encodable(name): share
            for name, share in _checked(where, "story.fragmentation.", parts, shares).items()
        },
        **{
            key: [
                _checked(where, f"story.{key}.", entry, fields)
                for entry in _list(where, f"story.{key}", story.get(key, []), _is_mapping, "objects")
            ]
            for key, fields in (("holders", _HOLDER), ("advice", _ADVICE))
        },
    }


def _columns(
    where: str, name: str, layout: Mapping[str, Any], fields: _Fields, *, optional: Sequence[str] = ()
) -> Mapping[str, Sequence[Any]]:
    given = _mapping(where, f"memory_map.{name}", layout.get(name, {}))
    columns = {
        key: _list(where, f"{name}.{key}", given.get(key, []), good, expected)
        for key, (good, expected) in fields.items()
        if key in given or key not in optional
    }
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise TraceFormatError(f"{where}: expected the columns of {name} to be of one length, got {lengths}")
    return columns


def _checked(where: str, place: str, entry: Mapping[str, Any], fields: _Fields) -> dict[str, Any]:
    """Return the values of the fields that an entry has, each as it must be."""
    for key in fields.keys() & entry.keys():
        good, expected = fields[key]
        if not good(entry[key]):
            raise TraceFormatError(
                f"{where}: expected {place}{key} to be {expected}, got {_kind(entry[key])}"
            )
    return {key: _kept(entry[key]) for key in fields if key in entry}


def _list(where: str, what: str, values: object, good: _Check, expected: str) -> list[Any]:
    if not isinstance(values, list) or not all(map(good, values)):
        wrong = values if not isinstance(values, list) else next(one for one in values if not good(one))
        raise TraceFormatError(f"{where}: expected {what} to be a list of {expected}, got {_kind(wrong)}")
    return [_kept(value) for value in values]


def _mapping(where: str, what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TraceFormatError(f"{where}: expected {what!r} to be an object, got {_kind(value)}")
    return value


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _kept(value: Any) -> Any:
    return encodable(value) if isinstance(value, str) else value


def _kind(value: object) -> str:
    """Return a value for a message; what may be of any length by its type."""
    return shown(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
