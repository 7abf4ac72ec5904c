"""Reading the file that an out-of-memory error leaves. `docs/out-of-memory.md` describes it.

The file is somebody else's: it is read within bounds, checked for what the report shows, and nothing in
it is run. Keys that are not known are ignored.
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
from smartpool.units import MiB

__all__ = ["DUMP_FORMAT", "Dump", "is_dump", "read_dump"]

DUMP_FORMAT: Final = "smartpool-out-of-memory"
_VERSION: Final = 1
_MAX_BYTES: Final = 512 * MiB
_HEAD: Final = 4096
_LIMIT: Final = 1 << 62
_FIGURES: Final = ("requested_bytes", "live_bytes", "live_blocks", "reserved_bytes", "cap_bytes")
_RANGES: Final = ("address", "nbytes", "state", "block")
_BLOCKS: Final = ("address", "requested_bytes", "stream", "tier", "tag")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dump:
    """A dump that was checked.

    Parameters
    ----------
    name
        The file's name.
    facts
        The whole document but for the map.
    story
        Its ``story``: the figures are integers, the lists are lists.
    ranges, blocks
        Columns of the memory map, of one length each.
    stacks
        What the blocks' ``stack`` counts in.
    """

    name: str
    facts: Mapping[str, Any]
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
    try:
        document = json.loads(read_bytes(path, most_bytes=_MAX_BYTES).decode())
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"{path}: expected an out-of-memory dump, got no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != DUMP_FORMAT:
        raise TraceFormatError(f"{path}: expected an out-of-memory dump with 'format' {DUMP_FORMAT!r}")
    if document.get("version") != _VERSION:
        raise TraceFormatError(
            f"{path}: expected a dump of version {_VERSION}, got {document.get('version')!r}; "
            "use the SmartPool that wrote it, or a later one"
        )
    where = str(path)
    shown = _mapping(where, "memory_map", document.get("memory_map", {}))
    stacks = shown.get("stacks", [])
    if not isinstance(stacks, list) or not all(isinstance(stack, str) for stack in stacks):
        raise TraceFormatError(f"{where}: expected memory_map.stacks to be a list of texts")
    return Dump(
        name=Path(path).stem,
        facts={key: value for key, value in document.items() if key != "memory_map"},
        story=_story(where, document),
        ranges=_columns(where, "ranges", shown, _RANGES, integers=("address", "nbytes", "block")),
        blocks=_columns(where, "blocks", shown, _BLOCKS, integers=("address", "requested_bytes")),
        stacks=stacks,
    )


def _story(where: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    story = _mapping(where, "story", document.get("story"))
    for key in _FIGURES:
        if not _is_count(story.get(key)):
            raise TraceFormatError(f"{where}: expected story.{key} to be a number of bytes or blocks")
    for key in ("holders", "advice"):
        entries = story.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise TraceFormatError(f"{where}: expected story.{key} to be a list of objects")
    return story


def _columns(
    where: str, name: str, shown: Mapping[str, Any], wanted: Sequence[str], *, integers: Sequence[str]
) -> Mapping[str, Sequence[Any]]:
    given = _mapping(where, f"memory_map.{name}", shown.get(name, {}))
    columns = {key: given.get(key, []) for key in (*wanted, *(["stack"] if "stack" in given else []))}
    lengths = {key: len(values) if isinstance(values, list) else -1 for key, values in columns.items()}
    if len(set(lengths.values())) > 1 or -1 in lengths.values():
        raise TraceFormatError(
            f"{where}: expected the columns of {name} to be lists of one length, got {lengths}"
        )
    for key in integers:
        if not all(map(_is_count, columns[key])):
            raise TraceFormatError(f"{where}: expected {name}.{key} to be integers of at least 0")
    return columns


def _mapping(where: str, what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TraceFormatError(f"{where}: expected {what!r} to be an object")
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LIMIT
