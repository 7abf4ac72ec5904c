"""`SharedBuffer`: what is handed to other processes.

A shared buffer is a description and some file descriptors: one for each chunk under the block, and the
lease. It goes through `multiprocessing` by pickle (an argument of a spawned process, a queue, a pipe),
or over a Unix socket of the user's own by `send` and `receive`, which read no pickles.
"""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from smartpool.descriptors import Descriptor
from smartpool.errors import SharingError
from smartpool.sharing.endings import sweep
from smartpool.sharing.lease import is_held
from smartpool.sharing.wire import Description, receive_message, send_message

if TYPE_CHECKING:
    from smartpool.buffer import Buffer

__all__ = ["SharedBuffer", "open_shared"]

_numbers: Final = itertools.count(1)


class Export(Protocol):
    """A block that is kept while other processes may have it open."""

    def wait(self) -> None:
        """Block until no process has it open."""


class SharedBuffer:
    """A buffer on its way to other processes. Made by `SmartPool.export` and by `receive`.

    Parameters
    ----------
    description
        What it is.
    files
        The chunks, in order, and the lease. Whoever is in the middle of using them when this is closed keeps
        them open until then.

    Attributes
    ----------
    number
        Tells the shared buffers of one process apart.
    """

    __slots__ = ("__weakref__", "_export", "_files", "description", "number")

    def __init__(self, description: Description, files: Iterable[Descriptor]) -> None:
        self._export: Export | None = None  # in the exporting process
        self._files = tuple(files)
        self.description = description
        self.number = next(_numbers)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_export", None) is not None and not self.closed and not finalizing():
            self.close()

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
        return not self._files

    @property
    def in_use(self) -> bool:
        """Whether some process, this one included, has the buffer open. Never blocks."""
        return is_held(self._opened()[-1])

    def open(self) -> Buffer:
        """Return a `Buffer` over the same memory, for as long as it or a consumer of it lives.

        It is the exporter's memory, in its pool; here it is only mapped. It may be opened several times.
        Everything that the exporter had queued on the device before `SmartPool.export` is done; later work
        of either side is for the two to order.

        Raises
        ------
        SharingError
            When it was closed here, or let go of by its owner, or no file descriptor is left.
        DeviceNotFoundError
            When this process does not see the device.
        DriverError
            When the memory cannot be mapped.
        """
        from smartpool.sharing.opening import open_buffer  # noqa: PLC0415 - drivers, where they are needed

        return open_buffer(self.description, self._opened())

    def close(self, *, wait: bool = False) -> None:
        """Close the descriptors here. Buffers that are open stay open. Idempotent.

        In the exporting process this ends the export: nobody can open the buffer any more, and its block
        is the pool's again as soon as no process has it open (`wait`: block until then).
        """
        self._files = ()
        if self._export is not None:
            if wait:
                self._export.wait()
            sweep()

    def __reduce__(self) -> tuple[Any, ...]:
        from smartpool.sharing.post import offer  # noqa: PLC0415 - 10 ms that only senders pay

        self._opened()
        return _collected, offer(self)

    def send(self, connection: socket.socket) -> None:
        """Send it over a connected Unix socket; `receive` is the other end.

        Raises `OSError` when the connection fails, and `SharingError` when this was closed.
        """
        send_message(connection, self.description, self._opened())

    @classmethod
    def receive(cls, connection: socket.socket) -> SharedBuffer:
        """Return what the other end sent; `SharingError` when that is no shared buffer.

        After an error the rest of the message may still be on its way: close the connection. What comes is
        taken from whom you trust: the description is checked, the contents are the sender's. Raises `OSError`
        when the connection fails.
        """
        return cls(*receive_message(connection))

    def _opened(self) -> tuple[Descriptor, ...]:
        files = self._files
        if not files:
            raise SharingError(
                "expected a shared buffer that is open, this one was closed, here or where it was pickled; "
                "export it again, and keep it open until others have opened it"
            )
        return files


def _collected(address: bytes, number: int, description: str) -> SharedBuffer:
    """Return what was pickled; it is closed where it was closed meanwhile."""
    from smartpool.sharing.post import collect  # noqa: PLC0415 - as above

    return SharedBuffer(*collect(address, number, description))


def open_shared(shared: SharedBuffer) -> Buffer:
    """Open a buffer that another process exported: `SharedBuffer.open`."""
    if not isinstance(shared, SharedBuffer):
        raise SharingError(
            f"expected a SharedBuffer, got {shared!r}; make one by SmartPool.export in the process that has "
            "the buffer, and hand it over by multiprocessing or SharedBuffer.send"
        )
    return shared.open()
