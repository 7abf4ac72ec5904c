"""A small set of streams for one device: handed out in turn, or lent, and destroyed together.

Work on more streams than a device has queues (`CUDA_DEVICE_MAX_CONNECTIONS`, 8 unless told otherwise) is
put in line anyway, so a program wants a few, made once. `next` hands them out in turn, as PyTorch does
with its 32; `borrow` lends the one with the fewest borrowers, and takes it back.

A stream of the set is known by its handle everywhere: to this library, to CuPy (``ptr``), and to all
that ask for ``__cuda_stream__`` (cuda.core, Numba, PyTorch's ``ExternalStream`` by the handle).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from smartpool.driver.protocol import Driver
from smartpool.errors import ConfigurationError, InvariantError, StreamError

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

    __slots__ = ("_driver", "device", "handle")

    def __init__(self, driver: Driver, handle: int) -> None:
        self._driver = driver
        self.device = driver.name
        self.handle = handle

    def __repr__(self) -> str:
        return f"<ManagedStream {self.handle:#x} on {self.device}>"

    @property
    def ptr(self) -> int:
        """The handle, as CuPy calls it."""
        return self.handle

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
        self._streams: list[ManagedStream] = []
        self._borrowers: dict[ManagedStream, int] = {}
        self._used: dict[ManagedStream, int] = {}  # when each was last handed out
        self._clock = itertools.count()
        self._lock = threading.Lock()
        self._closed = False

    @staticmethod
    def checked_size(size: object) -> int:
        """Return `size` if it is one; `ConfigurationError` otherwise."""
        if type(size) is int and 1 <= size <= MOST_STREAMS:
            return size
        raise ConfigurationError(
            "streams_per_device", f"expected an integer from 1 to {MOST_STREAMS}, got {size!r}"
        )

    def __repr__(self) -> str:
        return f"<StreamSet on {self._driver.name}: {len(self._streams)} of {self.size} streams>"

    def __len__(self) -> int:
        return len(self._streams)

    def next(self) -> ManagedStream:
        """Return the stream whose turn it is: a new one, or the one that was handed out longest ago.

        Raises `StreamError` when the set was closed.
        """
        with self._lock:
            self._require_open()
            full = len(self._streams) == self.size
            return self._hand_out(min(self._streams, key=self._used.__getitem__) if full else self._make())

    @contextmanager
    def borrow(self) -> Iterator[ManagedStream]:
        """Lend a stream for the ``with`` block: one that nobody has borrowed, as long as there is one.

        When all are lent, the one with the fewest borrowers. Nothing is waited for on the way out: work
        that is queued goes on, in line before the next borrower's.
        """
        with self._lock:
            self._require_open()
            stream = self._hand_out(self._least_borrowed())
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

    def check(self) -> None:
        """Raise `InvariantError` unless the books agree."""
        with self._lock:
            if not set(self._streams) == set(self._borrowers) == set(self._used):
                raise InvariantError(f"{self!r} lends {self._borrowers} and used {self._used}")
            if len(self._streams) > self.size or min(self._borrowers.values(), default=0) < 0:
                raise InvariantError(f"{self!r} has too many streams, or lends {self._borrowers}")

    def _least_borrowed(self) -> ManagedStream:
        best = min(self._streams, key=lambda each: (self._borrowers[each], self._used[each]), default=None)
        if best is None or (self._borrowers[best] and len(self._streams) < self.size):
            return self._make()
        return best

    def _make(self) -> ManagedStream:
        stream = ManagedStream(self._driver, self._driver.create_stream())
        self._borrowers[stream] = self._used[stream] = 0
        self._streams.append(stream)
        return stream

    def _hand_out(self, stream: ManagedStream) -> ManagedStream:
        self._used[stream] = next(self._clock)
        return stream

    def _destroy(self) -> None:
        for stream in [each for each in self._streams if not self._borrowers[each]]:
            self._driver.destroy_stream(stream.handle)
            self._streams.remove(stream)
            del self._borrowers[stream], self._used[stream]

    def _require_open(self) -> None:
        if self._closed:
            raise StreamError(f"expected an open set of streams on {self._driver.name}, this one was closed")
