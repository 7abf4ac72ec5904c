"""A small set of streams for one device: handed out in turn, or lent, and destroyed together.

Work on more streams than a device has queues (`CUDA_DEVICE_MAX_CONNECTIONS`, 8 unless told otherwise) is
put in line anyway, so a program wants a few, made once. `next` hands them out in turn, as PyTorch does
with its 32; `borrow` lends the one with the fewest borrowers, and takes it back.

A stream of the set is known by its handle everywhere: to this library, to CuPy (``ptr``), and to all
that ask for ``__cuda_stream__`` (cuda.core, Numba, PyTorch's ``ExternalStream`` by the handle).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from smartpool.copying import not_copied
from smartpool.driver.protocol import Driver
from smartpool.errors import ConfigurationError, DriverError, StreamError
from smartpool.forks import renewed
from smartpool.scopes import scoped
from smartpool.values import as_integer

__all__ = ["DEFAULT_STREAMS", "MOST_STREAMS", "ManagedStream", "StreamSet"]

DEFAULT_STREAMS: Final = 8
MOST_STREAMS: Final = 128


class ManagedStream:
    """One stream of a `StreamSet`. It lives as long as its set.

    Attributes
    ----------
    handle, ptr
        The driver's handle, under cuda.core's name and under CuPy's.
    device
        The device's name.
    """

    __slots__ = ("_driver", "device", "handle", "ptr")

    def __init__(self, driver: Driver, handle: int) -> None:
        self._driver = driver
        self.device = driver.name
        self.handle = self.ptr = handle

    def __repr__(self) -> str:
        return f"<ManagedStream {self.handle:#x} on {self.device}>"

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle

    def synchronize(self) -> None:
        """Block until all work queued on the stream is done."""
        self._driver.synchronize(self.handle)


class StreamSet:
    """At most `size` streams of one device, each made when it is first needed. Thread-safe.

    Parameters
    ----------
    driver
        The device.
    size
        How many streams at most.

    Raises
    ------
    ConfigurationError
        When `size` is not from 1 to 128.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> streams = StreamSet(open_driver("cpu"), 2)
    >>> first, second, third = streams.next(), streams.next(), streams.next()
    >>> first is third, first is second
    (True, False)
    >>> with streams.borrow() as mine, streams.borrow() as yours:
    ...     mine is yours
    False
    >>> streams.close()
    """

    def __init__(self, driver: Driver, size: int = DEFAULT_STREAMS) -> None:
        self.size = self.checked_size(size)
        self._driver = driver
        self._borrowers: dict[ManagedStream, int] = {}  # the one that was handed out longest ago is first
        self._lock = renewed(self, "_lock", threading.RLock)
        self._closed = False

    @staticmethod
    def checked_size(size: object) -> int:
        """Return `size` if it is one; `ConfigurationError` otherwise."""
        number = as_integer(size)
        if number is None or not 1 <= number <= MOST_STREAMS:
            raise ConfigurationError(
                "streams_per_device", f"expected an integer from 1 to {MOST_STREAMS}, got {size!r}"
            )
        return number

    __reduce_ex__ = not_copied

    def __repr__(self) -> str:
        return f"<StreamSet on {self._driver.name}: {len(self)} of {self.size} streams>"

    def __len__(self) -> int:
        return len(self._borrowers)

    def next(self) -> ManagedStream:
        """Return the stream whose turn it is: a new one, or the one that was handed out longest ago.

        Raises `StreamError` when the set was closed.
        """
        with self._lock:
            return self._hand_out(None if len(self) < self.size else next(iter(self._borrowers)))

    @scoped
    def borrow(self) -> Iterator[ManagedStream]:
        """Lend a stream for the ``with`` block: one that nobody has borrowed, as long as there is one.

        When all are lent, the one with the fewest borrowers. Nothing is waited for on the way out: work
        that is queued goes on, in line before the next borrower's.
        """
        with self._lock:
            least = min(self._borrowers, key=self._borrowers.__getitem__, default=None)
            taken = least is not None and self._borrowers[least] > 0
            stream = self._hand_out(None if taken and len(self) < self.size else least)
            self._borrowers[stream] += 1
        try:
            yield stream
        finally:
            with self._lock:
                self._borrowers[stream] -= 1
                if self._closed:
                    self._destroy()

    def close(self) -> None:
        """Destroy the streams: those that are lent when they come back. Pending work still completes."""
        with self._lock:
            self._closed = True
            self._destroy()

    def _hand_out(self, stream: ManagedStream | None) -> ManagedStream:
        """Put `stream`, or a new one, at the end of the line, and return it."""
        if self._closed:
            raise StreamError(f"expected an open set of streams on {self._driver.name}, this one was closed")
        if stream is None:
            stream = ManagedStream(self._driver, self._driver.create_stream())
        self._borrowers[stream] = self._borrowers.pop(stream, 0)
        return stream

    def _destroy(self) -> None:
        for stream in [each for each, borrowers in self._borrowers.items() if not borrowers]:
            del self._borrowers[stream]  # first: after an interrupt its handle may be another stream's
            try:
                self._driver.destroy_stream(stream.handle)
            except DriverError:  # it is still there
                self._borrowers[stream] = 0
                raise
