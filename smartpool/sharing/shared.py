"""`SharedBuffer`: what travels between processes, and how it travels.

A shared buffer is a description and some file descriptors: one for each chunk under the block, and the
lease. It goes through `multiprocessing` by pickle (an argument of a spawned process, a queue, a pipe),
or over a Unix socket of the user's own by `send` and `receive`, which read no pickles.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from smartpool.buffer import byte_count, checked_shape
from smartpool.dlpack import DType
from smartpool.errors import SharingError
from smartpool.sharing.lease import Lease

if TYPE_CHECKING:
    from smartpool.buffer import Buffer

__all__ = ["Description", "SharedBuffer", "open_shared"]

_MAGIC: Final = b"SPb1"
_HEADER: Final = struct.Struct("!4sII")  # magic, bytes of the description, descriptors
_MOST_DESCRIPTORS: Final = 250  # Linux takes 253 in one message
_MOST_TEXT: Final = 1 << 20


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
            fields: dict[str, Any] = json.loads(text)
            for name in ("chunks", "shape"):
                fields[name] = tuple(map(int, fields[name]))
            made = cls(**fields)
            needed = byte_count(checked_shape(made.shape), DType.parse(made.dtype))
        except (ValueError, TypeError, KeyError, AttributeError, BufferError) as error:
            raise SharingError(f"expected the description of a shared buffer, got {text[:80]!r}") from error
        inside = made.offset >= 0 and made.offset + max(made.nbytes, 1) <= sum(made.chunks)
        if not inside or needed != made.nbytes:
            raise SharingError(f"expected a buffer inside of its chunks, got {made}")
        return made


class SharedBuffer:
    """A buffer on its way to other processes. Made by `SmartPool.export` and by `receive`.

    Parameters
    ----------
    description
        What it is.
    descriptors
        Of the chunks, in order, and of the lease; taken over, and closed with this object.
    on_close
        In the exporting process: called, with whether to wait, when it is closed.
    """

    __slots__ = ("__weakref__", "_closer", "_descriptors", "_lock", "_on_close", "description")

    def __init__(
        self,
        description: Description,
        descriptors: list[int],
        on_close: Callable[[bool], None] | None = None,
    ) -> None:
        self.description = description
        self._descriptors = descriptors
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closer = weakref.finalize(self, _close, descriptors, on_close)
        self._closer.atexit = False  # the system closes descriptors, and nothing is to be freed any more

    def __repr__(self) -> str:
        about = self.description
        state = "closed" if self.closed else f"{about.shape} {about.dtype} on {about.device}"
        return f"<SharedBuffer: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed: it cannot be opened or sent any more."""
        return not self._closer.alive

    @property
    def in_use(self) -> bool:
        """Whether some process, this one included, has the buffer open. Never blocks."""
        return Lease(self._opened()[-1]).held

    def open(self) -> Buffer:
        """Return a `Buffer` over the same memory, for as long as it or a consumer of it lives.

        It is the exporter's memory, in its pool; here it is only mapped. It may be opened several times.
        Everything that the exporter had queued on the device before `SmartPool.export` is done; later work
        of either side is for the two to order.

        Raises
        ------
        SharingError
            When it was closed here, or let go of by its owner.
        DeviceNotFoundError
            When this process does not see the device.
        DriverError
            When the memory cannot be mapped.
        """
        from smartpool.sharing.opening import open_buffer  # noqa: PLC0415 - drivers, where they are needed

        *chunks, lease = self._opened()
        return open_buffer(self.description, chunks, lease)

    def close(self, *, wait: bool = False) -> None:
        """Close the descriptors here. Buffers that are open stay open. Idempotent.

        In the exporting process this ends the export: nobody can open the buffer any more, and its block
        is the pool's again as soon as no process has it open (`wait`: block until then).
        """
        with self._lock:
            detached = self._closer.detach()
        if detached is not None:
            _close(self._descriptors, self._on_close, wait=wait)

    # ------------------------------------------------------------------ by multiprocessing

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # noqa: PLC0415 - 10 ms that only senders pay

        return _received, (self.description.to_json(), [DupFd(number) for number in self._opened()])

    # ------------------------------------------------------------------ over a socket

    def send(self, connection: socket.socket) -> None:
        """Send it over a connected Unix socket; `receive` is the other end.

        Raises `OSError` when the connection fails, and `SharingError` when this was closed.
        """
        text = self.description.to_json().encode()
        left = list(self._opened())
        header = _HEADER.pack(_MAGIC, len(text), len(left))
        now, left = left[:_MOST_DESCRIPTORS], left[_MOST_DESCRIPTORS:]
        sent = socket.send_fds(connection, [header], now)
        connection.sendall((header + text)[sent:])
        while left:
            now, left = left[:_MOST_DESCRIPTORS], left[_MOST_DESCRIPTORS:]
            socket.send_fds(connection, [b"+"], now)

    @classmethod
    def receive(cls, connection: socket.socket) -> SharedBuffer:
        """Return what the other end sent; `SharingError` when that is no shared buffer."""
        descriptors: list[int] = []
        try:
            text = _receive(connection, descriptors)
            return cls(_checked(Description.from_json(text), descriptors), descriptors)
        except BaseException:
            _close(descriptors)
            raise

    def _opened(self) -> list[int]:
        if self.closed:
            raise SharingError("expected a shared buffer that is open, this one was closed; export it again")
        return self._descriptors


def open_shared(shared: SharedBuffer) -> Buffer:
    """Open a buffer that another process exported: `SharedBuffer.open`."""
    if not isinstance(shared, SharedBuffer):
        raise SharingError(
            f"expected a SharedBuffer, got {shared!r}; make one by SmartPool.export in the process that has "
            "the buffer, and hand it over by multiprocessing or SharedBuffer.send"
        )
    return shared.open()


def _received(text: str, duplicates: list[Any]) -> SharedBuffer:
    """Return what was pickled in another process."""
    descriptors: list[int] = []
    try:
        for duplicate in duplicates:
            number = duplicate.detach()
            os.set_inheritable(number, False)
            descriptors.append(number)
        return SharedBuffer(_checked(Description.from_json(text), descriptors), descriptors)
    except BaseException:
        _close(descriptors)
        raise


def _checked(description: Description, descriptors: list[int]) -> Description:
    if len(descriptors) != len(description.chunks) + 1:
        raise SharingError(
            f"expected {len(description.chunks) + 1} descriptors for {description}, got {len(descriptors)}"
        )
    return description


def _receive(connection: socket.socket, descriptors: list[int]) -> str:
    """Return the description that was sent, and put the descriptors into the list."""
    header = _read(connection, _HEADER.size, descriptors)
    magic, length, count = _HEADER.unpack(header)
    if magic != _MAGIC or length > _MOST_TEXT:
        raise SharingError(f"expected a shared buffer from the socket, got {header!r}")
    text = _read(connection, length, descriptors).decode(errors="replace")
    while len(descriptors) < count:
        before = len(descriptors)
        _read(connection, 1, descriptors)
        if len(descriptors) == before:
            raise SharingError(
                f"expected {count} descriptors, got {before}: the limit on open files of this process may be "
                "too low (ulimit -n), or the socket is not a Unix socket"
            )
    return text


def _read(connection: socket.socket, length: int, descriptors: list[int]) -> bytes:
    """Return `length` bytes, and put the descriptors that come with them into the list."""
    data = b""
    while len(data) < length:
        part, found, _, _ = socket.recv_fds(
            connection, length - len(data), _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        descriptors.extend(found)
        if not part:
            raise SharingError(
                f"expected {length} bytes of a shared buffer, got {len(data)}: the other end closed"
            )
        data += part
    return data


def _close(
    descriptors: list[int], on_close: Callable[[bool], None] | None = None, *, wait: bool = False
) -> None:
    """Close the descriptors. The owner first tries to take the block back, by the lease among them."""
    try:
        if on_close is not None:
            on_close(wait)
    finally:
        while descriptors:
            os.close(descriptors.pop())
