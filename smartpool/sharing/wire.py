"""What travels between processes, and how: a description, and file descriptors, over a Unix socket.

A message is a header with the version of the protocol, the description as JSON, and then one byte for each
descriptor, which carries it: so one that arrives is owned before the next one is asked for, and one that
does not (the receiver has none left: the system drops it then) is missed at once. Nothing that comes is
trusted: every field is looked at, and what is behind the descriptors when they are used.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from smartpool.descriptors import Descriptor
from smartpool.dlpack import DType, byte_count, checked_shape
from smartpool.errors import SharingError

__all__ = ["Description", "read_exactly", "receive_message", "send_message"]

_NAME: Final = b"SPb"
_VERSION: Final = b"2"
_HEADER: Final = struct.Struct("!3scII")  # name, version, bytes of the description, descriptors
_MOST_TEXT: Final = 1 << 20
_MOST_BYTES: Final = 1 << 57  # more than any device has
_ONE: Final = socket.CMSG_LEN(array.array("i").itemsize) if hasattr(socket, "CMSG_LEN") else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the other process must know, apart from the descriptors.

    Attributes
    ----------
    device
        The device's name in the exporting process.
    identity
        What the device is called in every process: the UUID of a CUDA device, else empty.
    offset
        Where the buffer begins in the first chunk.
    chunks
        Sizes of the chunks, in order.
    nbytes, shape, dtype, read_only
        As the buffer's.
    """

    device: str
    identity: str
    offset: int
    chunks: tuple[int, ...]
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    read_only: bool

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Return what `to_json` wrote; `SharingError` when it is something else."""
        try:
            fields = json.loads(text)
            lists = fields["chunks"], fields["shape"]
            made = cls(**{**fields, "chunks": tuple(lists[0]), "shape": tuple(lists[1])})
            numbers = (made.offset, made.nbytes, *made.chunks, *made.shape)
            sound = (
                all(type(numbers) is list for numbers in lists)
                and all(type(number) is int and 0 <= number < _MOST_BYTES for number in numbers)
                and all(type(text) is str for text in (made.device, made.identity, made.dtype))
                and type(made.read_only) is bool
                and byte_count(checked_shape(made.shape), DType.parse(made.dtype)) == made.nbytes
                and made.offset + max(made.nbytes, 1) <= sum(made.chunks) < _MOST_BYTES
            )
        except (ValueError, TypeError, LookupError, AttributeError, BufferError, RecursionError) as error:
            raise SharingError(f"expected the description of a shared buffer, got {text[:80]!r}") from error
        if not sound:
            raise SharingError(f"expected a buffer inside of its chunks, got {text[:500]}")
        return made


def send_message(connection: socket.socket, description: Description, files: Sequence[Descriptor]) -> None:
    """Send a message. Whoever calls holds the files meanwhile. Raises `OSError` when the connection fails."""
    _check_socket(connection)
    text = description.to_json().encode()
    connection.sendall(_HEADER.pack(_NAME, _VERSION, len(text), len(files)) + text)
    for file in files:
        socket.send_fds(connection, [b"+"], [file.fileno()])


def receive_message(connection: socket.socket) -> tuple[Description, list[Descriptor]]:
    """Return what came; `SharingError` when that is no shared buffer, `OSError` when the connection fails."""
    _check_socket(connection)
    header = read_exactly(connection, _HEADER.size)
    name, version, length, count = _HEADER.unpack(header)
    if name != _NAME or length > _MOST_TEXT:
        raise SharingError(f"expected a shared buffer from the socket, got {header!r}")
    if version != _VERSION:
        raise SharingError(
            f"expected version {_VERSION.decode()} of the protocol, got {version!r}: let both processes have "
            "the same smartpool"
        )
    description = Description.from_json(read_exactly(connection, length).decode(errors="replace"))
    if count != len(description.chunks) + 1:
        raise SharingError(
            f"expected {len(description.chunks) + 1} descriptors for {description}, got {count}"
        )
    return description, [_read_descriptor(connection) for _ in range(count)]


def read_exactly(connection: socket.socket, length: int) -> bytes:
    """Return `length` bytes; `SharingError` when the other end closes before."""
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise SharingError(
                f"expected {length} bytes of a shared buffer, got {len(data)}: the other end closed"
            )
        data += part
    return data


def _read_descriptor(connection: socket.socket) -> Descriptor:
    data, control, flags, _ = connection.recvmsg(1, _ONE, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    numbers = array.array("i")
    for _, _, item in control:
        numbers.frombytes(item[: len(item) // numbers.itemsize * numbers.itemsize])
    cut = flags & socket.MSG_CTRUNC
    if len(numbers) == 1 and data and not cut:
        try:
            return Descriptor(numbers[0])
        except OSError as error:  # of a folder, which is still ours to close
            os.close(numbers[0])
            raise SharingError(f"expected a descriptor of memory, got another: {error}") from error
    for number in numbers:
        os.close(number)
    if cut:
        raise SharingError(
            "expected a file descriptor, and this process could not take it: it may have as many files open "
            "as it may (raise the limit, ulimit -n), or more came than one"
        )
    raise SharingError("expected a file descriptor, got none: the other end closed, or sent something else")


def _check_socket(connection: socket.socket) -> None:
    family = getattr(socket, "AF_UNIX", None)
    if not isinstance(connection, socket.socket) or (connection.family, connection.type) != (
        family,
        socket.SOCK_STREAM,
    ):
        raise SharingError(
            f"expected a connected Unix stream socket, got {connection!r}: socket.socketpair() makes two; a "
            "pipe or queue of multiprocessing takes the SharedBuffer itself"
        )
