"""Reading and writing the columns of a trace as ``.npz``, without trusting the file.

An ``.npz`` is a zip archive of ``.npy`` arrays. `numpy.load` would allocate what the header of an array
claims before it reads any of it, and unpack what an archive holds however much that is. So NumPy's own
functions read the headers, and nothing is read by one that does not agree with the archive to the byte:

* the zip directory may hold 1 MiB, a member may be stored or deflated (the other methods of `zipfile`
  unpack a whole block at once, however large), and members are read up to the size that they claim;
* what a file claims to unpack to is bounded, in total and by its own length: the columns of real traces
  shrink 10 times, a bomb 1000 times;
* a header may hold 1 KiB, and no other type than integers or one string. `zipfile` checks the CRC.

So time is linear in the length of the file, and memory is bounded by it: reading and checking takes at
most five times what the file unpacks to, and that is at most the larger of 16 MiB and 100 times its length.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from smartpool.errors import TraceFormatError
from smartpool.files import MAX_RATIO, allowed_bytes, open_regular, size_of_file
from smartpool.units import MiB, format_size

__all__ = ["MAX_EVENTS", "read_npz", "write_npz"]

MAX_EVENTS: Final = 1 << 27
_MAX_META_BYTES: Final = 4 * MiB
_MAX_HEADER_BYTES: Final = 1024
_MAX_READ: Final = 1 * MiB


def read_npz(
    path: str | PathLike[str], names: tuple[str, ...], *, optional: tuple[str, ...] = ()
) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
    """Return the integer columns `names`, those of `optional` that are there, and the metadata of a file.

    Members that are not asked for are not read. A file without ``meta`` has an empty one.

    Raises
    ------
    TraceFormatError
        When the file is no such archive, is damaged, or claims more than it may.
    OSError
        When the file cannot be opened.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(_SmallReads(file)) as archive:
                members = _members(archive, size_of_file(file))
                wanted = (*names, *(name for name in optional if name in members))
                columns = {name: _column(archive, members, name) for name in wanted}
                meta = _meta(_array(archive, members, "meta", "US", axes=0)) if "meta" in members else {}
        except TraceFormatError as error:
            raise TraceFormatError(f"{path}: {error}") from None
        except Exception as error:  # noqa: BLE001 - neither zipfile nor NumPy lists what damaged files raise
            raise TraceFormatError(
                f"{path}: expected an .npz archive with the columns {', '.join(names)}; it is truncated, "
                f"damaged or of another format ({_said(error)})"
            ) from None
    return columns, meta


def write_npz(
    path: str | PathLike[str], columns: Mapping[str, NDArray[Any]], meta: Mapping[str, object]
) -> None:
    """Write columns and metadata to exactly `path`; a file that is there is replaced whole or not at all."""
    path = Path(path)
    text = np.array(json.dumps(meta, allow_nan=False))
    if text.nbytes > _MAX_META_BYTES:
        raise TraceFormatError(
            f"{path}: expected metadata of at most {_MAX_META_BYTES // 4} characters, got {text.nbytes // 4}"
        )
    arrays = {**columns, "meta": text}
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_archive(unfinished, arrays, np.savez_compressed)
        if sum(array.nbytes for array in arrays.values()) + MiB > allowed_bytes(unfinished.stat().st_size):
            # Columns of one value over and over: stored, so that the reader does not take it for a bomb.
            _write_archive(unfinished, arrays, np.savez)
        unfinished.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()


def _write_archive(path: Path, arrays: Mapping[str, NDArray[Any]], save: Callable[..., None]) -> None:
    with path.open("wb") as file:  # given a name, NumPy would put .npz behind it
        save(file, **arrays)


class _SmallReads:
    """A file that refuses to read more than `_MAX_READ` at once.

    `zipfile` reads the whole directory in one call, by a length that the file claims, and makes some
    ten times as many bytes of objects from it. Everything else that it reads here is smaller.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, _MAX_READ + 1) if size >= 0 else _MAX_READ + 1)
        if len(data) > _MAX_READ:
            raise TraceFormatError(
                f"expected a directory of at most {format_size(_MAX_READ)}, got {size} bytes"
            )
        return data


def _members(archive: zipfile.ZipFile, file_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays in the archive by name, after a look at what they claim."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise TraceFormatError(f"expected every member once, got {name[:80]!r} twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise TraceFormatError(f"expected {name[:80]!r} stored or deflated, got another compression")
        members[name] = info
    claimed = sum(info.file_size for info in members.values())
    if claimed > allowed_bytes(file_bytes):
        raise TraceFormatError(
            f"it claims to unpack to {format_size(claimed)}, more than {MAX_RATIO} times its length; "
            "refused, as a trace does not shrink so far"
        )
    return members


def _column(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str) -> NDArray[Any]:
    if name not in members:
        raise TraceFormatError(f"expected a column {name!r}, got {sorted(members)!s:.120}")
    column = _array(archive, members, name, "iu", axes=1)
    return column.astype(column.dtype.newbyteorder("="), copy=False)


def _array(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str, kinds: str, *, axes: int
) -> NDArray[Any]:
    """Return an array of one of `kinds` and so many axes, its header checked against its length."""
    where, wanted = (f"column {name!r}", "one dimension of integers") if axes else (name, "one string")
    with archive.open(members[name]) as stream:
        try:
            first = npy.read_magic(stream)[0] == 1
            read_header = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
            shape, _, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
        except Exception as error:  # noqa: BLE001 - as above
            raise TraceFormatError(
                f"{where}: expected a NumPy array with {wanted}, got another header ({_said(error)})"
            ) from None
        left = members[name].file_size - stream.tell()
        if dtype.kind not in kinds or len(shape) != axes or (not axes and left > _MAX_META_BYTES):
            raise TraceFormatError(f"{where}: expected {wanted}, got {str(dtype)[:120]} of shape {shape}")
        if math.prod(shape) > MAX_EVENTS or math.prod(shape) * dtype.itemsize != left:
            raise TraceFormatError(
                f"{where}: its header says {math.prod(shape)} items of {dtype.itemsize} bytes, "
                f"its data are {left} bytes (at most {MAX_EVENTS} events are read)"
            )
        data = bytearray()
        while piece := stream.read(_MAX_READ // 4):
            data += piece
    return np.frombuffer(data, dtype).reshape(shape)  # raises where the member holds less than it claims


def _meta(text: NDArray[Any]) -> dict[str, object]:
    # Not by NumPy, which makes broken text of codes that are no character's.
    coding = "utf-8" if text.dtype.kind == "S" else "utf-32-le"
    data = text.astype(text.dtype.newbyteorder("<")).tobytes()
    try:
        meta = json.loads(data.decode(coding).rstrip("\0"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"meta: expected JSON, got text that is not: {error}") from None
    if not isinstance(meta, dict):
        raise TraceFormatError(f"meta: expected a JSON object, got {type(meta).__name__}")
    return meta


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(getattr(error, 'strerror', None) or error)[:120]}"
