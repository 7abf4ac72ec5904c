"""Reading the file that an out-of-memory error leaves. `docs/out-of-memory.md` describes it.

The file is somebody else's: it is read within bounds, every value that the report shows is checked, and
nothing in it is run. What the report does not show, keys that are not known among it, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from smartpool.errors import TraceFormatError
from smartpool.files import open_regular, read_bytes
from smartpool.json_shapes import COUNT, TEXT, Kind, checked
from smartpool.units import MiB

__all__ = ["DUMP_FORMAT", "Dump", "is_dump", "read_dump"]

DUMP_FORMAT: Final = "smartpool-out-of-memory"
_VERSION: Final = 1
_MAP_VERSION: Final = 1
_MAX_BYTES: Final = 512 * MiB
_HEAD: Final = 4096
_LIMIT: Final = 1 << 62


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
    layout = document.get("memory_map", {})
    version = layout.get("version", _MAP_VERSION) if isinstance(layout, dict) else _MAP_VERSION
    if version != _MAP_VERSION:
        raise TraceFormatError(
            f"{path}: expected a memory map of version {_MAP_VERSION}, got {version!r:.60}; "
            "use the SmartPool that wrote it, or a later one"
        )
    try:
        found = checked(document, _DUMP, "")
        layout = found.get("memory_map", {})
        ranges, blocks = (_columns(name, layout.get(name, {})) for name in ("ranges", "blocks"))
    except ValueError as error:
        raise TraceFormatError(f"{path}: {error}") from None
    facts = {name: found[name] for name in ("time", "smartpool", "stack") if name in found}
    return Dump(
        name=Path(path).stem,
        facts=facts | found.get("process", {}),
        story={"fragmentation": {}, "holders": [], "advice": []} | found["story"],
        ranges=ranges,
        blocks=blocks,
        stacks=layout.get("stacks", []),
    )


def _columns(name: str, given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the columns of a table, empty ones where it is empty."""
    needed = (key.removesuffix("?") for key in _MAP[f"{name}?"] if key != "stack?")
    columns = {**{key: [] for key in needed}, **given}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected the columns of {name} to be of one length, got {lengths}")
    return columns


# ---------------------------------------------------------------------- what a dump is


_SIZE: Final = Kind(lambda value: type(value) is int and value >= 0, "a number of bytes")
_SIZE_OR_NONE: Final = Kind(lambda value: value is None or COUNT.good(value), "a number of bytes or null")
_SHARE: Final = Kind(
    lambda value: isinstance(value, float) or (type(value) is int and abs(value) < _LIMIT), "a number"
)
_NAME: Final = Kind(lambda value: value is None or isinstance(value, str), "text or null")
_HANDLE: Final = Kind(
    lambda value: isinstance(value, str) or (type(value) is int and abs(value) < 1 << 64), "a number or text"
)
_PLACE: Final = Kind(
    lambda value: value is None or (type(value) is int and abs(value) < _LIMIT), "the number of a stack"
)
_STORY: Final[dict[str, Any]] = {
    "requested_bytes": _SIZE,  # it may be what no memory holds
    **dict.fromkeys(("live_bytes", "live_blocks", "reserved_bytes", "cap_bytes"), COUNT),
    **dict.fromkeys(("cached_bytes?", "gap_bytes?", "largest_free_bytes?"), COUNT),
    **dict.fromkeys(("device_free_bytes?", "device_total_bytes?"), COUNT),
    "device?": TEXT,
    "stream?": _HANDLE,
    "code?": TEXT,
    "fragmentation?": {"*": _SHARE},
    "holders?": [{"kind?": TEXT, "name?": TEXT, "blocks?": COUNT, "nbytes?": COUNT}],
    "advice?": [{"text?": TEXT, "nbytes?": _SIZE_OR_NONE}],
}
_MAP: Final[dict[str, Any]] = {
    "ranges?": {"address?": [COUNT], "nbytes?": [COUNT], "state?": [TEXT], "block?": [COUNT]},
    "blocks?": {
        "address?": [COUNT],
        "requested_bytes?": [COUNT],
        "stream?": [_HANDLE],
        "tier?": [TEXT],
        "tag?": [_NAME],
        "stack?": [_PLACE],
    },
    "stacks?": [TEXT],
}
_DUMP: Final[dict[str, Any]] = {
    **dict.fromkeys(("time?", "smartpool?", "stack?"), TEXT),
    "process?": {"thread?": TEXT},
    "story": _STORY,
    "memory_map?": _MAP,
}
