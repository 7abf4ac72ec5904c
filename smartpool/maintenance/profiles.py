"""Profiles of heaps as a file: what one run learned, for the next."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from os import PathLike
from typing import Final

from smartpool.errors import ConfigurationError, TraceFormatError
from smartpool.files import explain, read_bytes
from smartpool.heap.arena import Range
from smartpool.heap.profile import HeapProfile
from smartpool.json_shapes import COUNT, TEXT, checked

__all__ = ["read_profiles", "write_profiles"]

_FORMAT: Final = "smartpool-profile-1"
_MOST_BYTES: Final = 256 << 20
_SHAPE: Final = {"format": TEXT, "pools": [{"granularity": COUNT, "chunks": [COUNT], "windows": [[[COUNT]]]}]}


def write_profiles(path: str | PathLike[str], profiles: Sequence[HeapProfile]) -> None:
    """Write what each pool has learned, as JSON."""
    pools = [
        {
            "granularity": profile.granularity,
            "chunks": profile.chunks,
            "windows": [[tuple(piece) for piece in window] for window in profile.windows],
        }
        for profile in profiles
    ]
    unfinished = f"{os.fspath(path)}.part"  # a run that is killed meanwhile leaves the old one
    with open(unfinished, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is imported by who needs it
        json.dump({"format": _FORMAT, "pools": pools}, file)
    os.replace(unfinished, path)  # noqa: PTH105


def read_profiles(path: str | PathLike[str], granularities: Sequence[int]) -> list[HeapProfile]:
    """Return the profiles of a file, one for each pool; none where there is no such file yet.

    Parameters
    ----------
    path
        The file.
    granularities
        Bytes of the smallest chunk of each pool's device.

    Raises
    ------
    ConfigurationError
        When the file is no profile, or one of other devices.
    """
    try:
        data = read_bytes(path, most_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return []  # the first run
    except (OSError, TraceFormatError) as error:
        raise _refused(explain(error)) from error
    try:
        shape = checked(json.loads(data), _SHAPE, "")
        if shape["format"] != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT!r}, got {shape['format']!r}")  # noqa: TRY301
        profiles = [
            HeapProfile(
                pool["granularity"],
                tuple(pool["chunks"]),
                tuple([tuple([Range(*piece) for piece in window]) for window in pool["windows"]]),
            )
            for pool in shape["pools"]
        ]
    except (ValueError, TypeError, RecursionError) as error:  # a piece of another length is a TypeError
        raise _refused(f"{path}: expected what SmartPool.save_profile wrote: {error}") from error
    found = [profile.granularity for profile in profiles]
    if found != list(granularities):
        raise _refused(
            f"{path}: expected a profile of pools whose smallest chunks have {list(granularities)} bytes, "
            f"got one of pools with {found}; a profile serves the devices that it was made on"
        )
    for wrong in (problem for profile in profiles for problem in profile.problems()):
        raise _refused(f"{path}: expected what SmartPool.save_profile wrote, got {wrong}")
    return profiles


def _refused(message: str) -> ConfigurationError:
    return ConfigurationError("profile", message)
