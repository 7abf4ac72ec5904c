"""Reading and writing the columns of a trace as ``.npz``, without trusting the file.

An ``.npz`` is a zip archive of ``.npy`` arrays. `numpy.load` is not used to read it: it evaluates the
header of an array as a Python literal, allocates what the header claims, and unpickles object arrays
unless told otherwise. A trace needs one-dimensional integers and one string, so this module reads
those alone:

* the zip directory may hold 1 MiB, a member may be stored or deflated (the other methods of `zipfile`
  unpack a whole block at once, however large), and members are read up to the size that they claim;
* what a file claims to unpack to is bounded, in total and by its own length: the columns of real traces
  shrink 10 times, a bomb 1000 times;
* the array header is matched by a pattern, never evaluated, and must agree with the member's length to
  the byte. `zipfile` checks the CRC of what was read.

So time is linear in the length of the file, and memory is bounded by it: reading and checking takes at
most five times what the file unpacks to, and that is at most the larger of 16 MiB and 100 times its length.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from smartpool.errors import TraceFormatError
from smartpool.files import MAX_RATIO, allowed_bytes, open_regular, size_of_file
from smartpool.units import MiB, format_size

__all__ = ["MAX_EVENTS", "read_npz", "write_npz"]

MAX_EVENTS: Final = 1 << 27
_MAX_META_BYTES: Final = 4 * MiB
_MAX_READ: Final = 1 * MiB

_MAGIC: Final = b"\x93NUMPY"
# Possessive quantifiers (`*+`): a header of nothing but spaces must not cost quadratic time.
_DESCR: Final = re.compile(rb"'descr':\s*+'([<>|=]?)([iuUS])(\d{1,9})'")
_ORDER: Final = re.compile(rb"'fortran_order':\s*+(?:False|True)")  # the same for fewer than two axes
_SHAPE: Final = re.compile(rb"'shape':\s*+\((?:(\d{1,18}),)?\s*+\)")
_HEADER: Final = re.compile(
    rb"\{\s*+(?:(?:%b|%b|%b)\s*+,?+\s*+){3}\}\s*+" % (_DESCR.pattern, _ORDER.pattern, _SHAPE.pattern)
)

# What `zipfile` and `zlib` raise on damaged archives, found by fuzzing.
_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # encrypted; NotImplementedError (an unknown method or version) derives from it
    ValueError,
    OverflowError,
)


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
                members = _members(archive, file)
                wanted = (*names, *(name for name in optional if name in members))
                columns = {name: _integers(name, *_member(archive, members, name)) for name in wanted}
                meta = _meta(*_member(archive, members, "meta")) if "meta" in members else {}
        except TraceFormatError as error:
            raise TraceFormatError(f"{path}: {error}") from None
        except _DAMAGED as error:
            raise TraceFormatError(
                f"{path}: expected an .npz archive with the columns {', '.join(names)}; it is truncated, "
                f"damaged or of another format ({type(error).__name__}: {_said(error):.120})"
            ) from None
    return columns, meta


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


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


# ---------------------------------------------------------------------- the archive


class _SmallReads:
    """A file that refuses to read more than `_MAX_READ` at once.

    `zipfile` reads the whole directory in one call, by a length that the file claims, and makes some
    ten times as many bytes of objects from it. Everything else that it reads here is smaller.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.close = file.close

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, _MAX_READ + 1) if size >= 0 else _MAX_READ + 1)
        if len(data) > _MAX_READ:
            raise TraceFormatError(
                f"expected a directory of at most {format_size(_MAX_READ)}, got {size} bytes"
            )
        return data


def _members(archive: zipfile.ZipFile, file: IO[bytes]) -> dict[str, zipfile.ZipInfo]:
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
    if claimed > allowed_bytes(size_of_file(file)):
        raise TraceFormatError(
            f"it claims to unpack to {format_size(claimed)}, more than {MAX_RATIO} times its length; "
            "refused, as a trace does not shrink so far"
        )
    return members


def _member(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str
) -> tuple[np.dtype[Any], tuple[int, ...], memoryview]:
    """Return the type, shape and data of one array, its header checked against its length."""
    if name not in members:
        raise TraceFormatError(f"expected a column {name!r}, got {sorted(members)!s:.120}")
    info = members[name]
    data = bytearray()
    with archive.open(info) as stream:
        while piece := stream.read(_MAX_READ // 4):
            data += piece
    if len(data) != info.file_size:
        raise TraceFormatError(f"column {name!r}: expected {info.file_size} bytes, got {len(data)}")
    dtype, shape, offset = _header(name, data)
    count = shape[0] if shape else 1
    if count > MAX_EVENTS or len(data) - offset != count * dtype.itemsize:
        raise TraceFormatError(
            f"column {name!r}: its header says {count} items of {dtype.itemsize} bytes, "
            f"its data are {len(data) - offset} bytes (at most {MAX_EVENTS} events are read)"
        )
    return dtype, shape, memoryview(data)[offset:]


def _header(name: str, data: bytearray) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Read the header of a ``.npy`` array: its type, shape, and where its data begin."""
    if data[:6] != _MAGIC or len(data) < 12:
        raise TraceFormatError(f"column {name!r}: expected a NumPy array, got {bytes(data[:6])!r}")
    prefix, length = (
        (10, data[8] | data[9] << 8) if data[6] == 1 else (12, int.from_bytes(data[8:12], "little"))
    )
    text = bytes(data[prefix : min(prefix + length, prefix + 1024)])
    if not _HEADER.fullmatch(text):
        raise TraceFormatError(
            f"column {name!r}: expected a header with an integer or string type and at most one "
            f"dimension, got {text[:120]!r}"
        )
    descr, shape = _DESCR.search(text), _SHAPE.search(text)
    if descr is None or shape is None or _ORDER.search(text) is None:
        raise TraceFormatError(
            f"column {name!r}: expected descr, fortran_order and shape, got {text[:120]!r}"
        )
    order, kind, width = (part.decode() for part in descr.groups())
    if kind in "iu" and width not in "1248":
        raise TraceFormatError(f"column {name!r}: expected integers of 1, 2, 4 or 8 bytes, got {width}")
    dtype = np.dtype(f"{order}{kind}{width}")
    return dtype, () if shape[1] is None else (int(shape[1]),), prefix + length


# ---------------------------------------------------------------------- the arrays


def _integers(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    if dtype.kind not in "iu" or len(shape) != 1:
        raise TraceFormatError(
            f"column {name!r}: expected one dimension of integers, got {dtype} of shape {shape}"
        )
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="), copy=False)


def _meta(dtype: np.dtype[Any], shape: tuple[int, ...], data: memoryview) -> dict[str, object]:
    if dtype.kind not in "US" or shape != () or len(data) > _MAX_META_BYTES:
        raise TraceFormatError(f"meta: expected one string, got {dtype} of shape {shape}")
    coding = "utf-8" if dtype.kind == "S" else "utf-32-be" if dtype.byteorder == ">" else "utf-32-le"
    try:
        meta = json.loads(str(data, coding).rstrip("\0"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"meta: expected JSON, got text that is not: {error}") from None
    if not isinstance(meta, dict):
        raise TraceFormatError(f"meta: expected a JSON object, got {type(meta).__name__}")
    return meta


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
