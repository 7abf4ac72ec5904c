"""A driver that refuses what breaks the protocol's rules before the driver beneath it is asked.

CUDA accepts some of what the protocol refuses (releasing a chunk that is mapped, enabling access over a
hole), and its documentation leaves some open (unmapping a part of a mapping). The pool asks for none of it,
and has one book of what is mapped, so its driver needs no second one. Tests do, and pools in debug mode:
there a `CheckedDriver` stands in front. `cpu` and `model` check themselves, by the same book.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from smartpool.copying import not_copied
from smartpool.driver.bookkeeping import AddressBook
from smartpool.driver.protocol import Driver, MappedRange
from smartpool.errors import DriverError
from smartpool.forks import renewed

__all__ = ["CheckedDriver"]


class CheckedDriver:
    """A driver of any kind, checked.

    Parameters
    ----------
    driver
        The driver beneath, of which nobody holds anything yet. Whatever else it has, this one has too.

    Examples
    --------
    >>> from smartpool.driver import open_driver
    >>> driver = CheckedDriver(open_driver("model"))
    >>> driver.release_chunk(7)
    Traceback (most recent call last):
    smartpool.errors.DriverError: release_chunk(chunk=0x7) failed with INVALID_VALUE: no such chunk: ...
    """

    __reduce_ex__ = not_copied

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.name, self.dl_device = driver.name, driver.dl_device
        self.granularity, self.default_stream = driver.granularity, driver.default_stream
        self.calls, self.memory_info = driver.calls, driver.memory_info
        self.stream, self.native_stream = driver.stream, driver.native_stream
        self.create_stream, self.destroy_stream = driver.create_stream, driver.destroy_stream
        self.create_event, self.destroy_event = driver.create_event, driver.destroy_event
        self.record_event, self.event_done = driver.record_event, driver.event_done
        self.wait_event, self.synchronize_event = driver.wait_event, driver.synchronize_event
        self.synchronize, self.share_chunks = driver.synchronize, driver.share_chunks
        self.is_capturing, self.beside_capture = driver.is_capturing, driver.beside_capture
        self.allocate_host, self.free_host = driver.allocate_host, driver.free_host
        self.close = driver.close
        self._lock = renewed(self, "_lock", threading.Lock)  # never held while the driver works
        self._book = AddressBook(driver.granularity)

    def __repr__(self) -> str:
        return f"<CheckedDriver over {self.driver!r}>"

    def __getattr__(self, name: str) -> Any:
        """Return what only this kind of driver has."""
        if name == "driver":  # it was never made
            raise AttributeError(name)
        return getattr(self.driver, name)

    @property
    def seconds(self) -> float:
        """What the calls cost so far."""
        return self.driver.seconds

    # --- raw memory ---

    def allocate(self, size: int) -> int:
        """Return the address of `size` fresh bytes."""
        self._book.check_size("allocate", size)
        return self._take(self._book.add_raw, self.driver.allocate(size), size)

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        with self._lock:
            size = self._book.remove_raw(address)
        self._give_back(lambda: self.driver.free(address), lambda: self._book.add_raw(address, size))

    # --- virtual memory ---

    def reserve(self, size: int) -> int:
        """Return the base of a fresh range of addresses with no memory behind them."""
        self._check_granular("reserve", size)
        return self._take(self._book.add_reservation, self.driver.reserve(size), size)

    def unreserve(self, address: int, size: int) -> None:
        """Give back a whole reservation in which nothing is mapped."""
        with self._lock:
            self._book.remove_reservation(address, size)
        self._give_back(
            lambda: self.driver.unreserve(address, size), lambda: self._book.add_reservation(address, size)
        )

    def create_chunk(self, size: int) -> int:
        """Return a handle of physical memory, mapped nowhere."""
        self._check_granular("create_chunk", size)
        return self._take(self._book.add_chunk, self.driver.create_chunk(size), size)

    def release_chunk(self, chunk: int) -> None:
        """Give the memory of a chunk that is mapped nowhere back."""
        with self._lock:
            size = self._book.remove_chunk(chunk)
        self._give_back(lambda: self.driver.release_chunk(chunk), lambda: self._book.add_chunk(chunk, size))

    def map_chunk(self, address: int, chunk: int) -> None:
        """Map the whole chunk at `address`."""
        with self._lock:
            mapping = self._book.map(address, chunk)
        try:
            self.driver.map_chunk(address, chunk)
        except BaseException:
            with self._lock:
                self._book.drop(mapping)
            raise

    def enable_access(self, address: int, size: int) -> None:
        """Let this device read and write the range, which must be mapped all over."""
        with self._lock:
            mappings = self._book.enable_access(address, size)
        self.driver.enable_access(address, size)
        for mapping in mappings:
            mapping.accessible = True

    def unmap(self, address: int, size: int) -> None:
        """Unmap all chunks mapped in the range."""
        with self._lock:
            mappings = self._book.unmap(address, size)
        self._give_back(lambda: self.driver.unmap(address, size), lambda: self._book.restore(mappings))

    def mapped(self, address: int, size: int) -> list[MappedRange]:
        """Return what is mapped in [address, address + size), in order."""
        with self._lock:
            return self._book.mapped(address, size)

    def export_chunk(self, chunk: int) -> int:
        """Return a new file descriptor for a chunk; the caller closes it."""
        with self._lock:
            self._book.check_chunk("export_chunk", chunk)
        return self.driver.export_chunk(chunk)

    def import_chunk(self, descriptor: int, size: int) -> int:
        """Return a handle of the chunk behind a file descriptor, which stays the caller's."""
        self._check_granular("import_chunk", size)
        return self._take(self._book.add_chunk, self.driver.import_chunk(descriptor, size), size)

    # --- data ---

    def fill(self, address: int, value: int, size: int, stream: int) -> None:
        """Queue on `stream`: set `size` bytes to `value`."""
        self._check_touch("fill", address, size)
        self.driver.fill(address, value, size, stream)

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes that do not overlap."""
        self._check_touch("copy", destination, size)
        self._check_touch("copy", source, size)
        self.driver.copy(destination, source, size, stream)

    def copy_to_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes of the device into pinned memory."""
        self._check_touch("copy_to_host", source, size)
        self.driver.copy_to_host(destination, source, size, stream)

    def copy_from_host(self, destination: int, source: int, size: int, stream: int) -> None:
        """Queue on `stream`: copy `size` bytes of pinned memory to the device."""
        self._check_touch("copy_from_host", destination, size)
        self.driver.copy_from_host(destination, source, size, stream)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes after all queued work is done."""
        self._check_touch("read", address, size)
        return self.driver.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address` after all queued work is done."""
        self._check_touch("write", address, len(data))
        self.driver.write(address, data)

    # --- life ---

    def held(self) -> dict[str, int]:
        """Return how much of everything callers hold now, mappings too. All zeros: nothing leaked."""
        with self._lock:
            return {**self._book.describe(), "host_bytes": self.driver.held()["host_bytes"]}

    def check(self) -> None:
        """Raise `InvariantError` unless the books are sound."""
        self.driver.check()
        with self._lock:
            self._book.check()

    # --- inside ---

    def _check_granular(self, call: str, size: int) -> None:
        if self.granularity:  # else the driver says what it lacks
            self._book.check_granular(call, size)

    def _check_touch(self, call: str, address: int, size: int) -> None:
        """Refuse bad ranges of our own reservations; of other pointers the driver is the judge."""
        with self._lock:
            if size <= 0 or self._book.is_reserved(address):
                self._book.check_touch(call, address, size)

    def _take(self, note: Callable[[int, int], None], thing: int, size: int) -> int:
        with self._lock:
            note(thing, size)
        return thing

    def _give_back(self, call: Callable[[], None], restore: Callable[[], None]) -> None:
        """Make a call that gives back what is off the book; a refusal puts it on again."""
        try:
            call()
        except DriverError:
            with self._lock:
                restore()
            raise
